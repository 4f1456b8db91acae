package stories

import (
	"os"
	"strings"
	"testing"
)

// An offer is found on the network, where the old terminal announces it, and not
// before, after, or where it does not.
func TestOfferIsAnnounced(t *testing.T) {
	n := newNetwork(t)
	d := newDeployment(t, n)
	old, fresh := d.terminal("nav-001", sealedFile), d.terminal("nav-002", sealedFile)
	old.named()
	old.issue()
	fresh.spare()
	find := func() string {
		r := fresh.run("", "kagimori", "--socket", fresh.socket("kagimori"), "keycopy", "fetch")
		if r.code == 0 {
			t.Fatalf("without anybody there the new terminal dialled: %s", r.out)
		}
		return r.err
	}
	o := old.offer(old.socket("kagimori"))
	if got := find(); !strings.Contains(got, "no terminal on the local networks announces") {
		t.Errorf("without announce: %s", got)
	}
	old.verb("", "kagimori", "keycopy", "disarm")
	<-o.done

	text, err := os.ReadFile(old.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(old.config, []byte(strings.Replace(string(text), "[keycopy]\n", "[keycopy]\nannounce = true\n", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	old.daemon.stop()
	old.daemon = old.start("kagimori", old.config)
	old.connected()
	if got := find(); !strings.Contains(got, "no terminal on the local networks announces") {
		t.Errorf("without an offer: %s", got)
	}
	o = old.offer(old.socket("kagimori"))
	old.until("the offer is found", func() bool { return strings.Contains(find(), "a terminal at "+old.copy+" offers keys") })
	out := fresh.verb(o.code+"\n", "kagimori", "keycopy", "fetch", old.copy)
	<-o.done
	if got := find(); !strings.Contains(got, "no terminal on the local networks announces") {
		t.Errorf("after the copy: %s\n%s", got, out)
	}
}
