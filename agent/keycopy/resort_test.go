package keycopy

// A person ends what the other end does not; and then the other end comes back.

import (
	"errors"
	"slices"
	"testing"

	"github.com/kagimori/kagimori/transport"
)

// force takes the transaction of one end through a last resort.
func force(t testing.TB, l *ledger, deal *Transaction, resort func(*Transaction) (*Transaction, error)) {
	t.Helper()
	after, err := resort(deal)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Advance(t.Context(), after, deal.Phase); err != nil {
		t.Fatal(err)
	}
}

// Each last resort is for the phases that it is meant for, and says so.
func TestLastResortsAreForTheirPhases(t *testing.T) {
	all := []transport.KeycopyPhase{transport.KeycopyOffered, transport.KeycopyCommitted, transport.KeycopyDone, transport.KeycopyReclaimed, transport.KeycopyAbandoned,
		transport.KeycopyStarted, transport.KeycopyStaged, transport.KeycopyActive, transport.KeycopyClosed, transport.KeycopyUnreceipted, transport.KeycopyDropped}
	type next map[transport.KeycopyPhase]transport.KeycopyPhase
	for name, tt := range map[string]struct {
		resort func(*Transaction) (*Transaction, error)
		from   next
		forced bool
	}{
		"reclaim":  {Reclaim, next{transport.KeycopyCommitted: transport.KeycopyReclaimed}, true},
		"activate": {Activate, next{transport.KeycopyStaged: transport.KeycopyActive}, true},
		"abandon": {Abandon, next{transport.KeycopyOffered: transport.KeycopyAbandoned, transport.KeycopyStarted: transport.KeycopyDropped,
			transport.KeycopyStaged: transport.KeycopyUnreceipted, transport.KeycopyActive: transport.KeycopyUnreceipted}, false},
		"forget": {Forget, next{transport.KeycopyDone: transport.KeycopyDone, transport.KeycopyReclaimed: transport.KeycopyReclaimed, transport.KeycopyAbandoned: transport.KeycopyAbandoned,
			transport.KeycopyClosed: transport.KeycopyClosed, transport.KeycopyUnreceipted: transport.KeycopyUnreceipted, transport.KeycopyDropped: transport.KeycopyDropped}, false},
	} {
		for _, phase := range all {
			deal := &Transaction{Phase: phase, Status: []byte{0b11}, Resume: make(transport.Sensitive, keySize)}
			deal.Items = []transport.KeycopyEntry{{ID: "a", Transfer: transport.TransferMove}, {ID: "b", Transfer: transport.TransferCopy}}
			after, err := tt.resort(deal)
			want, fits := tt.from[phase]
			if !fits {
				if !errors.Is(err, ErrOtherPhase) {
					t.Errorf("%s of what is %s: %v", name, phase, err)
				}
				continue
			}
			if err != nil || after.Phase != want || after.Forced != tt.forced || deal.Phase != phase || len(deal.Taken()) != 2 {
				t.Errorf("%s of what is %s: %+v, %v", name, phase, after, err)
			}
			if name == "forget" && len(after.Resume) != 0 {
				t.Errorf("%s of what is %s keeps the resume key", name, phase)
			}
		}
	}
	if _, err := Activate(&Transaction{Phase: transport.KeycopyStaged}); !errors.Is(err, ErrOtherPhase) {
		t.Error("a copy was activated")
	}
}

// A staged Target learns from a Source that took its keys back, and drops them.
func TestReclaimedBeforeTheTargetUsesIt(t *testing.T) {
	for _, mixed := range []bool{false, true} {
		r := newRig(t, 2)
		r.moving(mixed)
		sc, tc := newChannels()
		r.pump(t.Context(), sc, tc, cut(7, asSent)) // COMMIT is lost
		force(t, r.sourceLedger, r.offered(), Reclaim)
		r.judgeKeys(t, "reclaim")
		if sourceErr, targetErr := r.resumeOnce(t, NewResponder(r.sourceConfig), r.neverTwo(t)); sourceErr != nil || targetErr != nil {
			t.Fatal(sourceErr, targetErr)
		}
		want, left := transport.KeycopyDropped, 0
		if mixed {
			want, left = transport.KeycopyUnreceipted, 1
		}
		if s, g := r.offered(), r.txn(t); s.Conflict || g.Conflict || !s.Forced || g.Phase != want || len(r.targetLedger.received) != left || len(g.Taken()) != left {
			t.Errorf("%+v and %+v", s, g)
		}
		if !r.sourceLedger.uses("cr-0000") || slices.Contains(r.kinds(), EventConflict) {
			t.Error("not given back, or a conflict")
		}
	}
}

