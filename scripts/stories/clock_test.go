package stories

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// setClock sets the system clock of a machine, and of no other. A program that
// was started after the first call sees every later one while it runs; the
// monotonic clocks go on, as on a board. Our programs are static, so nothing can
// be put between them and the kernel; but an emulator of this very processor is
// no static program, and libfaketime tells it the time that it passes on.
func (m *machine) setClock(to time.Time) {
	m.t.Helper()
	m.hand = m.path("clock")
	offset := fmt.Sprintf("%+d\n", to.Unix()-time.Now().Unix())
	if err := os.WriteFile(m.hand+".new", []byte(offset), 0o644); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Rename(m.hand+".new", m.hand); err != nil {
		m.t.Fatal(err)
	}
}

// clockwork is the environment of programs on a machine with a clock of its own.
func (m *machine) clockwork() []string {
	m.t.Helper()
	found, err := filepath.Glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
	if err != nil || len(found) == 0 {
		m.t.Fatalf("libfaketime is missing: run scripts/setup.sh (%v)", err)
	}
	return append(os.Environ(), "LD_PRELOAD="+found[0], "FAKETIME_TIMESTAMP_FILE="+m.hand, "FAKETIME_NO_CACHE=1",
		"FAKETIME_DONT_FAKE_MONOTONIC=1", "NO_FAKE_STAT=1")
}

func date(year int, month time.Month, day int) time.Time {
	return time.Date(year, month, day, 0, 0, 0, 0, time.UTC)
}

// clockStatus is what status says about the time.
type clockStatus struct {
	Clock struct {
		Trusted bool          `json:"trusted"`
		Now     time.Time     `json:"now"`
		Floor   time.Time     `json:"floor"`
		Off     time.Duration `json:"off_seconds"`
		Text    string        `json:"text"`
	} `json:"clock"`
}

func (m *terminal) clock() (s clockStatus) {
	m.t.Helper()
	m.query(&s, "kagimori", "status")
	return s
}

// The helper itself: a program and its verbs see the clock of their machine.
func TestClockOfAMachine(t *testing.T) {
	m := newMachine(t, "nav-001")
	m.setClock(date(1970, 1, 2))
	d := m.start("kagimori", m.config("kagimori", "", ""))
	m.until("a line of the log", func() bool { return strings.Contains(d.log.String(), "msg=ready") })
	if log := d.log.String(); !strings.Contains(log, "time=1970-01-02T00:00:") {
		t.Errorf("log in 1970: %s", log)
	}
}

// A terminal without a battery wakes in 1970 at every start. It enrolls, is told
// the time, gets and uses a credential; and without a server in reach it still
// uses it, because it remembers a time that is certainly over.
//
// req: C5
func TestTerminalWakesIn1970(t *testing.T) {
	d := newDeployment(t, nil)
	box := newMachine(t, "nav-001")
	box.setClock(date(1970, 1, 1))
	m := d.terminalOn(box, sealedFile)
	if s := m.clock(); s.Clock.Trusted || s.Clock.Now.Before(date(2026, 1, 1)) {
		t.Errorf("before anybody told the time: %+v", s)
	}
	m.named()
	told := time.Now()
	if s := m.clock(); !s.Clock.Trusted || s.Clock.Now.Before(told.Add(-time.Minute)) || s.Clock.Off > -56*365*86400 || !strings.Contains(s.Clock.Text, "left alone") {
		t.Errorf("told by the server: %+v", s)
	}
	id := m.issue()
	if got := m.curl("/a"); !strings.HasPrefix(got, "map tile /a for nav-001 (credential "+id+")") {
		t.Fatalf("in 1970: %s", got)
	}
	d.serverRun.stop()
	m.daemon.kill()
	m.setClock(date(1970, 1, 1))
	m.daemon = m.start("kagimori", m.config)
	m.until("the key works in 1970 without a server", func() bool { return strings.Contains(m.curl("/b"), id) })
	if s := m.clock(); s.Clock.Trusted || s.Clock.Now.Before(told.Add(-time.Minute)) {
		t.Errorf("after a restart without a server: %+v, want the floor that it remembers", s)
	}
}

