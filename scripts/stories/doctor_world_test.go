package stories

import (
	"strings"
	"testing"
	"time"
)

// Faults around a terminal: the server, the clock.

// The management server goes away and comes back; what waits for it is told.
func TestDoctorFindsTheServerGone(t *testing.T) {
	t.Parallel()
	d := newDeployment(t, nil)
	m := d.terminal("nav-001", sealedFile)
	m.named()
	m.issue()
	m.healthy()
	d.serverRun.stop()
	g := m.finds("server", 38)
	if !strings.Contains(g.Findings[0].Text, d.mqtt) {
		t.Errorf("it does not tell which server: %+v", g.Findings)
	}
	o := m.offer(m.socket("kagimori"))
	if g, _ := m.doctor(); !strings.Contains(strings.Join(g.Power, "\n"), "operator code that stands would be lost") {
		t.Errorf("what the power cut would break: %q", g.Power)
	}
	o.kill()
	m.verb("", "kagimori", "keycopy", "disarm")
	d.serve()
	m.healthy()
	var list struct {
		Entries []struct{ Kind, Subject string } `json:"entries"`
	}
	m.query(&list, "kagimori", "audit", "list")
	var kinds []string
	for _, e := range list.Entries {
		if e.Kind != "recovery-set" { // whenever the server gets to it
			kinds = append(kinds, e.Kind)
		}
	}
	if got := strings.Join(kinds, " "); got != "identity-created provisioned enrolled installed copy-offered" {
		t.Errorf("the log tells %s", got)
	}
	m.sound()

	// The gate has a doctor and a log of its own.
	d.gate.until("the gate's doctor finds nothing", func() bool {
		return d.gate.run("", "kagimori-gate", "--socket", d.gate.socket("kagimori-gate"), "doctor").code == 0
	})
	if out := d.gate.verb("", "kagimori-gate", "audit", "list"); !strings.Contains(out, "installed") {
		t.Errorf("the gate's log: %s", out)
	}
	d.gate.verb("", "kagimori-gate", "audit", "verify")
}

// The clock jumps to 1970 and to 2100 under a terminal that no server has told
// the time, and comes back.
func TestDoctorFindsTheClockWrong(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "nav-001")
	m.setClock(time.Now())
	m.start("kagimori", m.config("kagimori", "", ""))
	m.healthy()
	for _, wrong := range []time.Time{date(1970, 1, 1), date(2100, 1, 1)} {
		m.setClock(wrong)
		if g := m.finds("clock", 36); !strings.Contains(g.Findings[0].Text, wrong.Format("2006-01-02")) {
			t.Errorf("%+v", g.Findings)
		}
		m.setClock(time.Now())
		m.healthy()
	}
	m.sound()
}
