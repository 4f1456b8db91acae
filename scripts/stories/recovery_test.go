package stories

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/open"
)

// The chip of a terminal is exchanged: the daemon is up and says what to do, the
// store is set aside, the terminal enrolled anew, and after an administrator's
// decision the credential from before reaches the service again. The server is
// started again in between.
//
// req: C8, L4, L10
func TestChipIsExchanged(t *testing.T) {
	d := newDeployment(t, nil)
	chip := hsmtest.NewTPM(t)
	m := d.terminal("nav-001", open.Config{Kind: open.KindTPM, Path: chip.Socket})
	m.named()
	id := m.issue()
	m.until("the store key is wrapped for the server", func() bool { return m.recovery().Wrap > 0 })

	other := hsmtest.NewTPM(t)
	m.exchange(chip, other)
	m.refused(8, "another TPM", "", "kagimori", "credential", "list")
	s := m.recovery()
	if s.Wrap == 0 || !slices.Contains(s.Possible, "start") || !strings.Contains(s.Next, "kagimori recovery start") {
		t.Fatalf("%+v", s)
	}
	if got := m.curl("/a"); strings.Contains(got, "map tile") {
		t.Errorf("without its chip: %s", got)
	}
	if out := m.verb("", "kagimori", "recovery", "start"); !strings.Contains(out, "nothing is deleted") {
		t.Errorf("start:\n%s", out)
	}
	m.refused(6, "key storage is open", "", "kagimori", "recovery", "start")
	d.bundle("again", "terminal", "reenroll", "nav-001")
	d.provision(m.machine, "kagimori", "again")
	m.connected()

	request := d.asked(m.machine, "nav-001")
	d.serverRun.stop()
	d.serve()
	m.connected()
	if got := m.curl("/b"); strings.Contains(got, "map tile") {
		t.Errorf("before a decision: %s", got)
	}
	d.server.refused(3, "no recovery", "", "kagimori-server", "recovery", "approve", strings.Repeat("0", 32))
	if out := d.server.verb("", "kagimori-server", "recovery", "approve", request); !strings.Contains(out, "nav-001") {
		t.Errorf("approve:\n%s", out)
	}
	m.until("the credential is back", func() bool { return strings.Contains(m.verb("", "kagimori", "credential", "list", "--json"), id) })
	if got := m.curl("/c"); !strings.HasPrefix(got, "map tile /c for nav-001 (credential "+id+")") {
		t.Errorf("after the recovery: %s", got)
	}
	m.until("the server knows that it is taken", func() bool {
		return strings.Contains(d.server.verb("", "kagimori-server", "recovery", "show", request), "taken")
	})
	m.until("nothing is set aside any more", func() bool { return len(m.recovery().Aside) == 0 })
	d.server.refused(6, "released", "", "kagimori-server", "recovery", "deny", request)
	for _, mark := range []string{"aside"} {
		if left, _ := os.ReadDir(m.state() + "/" + mark); len(left) > 0 {
			t.Errorf("the old store is still there: %v", left)
		}
	}
	if out := m.verb("", "kagimori", "audit", "list", "--kind", "recovered"); !strings.Contains(out, "took over") {
		t.Errorf("audit:\n%s", out)
	}
}

// Without a server: a recovery file opens the store under another chip, and the
// relay goes on with the credential.
func TestRecoveryFile(t *testing.T) {
	d := newDeployment(t, nil)
	chip := hsmtest.NewTPM(t)
	m := d.terminal("nav-001", open.Config{Kind: open.KindTPM, Path: chip.Socket})
	m.named()
	id := m.issue()
	var file struct{ File, Passphrase string }
	m.query(&file, "kagimori", "recovery", "export", m.path("nav.recovery"))
	m.refused(6, "exists already", "", "kagimori", "recovery", "export", m.path("nav.recovery"))
	if fi, err := os.Stat(file.File); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
	d.serverRun.stop() // nobody can be asked
	m.exchange(chip, hsmtest.NewTPM(t))
	m.refused(7, "does not open", "aaaaa-aaaaa-aaaaa-aaaaa-aaaaa\n", "kagimori", "recovery", "import", file.File)
	out := m.verb(file.Passphrase+"\n", "kagimori", "recovery", "import", file.File)
	if !strings.Contains(out, "with 1 credential\n") || !strings.Contains(out, "enrolled anew") {
		t.Errorf("import:\n%s", out)
	}
	if got := m.curl("/a"); !strings.HasPrefix(got, "map tile /a for nav-001 (credential "+id+")") {
		t.Errorf("after the import: %s", got)
	}
	d.serve()
	d.bundle("again", "terminal", "reenroll", "nav-001")
	d.provision(m.machine, "kagimori", "again")
	m.connected()
	m.until("the server knows the holding", func() bool { return strings.Contains(m.verb("", "kagimori", "status", "--json"), `"unreported": 0`) })
	m.refused(2, "older than the last", "", "kagimori", "recovery", "accept-older")
	m.refused(6, "key storage is open", "", "kagimori", "recovery", "accept-older", "--yes")
}

// recoveryState is what these stories look at.
type recoveryState struct {
	Wrap     int `json:"server_wrap"`
	Possible []string
	Next     string
	Aside    []struct{ Name, State string }
}

func (m *terminal) recovery() (s recoveryState) {
	m.t.Helper()
	m.query(&s, "kagimori", "recovery", "status")
	return s
}

// exchange puts another chip into the terminal.
func (m *terminal) exchange(old, fresh *hsmtest.TPM) {
	m.t.Helper()
	m.daemon.stop()
	old.Kill()
	text, err := os.ReadFile(m.config)
	if err == nil {
		err = os.WriteFile(m.config, []byte(strings.ReplaceAll(string(text), old.Socket, fresh.Socket)), 0o600)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	m.daemon = m.start("kagimori", m.config)
}

// asked waits until a terminal has asked for a store key, and names the request.
func (d *deployment) asked(m *machine, name string) (id string) {
	d.t.Helper()
	m.until("the server is asked", func() bool {
		var list struct {
			Recoveries []struct{ ID, Terminal, State string }
		}
		d.server.query(&list, "kagimori-server", "recovery", "list", "--where", "terminal="+name)
		for _, x := range list.Recoveries {
			if x.State == "asked" {
				id = x.ID
			}
		}
		return id != ""
	})
	return id
}
