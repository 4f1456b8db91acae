package server

import (
	"slices"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// Whoever asks first may act alone; the other end may not, whenever and however
// often it asks, also after the server was started again.
func TestTheFirstToAskActsAlone(t *testing.T) {
	for winner, loser := range map[transport.KeycopySide]transport.KeycopySide{
		transport.KeycopySource: transport.KeycopyTarget, transport.KeycopyTarget: transport.KeycopySource,
	} {
		t.Run(string(winner), func(t *testing.T) {
			m := newRig(t).moving(transport.TransferMove)
			m.source(transport.KeycopyCommitted)
			m.target(transport.KeycopyStaged)
			if a := m.settle(winner); !a.Allowed || a.Why != "" || a.Txn != m.txn {
				t.Fatalf("%+v", a)
			}
			first := m.settle(loser)
			if first.Allowed || !strings.Contains(first.Why, nameOf(*new(m.row()).End(winner))) {
				t.Errorf("%+v", first)
			}
			m.r.again(func(*Config) {})
			if a := m.settle(winner); !a.Allowed {
				t.Errorf("the first one later: %+v", a)
			}
			if a := m.settle(loser); a.Allowed || a.Why != first.Why {
				t.Errorf("the other one later: %+v, before %+v", a, first)
			}
			actions := m.r.audited(m.txn.String())
			count := func(action string) (n int) {
				for _, a := range actions {
					if a == action {
						n++
					}
				}
				return n
			}
			if count("keycopy.settle") != 1 || count("keycopy.refuse") != 1 {
				t.Errorf("%v", actions)
			}
			if k := m.row(); k.Settled != winner || k.SettledAt.IsZero() || k.Refused.IsZero() {
				t.Errorf("%+v", k)
			}
		})
	}
}

// Both ask at once: one is allowed.
func TestAskingAtOnceAllowsOne(t *testing.T) {
	m := newRig(t).moving(transport.TransferMove)
	answers := make(chan bool, 8)
	for i := range 8 {
		side := []transport.KeycopySide{transport.KeycopySource, transport.KeycopyTarget}[i%2]
		go func() { answers <- m.settle(side).Allowed }()
	}
	allowed := 0
	for range 8 {
		if <-answers {
			allowed++
		}
	}
	if allowed != 4 { // the same end four times
		t.Errorf("%d of 8 allowed", allowed)
	}
}

// What is reported or proven counts before anybody asks.
func TestReportsDecideBeforeAnybodyAsks(t *testing.T) {
	cases := map[string]struct {
		before func(*moving)
		side   transport.KeycopySide
		why    string
	}{
		"reclaim, but the target uses them":     {func(m *moving) { m.target(transport.KeycopyActive) }, transport.KeycopySource, "nav-002 uses the keys"},
		"reclaim, but the target is done":       {func(m *moving) { m.target(transport.KeycopyClosed) }, transport.KeycopySource, "nav-002 uses the keys"},
		"reclaim, but the target has proven it": {func(m *moving) { m.claim() }, transport.KeycopySource, "as it has proven"},
		"reclaim what is destroyed":             {func(m *moving) { m.source(transport.KeycopyDone) }, transport.KeycopySource, "destroyed"},
		"activate, but the source took it back": {func(m *moving) { m.source(transport.KeycopyReclaimed) }, transport.KeycopyTarget, "nav-001 has the keys"},
		"activate, but the source gave it up":   {func(m *moving) { m.source(transport.KeycopyAbandoned) }, transport.KeycopyTarget, "nav-001 has the keys"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			m := newRig(t).moving(transport.TransferMove)
			c.before(m)
			for range 2 {
				if a := m.settle(c.side); a.Allowed || !strings.Contains(a.Why, c.why) {
					t.Errorf("%+v, want %q", a, c.why)
				}
			}
			if k := m.row(); k.Settled != "" {
				t.Errorf("%+v", k)
			}
		})
	}
}

