package agent

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/kagimori/kagimori/transport"
)

func TestRenewalIsDue(t *testing.T) {
	ca := newAuthority(t)
	ca.from, ca.to = date(2026), date(2027)
	life := ca.to.Sub(ca.from)
	chain := ca.client(transport.URI{Deployment: testDeployment, Terminal: "nav-001"}, newTestKey(t).Public())
	now := time.Now()
	proof := []*x509.Certificate{{NotBefore: date(2020), NotAfter: date(2040)}}
	for _, c := range []struct {
		name    string
		used    float64 // part of its life that is over
		spread  float64
		tried   time.Duration // ago; 0: never
		refused bool
		trusted bool
		due     bool
	}{
		{name: "fresh", used: 0.1, trusted: true},
		{name: "before two thirds", used: 0.66, trusted: true},
		{name: "after two thirds", used: 0.68, trusted: true, due: true},
		{name: "after two thirds, spread out", used: 0.68, spread: 0.99, trusted: true},
		{name: "later, spread out", used: 0.74, spread: 0.99, trusted: true, due: true},
		{name: "expired", used: 2, trusted: true, due: true},
		{name: "expired, tried just now", used: 2, tried: time.Minute, trusted: true},
		{name: "expired, tried an hour ago", used: 2, tried: renewHold, trusted: true, due: true},
		{name: "revoked", used: 0.1, refused: true, trusted: true},
		{name: "refused after years in a drawer", used: 0.1, refused: true, due: true},
	} {
		w := &wall{date(1970)}
		clock := NewClock(w.read, ca.from)
		if c.trusted {
			if err := clock.Sync(ca.from.Add(time.Duration(c.used*float64(life))), proof); err != nil {
				t.Fatal(err)
			}
		}
		r := renewal{spread: c.spread, refused: c.refused}
		if c.tried > 0 {
			r.tried = now.Add(-c.tried)
		}
		if got := r.due(chain, clock, now); got != c.due {
			t.Errorf("%s: due %v", c.name, got)
		}
	}
}

// An identity is renewed in mid-session, while the old one still serves, and
// the new one is used.
func TestIdentityIsRenewed(t *testing.T) {
	s := newServer(t)
	p := newPeer(t, s, s.ca.management())
	to := s.ca.to
	s.ca.from, s.ca.to = time.Now().Add(-60*time.Hour).Truncate(time.Second), time.Now().Add(40*time.Hour).Truncate(time.Second)
	var polled time.Time // guarded by s.mu
	s.fault = func(e *transport.Envelope) *transport.Fault {
		if e.Type == (*transport.CommandPoll)(nil).Type() {
			polled = time.Now()
		}
		return nil
	}
	a := running(t, Config{})
	mustProvision(t, a, s.expect(p.address))
	// Nothing is under way any more that carries the time before the jump.
	eventually(t, "connected, and the poll is answered", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		a.clock.mu.Lock()
		defer a.clock.mu.Unlock()
		return !polled.IsZero() && a.clock.heard.wall.After(polled)
	})
	first := a.Status().Identity.Serial
	s.mu.Lock()
	s.ca.to = to
	s.identity = nil // as a server does below a third of its life
	later := func() time.Time { return time.Now().Add(15 * time.Hour) }
	s.now = later
	s.mu.Unlock()

	a.clock.mu.Lock() // fifteen hours pass
	a.clock.wall = later
	a.clock.mu.Unlock()
	eventually(t, "renewed", func() bool { return a.Status().Identity.Serial != first && state(a) == LinkConnected })
	if n, enrollments := p.count(); n != 2 || enrollments != 2 {
		t.Errorf("%d connections and %d enrollments, want 2 and 2", n, enrollments)
	}
}