// The Target uses what the Source has taken back: nothing is destroyed, both
// know, and nothing is tried again.
func TestReclaimedWhileTheTargetUsesIt(t *testing.T) {
	r := interrupted(t, transport.KeycopyActive)
	force(t, r.sourceLedger, r.offered(), Reclaim)
	sourceErr, targetErr := r.resumeOnce(t, NewResponder(r.sourceConfig), asSent)
	if sourceErr != nil || targetErr != nil {
		t.Fatal(sourceErr, targetErr)
	}
	s, g := r.offered(), r.txn(t)
	if !s.Conflict || !g.Conflict || s.Phase != transport.KeycopyReclaimed || g.Phase != transport.KeycopyUnreceipted || len(g.Taken()) != 2 {
		t.Errorf("%+v and %+v", s, g)
	}
	if !r.sourceLedger.uses("cr-0000") || !r.targetLedger.uses("cr-0000") {
		t.Error("a key was destroyed")
	}
	if n := len(slices.DeleteFunc(r.kinds(), func(k EventKind) bool { return k != EventConflict })); n != 2 {
		t.Errorf("%d told of the conflict: %v", n, r.kinds())
	}
	// Between RESUMED and ACTIVATED.
	r = interrupted(t, transport.KeycopyActive)
	sourceErr, targetErr = r.resumeOnce(t, r.source, func(h hop) transport.KeycopyFrame {
		if h.frame.Type == transport.KeycopyTypeActivated {
			force(t, r.sourceLedger, r.offered(), Reclaim)
		}
		return h.frame
	})
	wantFault(t, "source", sourceErr, transport.KeycopyTxnConflict, false)
	wantFault(t, "target", targetErr, transport.KeycopyTxnConflict, true)
	if s, g := r.offered(), r.txn(t); !s.Conflict || g.Phase != transport.KeycopyActive || !r.sourceLedger.uses("cr-0000") {
		t.Errorf("%+v and %+v", s, g)
	}
}

// The Target was activated while its Source lived: the Source gives the keys up
// when the two meet, whether it had the receipt or not.
func TestActivatedMeetsItsSource(t *testing.T) {
	for name, at := range map[string]int{"without receipt": 7, "with receipt": 8} {
		for second := range 6 { // and the link is lost on the way
			r := newRig(t, 3)
			r.moving(true)
			sc, tc := newChannels()
			r.pump(t.Context(), sc, tc, cut(at, asSent))
			force(t, r.targetLedger, r.txn(t), Activate)
			r.resumeOnce(t, NewResponder(r.sourceConfig), cut(second, asSent))
			if r.offered().Phase != transport.KeycopyOffered {
				r.judgeKeys(t, name)
			}
			if r.txn(t).Phase.Open() {
				if sourceErr, targetErr := r.resumeOnce(t, NewResponder(r.sourceConfig), asSent); sourceErr != nil || targetErr != nil {
					t.Fatal(sourceErr, targetErr)
				}
			}
			r.wantFinished(t)
			if !r.txn(t).Forced || slices.Contains(r.kinds(), EventConflict) {
				t.Errorf("%s, cut at %d: %v", name, second, r.kinds())
			}
		}
	}
}

// The Source has abandoned what was then activated: both use it.
func TestActivatedMeetsASourceThatGaveUp(t *testing.T) {
	r := interrupted(t, transport.KeycopyStaged)
	force(t, r.sourceLedger, r.offered(), Abandon)
	force(t, r.targetLedger, r.txn(t), Activate)
	if sourceErr, targetErr := r.resumeOnce(t, NewResponder(r.sourceConfig), asSent); sourceErr != nil || targetErr != nil {
		t.Fatal(sourceErr, targetErr)
	}
	if s, g := r.offered(), r.txn(t); !s.Conflict || !g.Conflict || g.Phase != transport.KeycopyUnreceipted || len(g.Resume) != 0 {
		t.Errorf("%+v and %+v", s, g)
	}
}
