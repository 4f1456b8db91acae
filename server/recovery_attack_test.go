package server

import (
	"strings"
	"testing"

	"github.com/kagimori/kagimori/transport"
)

// A device that was this terminal once and is another one now has a store that is
// the other one's: whoever has a copy of it, and this terminal's identity, must
// not get its key, not even by an administrator who sees nothing strange.
func TestRecoveryOfADeviceThatMovedOn(t *testing.T) {
	r := newRig(t)
	x := r.lost("nav-001").exchange()
	b := r.addTerminal("nav-007")
	want[transport.EnrollCertificate](t, r.enrollReply(b, x.old)) // the old box is used elsewhere
	fault(t, "the store of what is nav-007 now", x.says(x.new, x.ask), transport.FaultRefused)
	var page RecoveryPage
	r.call("RecoveryList", ListParams{}, &page)
	if len(page.Recoveries) != 0 {
		t.Errorf("recorded: %+v", page.Recoveries)
	}
}

// What an administrator decides by: whose box asks, when, and from where.
func TestRecoveryShowsWhereItWasAskedFrom(t *testing.T) {
	r := newRig(t)
	x := r.lost("nav-001").exchange()
	k := r.as("nav-001", x.new)
	k.ses.remote = "192.0.2.7"
	want[transport.RecoveryState](t, k.say(&x.ask))
	var d RecoveryDetail
	r.call("RecoveryShow", x.param(), &d)
	if i := d.Recovery; i.Address != "192.0.2.7" || i.Asked.IsZero() || i.Device != x.new.id() || i.Origin != x.old.id() {
		t.Errorf("%+v", i)
	}
	list, err := r.s.Audit(t.Context(), 0, 1000)
	if err != nil || !strings.Contains(list[len(list)-1].Detail, "192.0.2.7") {
		t.Errorf("%v, %+v", err, list[len(list)-1])
	}
}

// A terminal that tells of loss after loss does not fill the audit log.
func TestLossesAreBounded(t *testing.T) {
	r := newRig(t)
	x, _ := r.terminal("nav-001")
	k := r.as("nav-001", x)
	for n := range uint32(100) {
		k.say(&transport.TerminalState{Incarnation: n})
	}
	n := 0
	for _, a := range r.audited("nav-001") {
		if a == "terminal.fallback" {
			n++
		}
	}
	if n > maxLosses {
		t.Errorf("%d lines", n)
	}
	// Its next connection is heard.
	want[transport.TerminalNoted](t, r.as("nav-001", x).say(&transport.TerminalState{Incarnation: 200}))
}
