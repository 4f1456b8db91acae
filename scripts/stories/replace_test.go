package stories

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/open"
)

// The demo is a promise; both its forms are kept.
func TestDemo(t *testing.T) {
	for _, hsm := range []string{"file", "tpm"} {
		t.Run(hsm, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "d")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			work, bins := filepath.Join(dir, "demo"), filepath.Join(dir, "bin")
			if err := os.Symlink(bin, bins); err != nil {
				t.Fatal(err)
			}
			demo := exec.Command("../demo.sh")
			demo.Env = append(os.Environ(), "HSM="+hsm, "BIN="+bins, "DIR="+work, "NO_COLOR=1")
			out, err := demo.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if n := strings.Count(string(out), "\n7. "); n != 1 || !strings.Contains(string(out), "Done in") {
				t.Errorf("the story is not whole:\n%s", out)
			}
			if _, err := os.Stat(work); !os.IsNotExist(err) {
				t.Errorf("the demo left its directory behind: %v", err)
			}
		})
	}
}

// Server, gate and two terminals on machines of their own, with a chip each.
// The server's cable is pulled before the copy and stays out for the access
// after it.
//
// req: C1, C2, C5, C8, C9, L3, L4, L5
func TestReplaceAcrossNetworks(t *testing.T) {
	n := newNetwork(t)
	d := newDeployment(t, n)
	old := d.terminal("nav-001", chip(t))
	old.named()
	id := old.issue()
	if got := old.curl("/a"); !strings.HasPrefix(got, "map tile /a for nav-001 (credential "+id+")") {
		t.Fatalf("before the copy: %s", got)
	}
	fresh := d.terminal("nav-002", chip(t))
	fresh.spare()
	if got := fresh.curl("/b"); !strings.Contains(got, "no usable credential") {
		t.Errorf("a terminal without the credential: %s", got)
	}
	n.cut(d.server)

	o := old.offer(old.socket("kagimori"))
	out := fresh.verb(o.code+"\n", "kagimori", "keycopy", "fetch", old.copy, "--json")
	if !strings.Contains(out, id) {
		t.Errorf("fetch does not name the credential:\n%s", out)
	}
	<-o.done
	if o.cmd.ProcessState.ExitCode() != 0 || !strings.Contains(o.log.String(), "still holds it") {
		t.Errorf("offer: exit %d\n%s", o.cmd.ProcessState.ExitCode(), o.log)
	}
	// The code is gone at both ends: the same one again opens nothing.
	fresh.refused(5, "", o.code+"\n", "kagimori", "keycopy", "fetch", old.copy)
	for _, m := range []*terminal{old, fresh} {
		if got := m.curl("/c"); !strings.HasPrefix(got, "map tile /c for nav-001 (credential "+id+")") {
			t.Errorf("%s after the copy, server cut off: %s", m.name, got)
		}
	}
	// Another code copies the same keys to yet another box (C9).
	third := d.terminal("nav-003", chip(t))
	n.mend(d.server)
	third.spare()
	n.cut(d.server)
	o = old.offer(old.socket("kagimori"))
	third.verb(o.code+"\n", "kagimori", "keycopy", "fetch", old.copy)
	<-o.done

	n.mend(d.server)
	fresh.named()
	fresh.until("the server knows both holders", func() bool {
		return slices.Equal(slices.Sorted(slices.Values(d.holders(id))), []string{"nav-001", "nav-002"})
	})
}

// Each program is killed in turn, as a power cut does it, and comes back with
// everything it had acknowledged.
//
// req: C9, L1
func TestKilledProgramsComeBack(t *testing.T) {
	d := newDeployment(t, nil)
	old, fresh := d.terminal("nav-001", chip(t)), d.terminal("nav-002", sealedFile)
	old.named()
	id := old.issue()
	d.serverRun.kill()
	old.daemon.kill()
	d.gateRun.kill()
	d.serve()
	old.daemon = old.start("kagimori", old.config)
	d.gateRun = d.gate.start("kagimori-gate", d.gateConfig)
	d.gateServes()
	if got := old.curl("/a"); !strings.Contains(got, id) {
		t.Errorf("after all three were killed: %s", got)
	}
	if got := d.holders(id); !slices.Equal(got, []string{"nav-001"}) {
		t.Errorf("holders %v", got)
	}

	// An operator code lives in memory only: it dies with the power, the keys do not.
	fresh.spare()
	o := old.offer(old.socket("kagimori"))
	old.daemon.kill()
	old.daemon = old.start("kagimori", old.config)
	fresh.refused(5, "", o.code+"\n", "kagimori", "keycopy", "fetch", old.copy)
	o = old.offer(old.socket("kagimori"))
	fresh.verb(o.code+"\n", "kagimori", "keycopy", "fetch", old.copy)
	fresh.daemon.kill()
	fresh.daemon = fresh.start("kagimori", fresh.config)
	for _, m := range []*terminal{old, fresh} {
		m.until("the key works", func() bool { return strings.Contains(m.curl("/b"), id) })
	}
}

// chip is a TPM of its own for one terminal, emulated.
func chip(t *testing.T) open.Config {
	return open.Config{Kind: open.KindTPM, Path: hsmtest.StartTPM(t)}
}

// sealedFile is the embedded default.
var sealedFile = open.Config{Kind: open.KindFile}
