package stories

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/open"
	"github.com/kagimori/kagimori/transport"
)

// believes gives the server makers of TPMs, and starts it again.
func (d *deployment) believes(roots []byte) {
	d.t.Helper()
	file := d.server.path("makers.pem")
	if err := os.WriteFile(file, roots, 0o600); err != nil {
		d.t.Fatal(err)
	}
	d.serverRun.stop()
	text := fmt.Sprintf("%s\n[attestation]\nek_roots = %q\n", mustRead(d.t, d.serverConfig), file)
	if err := os.WriteFile(d.serverConfig, []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
	d.serve()
}

// tells waits until the status of a terminal says something.
func (m *terminal) tells(words string) {
	m.t.Helper()
	m.until("status says "+words, func() bool { return strings.Contains(m.verb("", "kagimori", "status"), words) })
}

// A terminal with a TPM as it comes from its factory proves it when it enrolls.
// The security code comes wrapped to the chip: no message, file, log, bus or
// memory of the terminal ever shows it, and a key copy under it works.
//
// req: L3, L4, C1
func TestTerminalProvesItsTPM(t *testing.T) {
	chip, roots := hsmtest.NewMadeTPM(t)
	bus, seen := hsmtest.Record(t, chip.Socket)
	var wire *tap
	d := deploy(t, nil, func(d *deployment) string {
		wire = newTap(t, "MQTT and enrollment", "tcp", "127.0.0.1:0", d.mqtt)
		return wire.addr
	})
	d.server.refused(6, "no maker of TPMs", "", "kagimori-server", "terminal", "add", "nav-001", "--attest", "--out", d.server.path("b"))
	d.believes(roots)

	old := d.terminal("nav-001", open.Config{Kind: open.KindTPM, Path: bus})
	d.bundle("nav-001", "terminal", "add", "nav-001", "--attest")
	spare := d.bundle("spare", "spare", "add")
	inside, err := transport.OpenBundle(mustRead(t, spare.Bundle), transport.Sensitive(spare.Passphrase))
	if err != nil {
		t.Fatal(err)
	}
	code := newNeedle("the security code", inside.SecurityCode)
	d.provision(old.machine, "kagimori", "nav-001")
	old.connected()
	if out := d.server.verb("", "kagimori-server", "terminal", "show", "nav-001"); !strings.Contains(out, "proven at enrollment") {
		t.Errorf("%s", out)
	}
	if out := d.server.verb("", "kagimori-server", "terminal", "list"); !strings.Contains(out, "tpm, proven") {
		t.Errorf("%s", out)
	}

	fresh := d.terminal("nav-002", open.Config{Kind: open.KindFile})
	d.provision(fresh.machine, "kagimori", "spare")
	id := old.issue()
	o := old.offer(old.socket("kagimori"))
	fresh.verb(o.code+"\n", "kagimori", "keycopy", "fetch", old.copy)
	<-o.done
	if got := fresh.curl("/x"); !strings.Contains(got, id) {
		t.Errorf("the copied key does not work: %s", got)
	}

	places := map[string][]byte{"the bus": seen(), "the wire": []byte(wire.seen.String()), "the log": []byte(old.daemon.log.String()), "the memory": memory(t, old.daemon)}
	for path, b := range files(t, old.dir) {
		places["file "+path] = b
	}
	for where, b := range places {
		if code.in(b) {
			t.Errorf("%s is in %s", code.what, where)
		}
	}
	if !bytes.Contains(places["the memory"], []byte("nav-001")) || len(places["the bus"]) == 0 {
		t.Error("nothing was searched")
	}
}

// memory is what a process has in memory that it may write to.
func memory(t *testing.T, d *daemon) (all []byte) {
	t.Helper()
	at := fmt.Sprintf("/proc/%d/", d.cmd.Process.Pid)
	maps, err := os.Open(at + "maps")
	if err != nil {
		t.Fatal(err)
	}
	defer maps.Close()
	mem, err := os.Open(at + "mem")
	if os.IsPermission(err) {
		t.Skip("only root may look into the memory of another process")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode); err != nil || !strings.HasPrefix(mode, "rw") {
			continue
		}
		b, err := io.ReadAll(io.NewSectionReader(mem, from, to-from))
		if err == nil || len(b) > 0 {
			all = append(all, b...)
		}
	}
	return all
}

// Who cannot prove a TPM, or whose TPM nobody vouches for, is told so on both
// sides, and is not enrolled. req: L3
func TestTerminalsThatProveNothing(t *testing.T) {
	chip, roots := hsmtest.NewMadeTPM(t)
	strange, _ := hsmtest.NewMadeTPM(t) // of another factory
	d := newDeployment(t, nil)
	d.believes(roots)

	file := d.terminal("nav-001", open.Config{Kind: open.KindFile})
	b := d.bundle("nav-001", "terminal", "add", "nav-001", "--attest")
	file.refused(6, "must prove a TPM", b.Passphrase+"\n", "kagimori", "provision", b.Bundle)

	for name, c := range map[string]struct{ socket, status, log string }{
		"nav-002": {hsmtest.StartTPM(t), "no certificate of its maker", "no certificate of its maker"},
		"nav-003": {strange.Socket, "unknown authority", "unknown authority"},
	} {
		m := d.terminal(name, open.Config{Kind: open.KindTPM, Path: c.socket})
		d.bundle(name, "terminal", "add", name, "--attest")
		d.provision(m.machine, "kagimori", name)
		m.tells(c.status)
		m.tells("--attest") // the next step
		d.server.until("the server's log says it as well", func() bool { return strings.Contains(d.serverRun.log.String(), c.log) })
		m.refused(6, "no security code", "", "kagimori", "keycopy", "offer")
		if s := d.stateOf(name); s != "expected" {
			t.Errorf("%s is %s", name, s)
		}
	}

	// One chip is one terminal: the second name in it is refused until the first is freed.
	one := d.terminal("nav-004", open.Config{Kind: open.KindTPM, Path: chip.Socket})
	d.bundle("nav-004", "terminal", "add", "nav-004", "--attest")
	d.provision(one.machine, "kagimori", "nav-004")
	one.connected()
	one.daemon.stop()
	two := d.terminal("nav-005", open.Config{Kind: open.KindTPM, Path: chip.Socket})
	d.bundle("nav-005", "terminal", "add", "nav-005", "--attest")
	d.provision(two.machine, "kagimori", "nav-005")
	two.tells("enrolled as nav-004")
	d.server.verb("", "kagimori-server", "terminal", "remove", "nav-004")
	two.daemon.stop()
	two.daemon = two.start("kagimori", two.config)
	two.connected()
}

func (d *deployment) stateOf(name string) string {
	d.t.Helper()
	var x struct {
		Terminal struct {
			State string `json:"state"`
		} `json:"terminal"`
	}
	out := d.server.verb("", "kagimori-server", "terminal", "show", name, "--json")
	if err := json.Unmarshal([]byte(out), &x); err != nil {
		d.t.Fatalf("%v in %s", err, out)
	}
	return x.Terminal.State
}
