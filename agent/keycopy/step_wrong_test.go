package keycopy

// An end that holds the right keys and says the wrong things.

import (
	"errors"
	"fmt"
	"testing"

	"github.com/kagimori/kagimori/transport"
)

// resumePair is a connection that goes on with the rig's transaction.
func (r *rig) resumePair(t testing.TB) (s *sourceRun, g *targetRun) {
	t.Helper()
	sc, tc := newChannels()
	g, err := (&Target{cfg: r.targetConfig}).resume(t.Context(), tc, r.txn(t).ID)
	if err != nil {
		t.Fatal(err)
	}
	return r.source.newRun(sc), g
}

// reframe changes a message and makes its MAC anew under the right key.
func reframe[M transport.KeycopyMessage](t testing.TB, f transport.KeycopyFrame, m M, change func(M) (body any, mac *transport.KeycopyTag), keys *runKeys, key []byte) transport.KeycopyFrame {
	t.Helper()
	if err := transport.DecodeKeycopy(f, m); err != nil {
		t.Fatal(err)
	}
	less, mac := change(m)
	body, err := transport.Marshal(less)
	if err != nil {
		t.Fatal(err)
	}
	*mac = keys.stepTag(key, body)
	out, err := transport.EncodeKeycopy(m)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A receipt of another copy, for another manifest, or for items that are not
// there, is none, whoever has made it.
func TestReceiptsThatLie(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(m *transport.KeycopyReceipt)
		want   transport.KeycopyFault
	}{
		"as sent":          {func(*transport.KeycopyReceipt) {}, 0},
		"another copy":     {func(m *transport.KeycopyReceipt) { m.Txn[0] ^= 1 }, transport.KeycopyAuthFailed},
		"another manifest": {func(m *transport.KeycopyReceipt) { m.Manifest[0] ^= 1 }, transport.KeycopyAuthFailed},
		"longer status":    {func(m *transport.KeycopyReceipt) { m.Status = append(m.Status, 0) }, transport.KeycopyProtocol},
		"items of nowhere": {func(m *transport.KeycopyReceipt) { m.Status[0] |= 1 << 7 }, transport.KeycopyProtocol},
	} {
		r := interrupted(t, transport.KeycopyStaged)
		s, g := r.resumePair(t)
		sourceErr, _ := pumpRuns(t.Context(), s, g, func(h hop) transport.KeycopyFrame {
			if h.frame.Type != transport.KeycopyTypeReceipt {
				return h.frame
			}
			return reframe(t, h.frame, &transport.KeycopyReceipt{}, func(m *transport.KeycopyReceipt) (any, *transport.KeycopyTag) {
				tt.change(m)
				return m.KeycopyReceiptBody, &m.MAC
			}, g.keys, g.keys.receipt)
		})
		s.end(sourceErr)
		g.end()
		if tt.want == 0 {
			if sourceErr != nil {
				t.Errorf("%s: %v", name, sourceErr)
			}
			continue
		}
		wantFault(t, name, sourceErr, tt.want, false)
		r.untouched(t, name, transport.KeycopyStaged)
	}
}

// The same receipt again gets the same answer, at COMMITTED and at DONE; another
// one gets none.
func TestReceiptsThatComeAgain(t *testing.T) {
	for _, phase := range []transport.KeycopyPhase{transport.KeycopyCommitted, transport.KeycopyDone} {
		for _, lie := range []bool{false, true} {
			r := newRig(t, 2)
			if phase == transport.KeycopyCommitted {
				r.moving(true)
			}
			sc, tc := newChannels()
			r.pump(t.Context(), sc, tc, cut(7, asSent)) // the answer is lost
			if r.offered().Phase != phase {
				t.Fatalf("%s", r.offered().Phase)
			}
			writes := len(r.sourceLedger.writes)
			s, g := r.resumePair(t)
			sourceErr, targetErr := pumpRuns(t.Context(), s, g, func(h hop) transport.KeycopyFrame {
				if h.frame.Type == transport.KeycopyTypeReceipt && lie {
					return reframe(t, h.frame, &transport.KeycopyReceipt{}, func(m *transport.KeycopyReceipt) (any, *transport.KeycopyTag) {
						m.Status[0] ^= 1
						return m.KeycopyReceiptBody, &m.MAC
					}, g.keys, g.keys.receipt)
				}
				if h.frame.Type == transport.KeycopyTypeReceipt && len(r.sourceLedger.writes) != writes {
					t.Error("written again")
				}
				return h.frame
			})
			s.end(sourceErr)
			g.end()
			if !lie {
				if sourceErr != nil || targetErr != nil {
					t.Error(sourceErr, targetErr)
				}
				r.wantFinished(t)
				continue
			}
			wantFault(t, "another receipt", sourceErr, transport.KeycopyTxnConflict, false)
			if r.offered().Phase != phase || r.txn(t).Phase != transport.KeycopyStaged || len(r.sourceLedger.writes) != writes {
				t.Errorf("%s and %s", r.offered().Phase, r.txn(t).Phase)
			}
		}
	}
}

