package keycopy

// Transactions that go on over new connections.

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/kagimori/kagimori/transport"
)

// cut drops the connection at frame n.
func cut(n int, then alter) alter {
	return func(h hop) transport.KeycopyFrame {
		if h.n == n {
			return transport.KeycopyFrame{}
		}
		return then(h)
	}
}

// The link is lost at each frame of the first connection, and at each of the
// second; the third finishes, without an operator.
// req: C5
func TestLinkLostAtEachFrame(t *testing.T) {
	for name, prepare := range map[string]func(*rig){"copy": func(*rig) {}, "move": func(r *rig) { r.moving(false) }, "both": func(r *rig) { r.moving(true) }} {
		for first := 4; first < 11; first++ {
			for second := range 8 {
				t.Run(fmt.Sprint(name, first, second), func(t *testing.T) {
					r := newRig(t, 2)
					prepare(r)
					sc, tc := newChannels()
					r.pump(t.Context(), sc, tc, cut(first, r.neverTwo(t)))
					if r.txn(t).Phase == transport.KeycopyClosed {
						return // it was over before
					}
					for _, change := range []alter{cut(second, r.neverTwo(t)), r.neverTwo(t)} {
						if r.txn(t).Phase.Open() {
							r.resumeOnce(t, r.source, change)
						}
					}
					r.wantFinished(t)
					r.wantWiped(t)
					if o := r.ended(t); o.Reason != EndDelivered {
						t.Errorf("%+v", o)
					}
					if n := len(slices.DeleteFunc(slices.Clone(r.targetLedger.writes), func(w string) bool { return w != "staged" })); n != 1 {
						t.Errorf("stored %d times", n)
					}
				})
			}
		}
	}
}

// Each durable write of either end fails once; when the disk is well again a
// resume finishes. What was not recorded was not said.
func TestEachWriteFails(t *testing.T) {
	for _, tt := range []struct {
		end, write     string
		source, target transport.KeycopyPhase // afterwards
	}{
		{"target", "started", transport.KeycopyOffered, 0},
		{"target", "staged", transport.KeycopyOffered, transport.KeycopyStarted},
		{"source", "committed", transport.KeycopyOffered, transport.KeycopyStaged},
		{"target", "active", transport.KeycopyCommitted, transport.KeycopyStaged},
		{"source", "done", transport.KeycopyCommitted, transport.KeycopyActive},
		{"target", "closed", transport.KeycopyDone, transport.KeycopyActive},
	} {
		t.Run(tt.end+" "+tt.write, func(t *testing.T) {
			r := newRig(t, 3)
			r.moving(true)
			ledger := map[string]*ledger{"source": r.sourceLedger, "target": r.targetLedger}[tt.end]
			ledger.failOn = tt.write
			sc, tc := newChannels()
			sourceErr, targetErr := r.pump(t.Context(), sc, tc, r.neverTwo(t))
			if !errors.Is(targetErr, transport.KeycopyStoreFailed) {
				t.Errorf("source %v, target %v", sourceErr, targetErr)
			}
			if s := r.offered(); s.Phase != tt.source {
				t.Errorf("the Source is %s", s.Phase)
			}
			if tt.target == 0 {
				if len(r.targetLedger.journal) != 0 {
					t.Error("recorded all the same")
				}
				return
			}
			if g := r.txn(t); g.Phase != tt.target {
				t.Errorf("the Target is %s", g.Phase)
			}
			_, targetErr = r.resumeOnce(t, NewResponder(r.sourceConfig), r.neverTwo(t)) // and fails again
			if !errors.Is(targetErr, transport.KeycopyStoreFailed) {
				t.Errorf("resumed on a full disk: %v", targetErr)
			}
			ledger.failOn = ""
			if sourceErr, targetErr := r.resumeOnce(t, NewResponder(r.sourceConfig), r.neverTwo(t)); sourceErr != nil || targetErr != nil {
				t.Fatal(sourceErr, targetErr)
			}
			r.wantFinished(t)
		})
	}
}

// The code waits for the receipt over lost links, and goes with it; a receipt
// that comes to a responder leaves it to its time.
// req: C5
func TestCodeWaitsForTheReceipt(t *testing.T) {
	r := newRig(t, 2)
	sc, tc := newChannels()
	r.pump(t.Context(), sc, tc, cut(5, asSent))
	if state, left := r.source.State(); state != Serving || left != CodeLifetime {
		t.Fatalf("%s, %v left", state, left)
	}
	if !slices.Contains(r.kinds(), EventInterrupted) {
		t.Errorf("%v", r.kinds())
	}
	if sourceErr, targetErr := r.resumeOnce(t, r.source, asSent); sourceErr != nil || targetErr != nil {
		t.Fatal(sourceErr, targetErr)
	}
	r.wantWiped(t)
	if o := r.ended(t); o.Reason != EndDelivered || len(o.Transaction.Taken()) != 2 {
		t.Errorf("%+v", o)
	}
	// Its time is over first.
	r = newRig(t, 2)
	r.pump(t.Context(), sc, tc, cut(5, asSent))
	r.at(CodeLifetime)
	if o := r.ended(t); o.Reason != EndPending {
		t.Errorf("%+v", o)
	}
	r.wantWiped(t)
	if sourceErr, targetErr := r.resumeOnce(t, r.source, asSent); sourceErr != nil || targetErr != nil {
		t.Fatal(sourceErr, targetErr)
	}
	r.wantFinished(t)
}