// The loser turns up and uses the keys all the same: the inventory says so.
func TestALoserThatUsesTheKeysIsShown(t *testing.T) {
	m := newRig(t).moving(transport.TransferMove)
	m.source(transport.KeycopyCommitted)
	m.settle(transport.KeycopySource)
	m.source(transport.KeycopyReclaimed)
	m.target(transport.KeycopyStaged)
	m.expect("settled", "nav-001:active ", store.KeycopyOpen)
	m.target(transport.KeycopyActive)
	m.claim()
	m.expect("the loser is alive", "nav-001:active nav-002:active ", store.KeycopyContradiction, problemBoth)
	var page KeycopyPage
	m.r.call("KeycopyList", ListParams{Filter: map[string]string{"status": "contradiction", "terminal": "nav-002"}}, &page)
	if len(page.Keycopies) != 1 || page.Keycopies[0].Txn != m.txn || page.Keycopies[0].Problems[0].Next == "" {
		t.Errorf("%+v", page)
	}
	if i := m.r.show(m.h.id); !strings.Contains(i.Conflict, "both have it") {
		t.Errorf("%+v", i)
	}

}

// Leave to act alone is not a report: a target that was let to, and whose source
// then says that it has the keys, is a contradiction before it says more.
func TestALoserThatOnlyReports(t *testing.T) {
	m := newRig(t).moving(transport.TransferMove)
	m.settle(transport.KeycopyTarget)
	m.target(transport.KeycopyStaged)
	m.source(transport.KeycopyReclaimed)
	m.expect("reclaimed all the same", "nav-001:active ", store.KeycopyContradiction, problemSettle)
}

func TestSettleIsForTheEnds(t *testing.T) {
	r := newRig(t)
	m := r.moving(transport.TransferMove)
	z, _ := r.terminal("nav-003")
	ask := func(terminal transport.Name, b *box, side transport.KeycopySide, peer transport.DeviceID, want transport.KeycopyPhase) *transport.Envelope {
		return r.as(terminal, b).say(&transport.KeycopySettle{Txn: m.txn, Side: side, Peer: peer, Want: want})
	}
	fault(t, "a source that activates", ask("nav-001", m.old, "source", m.new.id(), transport.KeycopyActive), transport.FaultMalformed)
	fault(t, "a target that reclaims", ask("nav-002", m.new, "target", m.old.id(), transport.KeycopyReclaimed), transport.FaultMalformed)
	fault(t, "no side", ask("nav-001", m.old, "both", m.new.id(), transport.KeycopyReclaimed), transport.FaultMalformed)
	fault(t, "with itself", ask("nav-001", m.old, "source", m.old.id(), transport.KeycopyReclaimed), transport.FaultMalformed)
	// A third one is an end of a row of its own, which shows.
	if a := want[transport.KeycopySettled](t, ask("nav-003", z, "target", m.old.id(), transport.KeycopyActive)); !a.Allowed {
		t.Errorf("%+v", a)
	}
	m.source(transport.KeycopyCommitted)
	if k := m.row(); !slices.Contains(k.Problems, problemEnds) || k.Settled != "" {
		t.Errorf("%+v", k)
	}
	r.call("TerminalRemove", NameParams{Name: "nav-002"}, nil)
	fault(t, "removed", ask("nav-002", m.new, "target", m.old.id(), transport.KeycopyActive), transport.FaultRefused)
}

// Who learns the id of a key copy that is not his gains nothing by speaking of
// it: the two ends are judged by what they say, and only one may act alone.
func TestAnotherTerminalDoesNotSettle(t *testing.T) {
	r := newRig(t)
	m := r.moving(transport.TransferMove)
	z, _ := r.terminal("nav-003")
	outsider := r.as("nav-003", z)
	for _, side := range []transport.KeycopySide{transport.KeycopySource, transport.KeycopyTarget} {
		p := &transport.KeycopySettle{Txn: m.txn, Side: side, Peer: m.new.id(), Want: transport.KeycopyReclaimed}
		if side == transport.KeycopyTarget {
			p.Peer, p.Want = m.old.id(), transport.KeycopyActive
		}
		want[transport.KeycopySettled](t, outsider.say(p))
		for n := range byte(maxSameKeycopy) { // made up, to hide what others say
			p.Peer = transport.DeviceID{'Z', n}
			fault(t, "another peer", outsider.say(p), transport.FaultRefused)
		}
	}
	report := m.report(transport.KeycopyTarget, transport.KeycopyActive)
	want[transport.KeycopyReported](t, outsider.say(report))
	m.source(transport.KeycopyCommitted)
	m.target(transport.KeycopyStaged)
	if a := m.settle(transport.KeycopySource); !a.Allowed {
		t.Errorf("the source: %+v", a)
	}
	if a := m.settle(transport.KeycopyTarget); a.Allowed {
		t.Errorf("the target as well: %+v", a)
	}
	if k := m.row(); !slices.Contains(k.Problems, problemEnds) {
		t.Errorf("nobody sees it: %+v", k)
	}
}
