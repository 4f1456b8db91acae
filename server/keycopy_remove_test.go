package server

import (
	"testing"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// A terminal that is removed while what it gave up is on its way: the credential
// stays in force only if it is sure that another terminal has it.
func TestRemovalWhileInTransit(t *testing.T) {
	cases := map[string]struct {
		before func(*moving)
		kept   bool
	}{
		"its own word alone": {func(m *moving) { m.source(transport.KeycopyDone) }, false},
		"the target has said so": {func(m *moving) {
			m.source(transport.KeycopyDone)
			m.target(transport.KeycopyActive)
		}, true},
		"the target has signed": {func(m *moving) {
			p := m.report(transport.KeycopySource, transport.KeycopyDone)
			p.Signed, p.Signature = m.signed(m.new, []byte{1})
			want[transport.KeycopyReported](m.r.t, m.who(transport.KeycopySource).say(p))
		}, true},
		"the target is nobody": {func(m *moving) {
			m.new = newBox(m.r.t)
			m.source(transport.KeycopyDone)
		}, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			m := newRig(t).moving(transport.TransferMove)
			c.before(m)
			var out TerminalRemoved
			m.r.call("TerminalRemove", NameParams{Name: "nav-001"}, &out)
			i := m.r.show(m.h.id)
			if !c.kept {
				if len(out.Revoked) != 1 || len(out.Kept) != 0 || i.State != store.CredentialRevoked || m.holders() != "" {
					t.Errorf("%+v, %+v", out, i)
				}
				return
			}
			if len(out.Revoked) != 0 || len(out.Kept) != 1 || out.Kept[0].Holders[0] != "nav-002" || out.Kept[0].Next == "" || !i.InForce {
				t.Errorf("%+v, %+v", out, i)
			}
			m.claim()
			if got := m.holders(); got != "nav-002:active " {
				t.Errorf("%q", got)
			}
		})
	}
}

// Nothing waits for a terminal that is gone.
func TestNobodyWaitsForWhoIsRemoved(t *testing.T) {
	m := newRig(t).moving(transport.TransferMove)
	m.target(transport.KeycopyActive)
	m.claim()
	if k := m.row(); k.Status != store.KeycopyOpen {
		t.Errorf("%+v", k)
	}
	m.r.call("TerminalRemove", NameParams{Name: "nav-001"}, nil)
	m.expect("the source is gone", "nav-002:active ", store.KeycopyConsistent)
	m.target(transport.KeycopyClosed)
	m.expect("and the target goes on", "nav-002:active ", store.KeycopyConsistent)
}

// A Source whose store was set back proves to have what it said it had
// destroyed: both are shown, whatever it says.
func TestStoresThatWereSetBackAreShown(t *testing.T) {
	m := newRig(t).moving(transport.TransferMove)
	m.source(transport.KeycopyDone)
	m.target(transport.KeycopyClosed)
	m.claim()
	m.expect("moved", "nav-002:active ", store.KeycopyConsistent)
	want[transport.CredentialClaimed](t, m.claims("nav-001", m.old, transport.DeviceID{}, nil, ""))
	m.expect("it is back", "nav-002:active nav-001:active ", store.KeycopyContradiction, problemRevived)
	if i := m.r.show(m.h.id); i.Conflict == "" {
		t.Errorf("%+v", i)
	}
}

// Between COMMITTED and DONE the Source has the key, disabled: to claim it then
// says nothing new.
func TestDisabledKeysMayBeClaimed(t *testing.T) {
	m := newRig(t).moving(transport.TransferMove)
	m.source(transport.KeycopyCommitted)
	want[transport.CredentialClaimed](t, m.claims("nav-001", m.old, transport.DeviceID{}, nil, ""))
	m.expect("committed", "nav-001:transit ", store.KeycopyOpen)
}
