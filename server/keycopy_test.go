package server

import (
	"slices"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// In whatever order the server hears of a move, the inventory ends the same, and
// never shows a credential as held by nobody.
//
// req: C8, L1
func TestMovesEndTheSameInEveryOrder(t *testing.T) {
	steps := map[string]func(*moving){
		"committed": func(m *moving) { m.source(transport.KeycopyCommitted) },
		"done":      func(m *moving) { m.source(transport.KeycopyDone) },
		"staged":    func(m *moving) { m.target(transport.KeycopyStaged) },
		"closed":    func(m *moving) { m.target(transport.KeycopyClosed) },
		"claim":     func(m *moving) { m.claim() },
	}
	for _, order := range []string{
		"committed staged done closed claim",
		"done closed claim",
		"claim closed done",
		"closed claim committed done",
		"claim committed closed done",
		"done claim closed done committed staged closed", // repeated, and older ones late
		"closed done claim claim",
		"committed claim closed done",
	} {
		t.Run(order, func(t *testing.T) {
			m := newRig(t).moving(transport.TransferMove)
			for _, step := range strings.Fields(order) {
				steps[step](m)
				if got := m.holders(); got == "" || strings.Contains(got, "transit") && strings.Contains(got, "nav-002") {
					t.Fatalf("after %s: held by %q", step, got)
				}
			}
			m.expect("at the end", "nav-002:active ", store.KeycopyConsistent)
			i := m.r.show(m.h.id)
			first, second := holderOf(t, i, "nav-001"), holderOf(t, i, "nav-002")
			if first.State != store.HoldingEnded || *first.Taken != m.txn || first.Until.Unix() < m.at.Unix() || first.Until.Unix() > m.at.Unix()+20 || first.Origin != store.OriginIssue {
				t.Errorf("%+v", first)
			}
			if second.Origin != store.OriginMove || *second.Txn != m.txn || *second.Source != m.old.id() || second.Since.Unix() != m.at.Unix()+1 || !second.Until.IsZero() {
				t.Errorf("%+v", second)
			}
			if i.Operation != "move" || i.Conflict != "" || i.Transfer != transport.TransferMove {
				t.Errorf("%+v", i)
			}
			k := m.row()
			if k.Source.Phase != transport.KeycopyDone || k.Target.Phase != transport.KeycopyClosed || k.Source.Terminal != "nav-001" || k.Target.Terminal != "nav-002" ||
				k.Source.At.Unix() != m.at.Unix() || k.Source.Changed.Unix() != m.at.Unix()+int64(transport.KeycopyDone) || k.Source.Mode != transport.KeycopyPAKE {
				t.Errorf("%+v", k)
			}
		})
	}
}

// While only one end has been heard of, the inventory says so.
//
// req: L1
func TestOneEndAlone(t *testing.T) {
	m := newRig(t).moving(transport.TransferMove)
	m.source(transport.KeycopyOffered)
	m.expect("offered", "nav-001:active ", store.KeycopyOpen)
	m.source(transport.KeycopyDone)
	m.expect("the source has given it up", "nav-001:transit ", store.KeycopyOpen)
	if h := holderOf(t, m.r.show(m.h.id), "nav-001"); h.To != "nav-002" || h.Note == "" || h.Active || !h.Until.IsZero() {
		t.Errorf("%+v", h)
	}
	var page CredentialPage
	m.r.call("CredentialList", ListParams{Filter: map[string]string{"state": "in force"}}, &page)
	if !slices.ContainsFunc(page.Credentials, func(c CredentialInfo) bool { return c.ID == m.h.id }) {
		t.Errorf("in transit, and not in force: %+v", page)
	}
}

func TestTheOtherEndAlone(t *testing.T) {
	other := newRig(t)
	o := other.moving(transport.TransferMove)
	o.claim()
	o.target(transport.KeycopyActive)
	o.expect("the target alone", "nav-001:active nav-002:active ", store.KeycopyOpen)
	if h := holderOf(t, other.show(o.h.id), "nav-001"); !strings.Contains(h.Note, "nav-001 has not said so yet") {
		t.Errorf("%+v", h)
	}
}

// A copy ends nobody's holding.
//
// req: C9
func TestCopiesLeaveBothHolding(t *testing.T) {
	m := newRig(t).moving(transport.TransferCopy)
	m.target(transport.KeycopyStaged)
	m.claim()
	m.source(transport.KeycopyDone)
	m.expect("copied", "nav-001:active nav-002:active ", store.KeycopyConsistent)
	m.target(transport.KeycopyClosed)
	m.expect("closed", "nav-001:active nav-002:active ", store.KeycopyConsistent)
	i := m.r.show(m.h.id)
	if h := holderOf(t, i, "nav-002"); h.Origin != store.OriginCopy || *h.Txn != m.txn || i.Conflict != "" || holderOf(t, i, "nav-001").Note != "" {
		t.Errorf("%+v", i)
	}
}

// What the Source takes back it holds as before, unless the Target has it too:
// then both are shown, and what to do.
func TestReclaims(t *testing.T) {
	m := newRig(t).moving(transport.TransferMove)
	m.source(transport.KeycopyCommitted)
	m.expect("committed", "nav-001:transit ", store.KeycopyOpen)
	m.source(transport.KeycopyReclaimed)
	m.expect("reclaimed", "nav-001:active ", store.KeycopyOpen)
	m.target(transport.KeycopyDropped)
	m.expect("dropped", "nav-001:active ", store.KeycopyConsistent)
	if h := holderOf(t, m.r.show(m.h.id), "nav-001"); h.Taken != nil || h.Origin != store.OriginIssue {
		t.Errorf("%+v", h)
	}

}

func TestReclaimedAndActive(t *testing.T) {
	both := newRig(t).moving(transport.TransferMove)
	both.source(transport.KeycopyCommitted)
	both.claim()
	both.expect("claimed", "nav-002:active ", store.KeycopyOpen)
	both.source(transport.KeycopyReclaimed)
	both.target(transport.KeycopyActive)
	both.expect("both", "nav-001:active nav-002:active ", store.KeycopyContradiction, problemBoth)
	i := both.r.show(both.h.id)
	if i.Conflict == "" || i.Next == "" || holderOf(t, i, "nav-001").Note == "" || holderOf(t, i, "nav-002").Note == "" {
		t.Errorf("%+v", i)
	}
	if !slices.Contains(both.r.audited(both.txn.String()), "keycopy.contradiction") {
		t.Error("the contradiction is not in the audit log")
	}
}

// A key that went on to a third terminal, before the second one ever met the
// server, and one that came back.
func TestMovesInARow(t *testing.T) {
	r := newRig(t)
	m := r.moving(transport.TransferMove)
	z, _ := r.terminal("nav-003")
	second := *m
	second.txn, second.old, second.new = transport.ID{2}, m.new, z
	m.source(transport.KeycopyDone)
	want[transport.CredentialClaimed](t, m.claims("nav-003", z, m.new.id(), &second.txn, transport.TransferMove))
	if got := m.holders(); got != "nav-001:transit nav-003:active " {
		t.Errorf("nobody has said that it came from nav-002: %q", got)
	}
	k := r.as("nav-003", z)
	want[transport.KeycopyReported](t, k.say(second.report(transport.KeycopyTarget, transport.KeycopyClosed)))
	m.target(transport.KeycopyClosed)
	if got := m.holders(); got != "nav-003:active " {
		t.Errorf("after the chain is known: %q", got)
	}

}

func TestMovesBack(t *testing.T) {
	back := newRig(t).moving(transport.TransferMove)
	there := *back
	there.txn, there.old, there.new, there.at = transport.ID{3}, back.new, back.old, back.at.Add(30*60*1e9)
	// nav-001 has it again, and says both only now.
	want[transport.CredentialClaimed](t, there.claims("nav-001", back.old, back.new.id(), &there.txn, transport.TransferMove))
	back.source(transport.KeycopyDone)
	if got := back.holders(); got != "nav-001:active " {
		t.Errorf("an old report ends what came later: %q", got)
	}
	if i := back.r.show(back.h.id); i.Conflict != "" {
		t.Errorf("%+v", i)
	}
}

// There and back again, and the second terminal has not reported the way back:
// nobody has the key twice.
func TestMovesThereAndBack(t *testing.T) {
	m := newRig(t).moving(transport.TransferMove)
	m.source(transport.KeycopyDone)
	m.claim()
	m.target(transport.KeycopyClosed)
	back := *m
	back.txn, back.old, back.new, back.at = transport.ID{4}, m.new, m.old, m.at.Add(30*60*1e9)
	want[transport.CredentialClaimed](t, back.claims("nav-001", m.old, m.new.id(), &back.txn, transport.TransferMove))
	i := m.r.show(m.h.id)
	if i.Conflict != "" || !strings.Contains(holderOf(t, i, "nav-002").Note, "nav-002 has not said so yet") || holderOf(t, i, "nav-001").Origin != store.OriginMove {
		t.Errorf("%+v", i)
	}
	want[transport.KeycopyReported](t, m.r.as("nav-002", m.new).say(back.report(transport.KeycopySource, transport.KeycopyDone)))
	if got := m.holders(); got != "nav-001:active " {
		t.Errorf("%q", got)
	}
	if i := m.r.show(m.h.id); len(i.Holders) != 3 || i.Conflict != "" {
		t.Errorf("%+v", i)
	}
}