// COMMIT, ACTIVATED and CLOSE of another transaction, or under each other's
// keys.
func TestStepsThatLie(t *testing.T) {
	for _, typ := range []transport.KeycopyType{transport.KeycopyTypeCommit, transport.KeycopyTypeActivated, transport.KeycopyTypeClose} {
		for _, lie := range []string{"transaction", "key"} {
			r := interrupted(t, transport.KeycopyStaged)
			s, g := r.resumePair(t)
			var at, then [2]transport.KeycopyPhase
			sourceErr, targetErr := pumpRuns(t.Context(), s, g, func(h hop) transport.KeycopyFrame {
				if h.frame.Type != typ {
					return h.frame
				}
				at = [2]transport.KeycopyPhase{r.offered().Phase, r.txn(t).Phase}
				k := g.keys
				keys := map[transport.KeycopyType][2][]byte{transport.KeycopyTypeCommit: {k.commit, k.close},
					transport.KeycopyTypeActivated: {k.activated, k.receipt}, transport.KeycopyTypeClose: {k.close, k.commit}}[typ]
				step := func(body *transport.KeycopyStepBody, mac *transport.KeycopyTag) (any, *transport.KeycopyTag) {
					if lie == "transaction" {
						body.Txn[0] ^= 1
					}
					return body, mac
				}
				key := keys[0]
				if lie == "key" {
					key = keys[1]
				}
				switch typ {
				case transport.KeycopyTypeCommit:
					return reframe(t, h.frame, &transport.KeycopyCommit{}, func(m *transport.KeycopyCommit) (any, *transport.KeycopyTag) { return step(&m.KeycopyStepBody, &m.MAC) }, k, key)
				case transport.KeycopyTypeActivated:
					return reframe(t, h.frame, &transport.KeycopyActivated{}, func(m *transport.KeycopyActivated) (any, *transport.KeycopyTag) {
						return step(&m.KeycopyStepBody, &m.MAC)
					}, k, key)
				}
				return reframe(t, h.frame, &transport.KeycopyClose{}, func(m *transport.KeycopyClose) (any, *transport.KeycopyTag) { return step(&m.KeycopyStepBody, &m.MAC) }, k, key)
			})
			s.end(sourceErr)
			g.end()
			then = [2]transport.KeycopyPhase{r.offered().Phase, r.txn(t).Phase}
			what := fmt.Sprintf("%s with another %s", typ, lie)
			if typ == transport.KeycopyTypeActivated {
				wantFault(t, what, sourceErr, transport.KeycopyAuthFailed, false)
			} else {
				wantFault(t, what, targetErr, transport.KeycopyAuthFailed, false)
			}
			if at != then {
				t.Errorf("%s: from %s to %s", what, at, then)
			}
			if sourceErr, targetErr := r.resumeOnce(t, r.source, r.neverTwo(t)); sourceErr != nil || targetErr != nil {
				t.Error(what, sourceErr, targetErr)
			}
			r.wantFinished(t)
		}
	}
}

// Another connection has stored the items by the time that this one has them
// all: they are stored once, and this one goes on.
func TestItemsStoredByAnotherConnection(t *testing.T) {
	r := interrupted(t, transport.KeycopyStarted)
	sourceErr, targetErr := r.resumeOnce(t, r.source, func(h hop) transport.KeycopyFrame {
		if h.frame.Type == transport.KeycopyTypeItem && r.txn(t).Phase == transport.KeycopyStarted {
			if s, g := r.resumeOnce(t, NewResponder(r.sourceConfig), cut(4, asSent)); s == nil || g == nil {
				t.Error("the other connection was to be lost before RECEIPT")
			}
		}
		return h.frame
	})
	if sourceErr != nil || targetErr != nil {
		t.Fatal(sourceErr, targetErr)
	}
	r.wantFinished(t)
	// And one that has ended it.
	r = interrupted(t, transport.KeycopyStarted)
	sourceErr, targetErr = r.resumeOnce(t, r.source, func(h hop) transport.KeycopyFrame {
		if h.frame.Type == transport.KeycopyTypeItem && r.txn(t).Phase == transport.KeycopyStarted {
			force(t, r.targetLedger, r.txn(t), Abandon)
		}
		return h.frame
	})
	wantFault(t, "target", targetErr, transport.KeycopyTxnConflict, false)
	wantFault(t, "source", sourceErr, transport.KeycopyTxnConflict, true)
	if !errors.Is(targetErr, ErrOtherPhase) || len(r.targetLedger.received) != 0 {
		t.Error(targetErr)
	}
}

// What was ended at the Target while a connection was under way is not put to
// use by it, and nobody is told that it is there.
func TestEndedUnderAConnection(t *testing.T) {
	for _, tt := range []struct {
		at     transport.KeycopyType
		source transport.KeycopyPhase
	}{{transport.KeycopyTypeResumed, transport.KeycopyOffered}, {transport.KeycopyTypeCommit, transport.KeycopyCommitted}} {
		r := interrupted(t, transport.KeycopyStaged)
		sourceErr, targetErr := r.resumeOnce(t, r.source, func(h hop) transport.KeycopyFrame {
			if h.frame.Type == tt.at {
				force(t, r.targetLedger, r.txn(t), Abandon)
			}
			return h.frame
		})
		wantFault(t, tt.at.String(), targetErr, transport.KeycopyTxnConflict, false)
		wantFault(t, tt.at.String(), sourceErr, transport.KeycopyTxnConflict, true)
		if s, g := r.offered(), r.txn(t); s.Phase != tt.source || g.Phase != transport.KeycopyUnreceipted || r.targetLedger.uses("cr-0000") {
			t.Errorf("%s: %s and %s", tt.at, s.Phase, g.Phase)
		}
	}
}