// A clock in 2100 expires nothing, whether it jumps there while the agent runs or
// is there when it starts, and with a server in reach or without.
//
// req: C5
func TestTerminalIn2100(t *testing.T) {
	d := newDeployment(t, nil)
	box := newMachine(t, "nav-001")
	box.setClock(time.Now())
	m := d.terminalOn(box, sealedFile)
	m.named()
	id := m.issue()
	works := func(when string) {
		t.Helper()
		m.until("the key works "+when, func() bool { return strings.Contains(m.curl("/"), "for nav-001 (credential "+id+")") })
		if s := m.clock(); s.Clock.Now.After(date(2099, 1, 1)) && s.Clock.Trusted || s.Clock.Floor.After(date(2099, 1, 1)) {
			t.Errorf("%s the terminal believes it is %s", when, s.Clock.Now)
		}
	}
	m.setClock(date(2100, 1, 1))
	works("after the clock has jumped")
	if s := m.clock(); s.Clock.Off < 72*365*86400 || !strings.Contains(s.Clock.Text, "left alone") {
		t.Errorf("%+v", s)
	}
	m.daemon.kill()
	m.daemon = m.start("kagimori", m.config)
	m.connected()
	works("after a start in 2100")
	d.serverRun.stop()
	m.daemon.kill()
	m.daemon = m.start("kagimori", m.config)
	works("after a start in 2100 without a server")
	d.serve()
	m.setClock(time.Now())
	m.connected()
	works("after the clock is right again")
	if s := m.clock(); s.Clock.Off.Abs() > 120 {
		t.Errorf("%+v", s)
	}
}

// Two years on a shelf with an empty battery: the terminal's own certificate and
// its credential have expired, and the server has another certificate. The
// terminal gets
// itself a new identity and uses the credential once it is issued anew. Nothing
// was deleted.
//
// req: L7
func TestTerminalFromTheShelf(t *testing.T) {
	d := newDeployment(t, nil)
	box := newMachine(t, "nav-001")
	box.setClock(time.Now())
	m := d.terminalOn(box, sealedFile)
	m.named()
	id := m.issue()
	m.daemon.stop()
	d.gateRun.stop()
	d.serverRun.stop()

	later := time.Now().AddDate(2, 0, 0)
	d.server.setClock(later)
	d.serve()
	d.gate.setClock(later)
	d.gateRun = d.gate.start("kagimori-gate", d.gateConfig)
	d.gate.until("the gate says what it lacks", func() bool {
		s := d.gateStatus()
		return !s.Open && len(s.Problems) == 1 && strings.Contains(s.Problems[0].Text, "has expired") && strings.Contains(s.Problems[0].Next, "credential issue gate-maps --service maps")
	})
	d.server.verb("", "kagimori-server", "credential", "issue", "gate-maps", "--service", "maps", "--wait")
	d.gateServes()

	m.setClock(date(1970, 1, 1))
	m.daemon = m.start("kagimori", m.config)
	m.connected()
	var s struct {
		Credentials struct {
			Total, Usable int
			Next          string
			Expired       []struct{ ID string }
		}
	}
	m.query(&s, "kagimori", "status")
	if c := s.Credentials; c.Total != 1 || c.Usable != 0 || len(c.Expired) != 1 || c.Expired[0].ID != id || !strings.Contains(c.Next, "credential issue nav-001 --service maps") {
		t.Errorf("after two years: %+v", c)
	}
	if got := m.curl("/"); !strings.Contains(got, id+" is expired since") || !strings.Contains(got, "kagimori-server credential issue") {
		t.Errorf("the relay says: %s", got)
	}
	if again := m.issue(); again != id {
		t.Errorf("issued %s anew as %s", id, again)
	}
	if got := m.curl("/"); !strings.Contains(got, "for nav-001 (credential "+id+")") {
		t.Errorf("issued anew: %s", got)
	}
}

// A server whose clock is far off signs nothing: it says so and does not start.
// Terminals and gate go on with what they have. Its clock set right, all is as it
// was.
//
// req: C5
func TestServerWithAWrongClock(t *testing.T) {
	d := newDeployment(t, nil)
	m := d.terminal("nav-001", sealedFile)
	m.named()
	id := m.issue()
	d.serverRun.stop()
	for _, at := range []struct {
		when  time.Time
		words []string
	}{
		{date(1970, 1, 1), []string{"the clock of this machine says 1970-01-01", "set the clock"}},
		{date(2100, 1, 1), []string{"the clock of this machine says 2100-01-01", "check the clock"}},
	} {
		d.server.setClock(at.when)
		r := d.server.run("", "kagimori-server", "run", "--config", d.serverConfig)
		for _, words := range at.words {
			if r.code == 0 || !strings.Contains(r.err, words) {
				t.Errorf("server in %d: exit %d, want %q\n%s", at.when.Year(), r.code, words, r.err)
			}
		}
	}
	m.daemon.kill()
	m.daemon = m.start("kagimori", m.config)
	m.until("the key works without the server", func() bool { return strings.Contains(m.curl("/"), id) })
	d.server.setClock(time.Now())
	d.serve()
	m.connected()
	if i := d.inventory(id); i.State != "active" {
		t.Errorf("after the server's clock was set right: %+v", i)
	}
}