// The operator calls off what has come to no receipt: the Target learns of it
// when it comes back. What has come to one is not stopped any more.
func TestCallOff(t *testing.T) {
	for name, tt := range map[string]struct {
		at     int
		target transport.KeycopyPhase
		left   int // credentials at the Target
	}{
		"before ITEM": {4, transport.KeycopyDropped, 0}, "before RECEIPT": {6, transport.KeycopyUnreceipted, 1}, "before COMMIT": {7, transport.KeycopyClosed, 2},
	} {
		r := newRig(t, 2)
		r.moving(true)
		sc, tc := newChannels()
		r.pump(t.Context(), sc, tc, cut(tt.at, asSent))
		if err := r.source.CallOff(t.Context()); err != nil {
			t.Fatal(err)
		}
		sourceErr, targetErr := r.resumeOnce(t, r.source, r.neverTwo(t))
		if sourceErr != nil || targetErr != nil {
			t.Errorf("%s: %v, %v", name, sourceErr, targetErr)
		}
		if g := r.txn(t); g.Phase != tt.target || len(g.Resume) != 0 || len(r.targetLedger.received) != tt.left || len(g.Taken()) != tt.left {
			t.Errorf("%s: %s, %d held, taken %v", name, g.Phase, len(r.targetLedger.received), g.Taken())
		}
		if ended := slices.Contains(r.kinds(), EventEnded); ended != (tt.target != transport.KeycopyClosed) {
			t.Errorf("%s: %v", name, r.kinds())
		}
		r.wantWiped(t)
	}
}

// The operator calls it off while the offer is being recorded: no GRANT leaves,
// and nothing stays on record to go on with.
func TestCallOffBeforeTheGrant(t *testing.T) {
	r := newRig(t, 2)
	r.sourceLedger.onWrite = func(what string) {
		if what == "offered" {
			if err := r.source.CallOff(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
	sc, tc := newChannels()
	sourceErr, targetErr := r.pump(t.Context(), sc, tc, func(h hop) transport.KeycopyFrame { return noKeyFrames(t, h) })
	wantFault(t, "source", sourceErr, transport.KeycopyAborted, false)
	wantFault(t, "target", targetErr, transport.KeycopyAborted, true)
	if s := r.offered(); s.Phase != transport.KeycopyAbandoned {
		t.Errorf("%s", s.Phase)
	}
	if o := r.ended(t); o.Reason != EndDisarmed || o.Transaction.Phase != transport.KeycopyAbandoned {
		t.Errorf("%+v", o)
	}
	r.wantWiped(t)
}

// A receipt that another Source took, such as a responder, ends the code as well
// when the Target comes back to its own.
// req: C5
func TestReceiptElsewhere(t *testing.T) {
	for lost := 3; lost < 5; lost++ { // COMMIT, ACTIVATED
		r := newRig(t, 2)
		r.moving(true)
		sc, tc := newChannels()
		r.pump(t.Context(), sc, tc, cut(6, asSent))
		r.resumeOnce(t, NewResponder(r.sourceConfig), cut(lost, asSent))
		if state, _ := r.source.State(); state != Serving || r.offered().Phase != transport.KeycopyCommitted {
			t.Fatalf("%s, %s", state, r.offered().Phase)
		}
		if sourceErr, targetErr := r.resumeOnce(t, r.source, asSent); sourceErr != nil || targetErr != nil {
			t.Fatal(sourceErr, targetErr)
		}
		if o := r.ended(t); o.Reason != EndDelivered {
			t.Errorf("%+v", o)
		}
		r.wantFinished(t)
		r.wantWiped(t)
	}
}

// A new offer ends the one that has come to no receipt, a new copy the one that
// has come to no key.
func TestNewCopyEndsTheOld(t *testing.T) {
	r := newRig(t, 1)
	sc, tc := newChannels()
	r.pump(t.Context(), sc, tc, cut(4, asSent))
	old := r.txn(t).ID
	r.arm("11223344", "11223344")
	if sourceErr, targetErr := r.copyOnce(t); sourceErr != nil || targetErr != nil {
		t.Fatal(sourceErr, targetErr)
	}
	if s, g := r.sourceLedger.journal[old], r.targetLedger.journal[old]; s.Phase != transport.KeycopyAbandoned || g.Phase != transport.KeycopyDropped || len(s.Resume) == 0 || len(g.Resume) != 0 {
		t.Errorf("%s and %s", s.Phase, g.Phase)
	}
}

// What was announced is not to be had any more when the Target comes back.
func TestOfferChangedMeanwhile(t *testing.T) {
	for name, change := range map[string]func(*rig){
		"invalid":    func(r *rig) { r.records[1].State = transport.CredentialInvalid },
		"expired":    func(r *rig) { r.records[1].Expires = r.now.Date.Unix() },
		"removed":    func(r *rig) { r.records = r.records[:1] },
		"longer":     func(r *rig) { r.records[1].Chain = append(r.records[1].Chain, []byte{1}) },
		"never":      func(r *rig) { r.records[1].Transfer = transport.TransferNever },
		"moves only": func(r *rig) { r.records[1].Transfer = transport.TransferMove },
	} {
		r := newRig(t, 2)
		sc, tc := newChannels()
		r.pump(t.Context(), sc, tc, cut(5, asSent))
		change(r)
		sourceErr, targetErr := r.resumeOnce(t, r.source, asSent)
		if s, g := r.offered(), r.txn(t); sourceErr != nil || targetErr != nil || s.Phase != transport.KeycopyAbandoned || g.Phase != transport.KeycopyDropped {
			t.Errorf("%s: %v, %v, %s and %s", name, sourceErr, targetErr, s.Phase, g.Phase)
		}
		if o := r.ended(t); o.Reason != EndAborted {
			t.Errorf("%s: %+v", name, o)
		}
		r.wantInstalled(t, nil)
	}
}
