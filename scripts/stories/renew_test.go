package stories

import (
	"os"
	"strings"
	"testing"
	"time"
)

// inventory is what these stories look at of a credential's record.
type inventory struct {
	Serial, State, Operation string
}

func (d *deployment) inventory(id string) (i inventory) {
	d.t.Helper()
	d.server.query(&i, "kagimori-server", "credential", "show", id)
	return i
}

// A credential near its end is issued anew while it is used: the same id, a new
// key. Then the administrator shuts it out, and gives the terminal another.
//
// req: L7, L10
func TestCredentialIsRenewedAndRevoked(t *testing.T) {
	d := newDeployment(t, nil)
	d.serverRun.stop()
	f, err := os.OpenFile(d.serverConfig, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("[ca]\nservice_lifetime = \"1m\"\nbackdate = \"5m\"\n"); err != nil { // in its last third from the start
		t.Fatal(err)
	}
	f.Close()
	d.serve()
	m := d.terminal("nav-001", sealedFile)
	m.named()
	id := m.issue()
	first := d.inventory(id)
	m.until("the credential is used", func() bool { return strings.Contains(m.curl("/x"), "for nav-001 (credential "+id+")") })
	if again := m.issue(); again != id {
		t.Errorf("another credential, %s after %s", again, id)
	}
	second := d.inventory(id)
	if second.Serial == first.Serial || second.Operation != "renew" || second.State != "active" {
		t.Errorf("%+v after %+v", second, first)
	}
	if got := m.curl("/y"); !strings.Contains(got, "for nav-001 (credential "+id+")") {
		t.Errorf("with the new certificate: %s", got)
	}

	began := time.Now()
	if out := d.server.verb("", "kagimori-server", "credential", "revoke", id); !strings.Contains(out, "credential issue nav-001 --service maps") {
		t.Errorf("no next step: %s", out)
	}
	m.until("the gate refuses the credential", func() bool { return !strings.Contains(m.curl("/x"), "map tile") })
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("shutting a credential out took %v", took)
	}
	if i := d.inventory(id); i.State != "revoked" || i.Operation != "revoke" {
		t.Errorf("%+v", i)
	}
	fresh := m.issue()
	m.until("the relay uses the new credential", func() bool { return strings.Contains(m.curl("/x"), "for nav-001 (credential "+fresh+")") })
}
