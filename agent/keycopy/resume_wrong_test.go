package keycopy

// Who comes back and is not who left, and frames that are not of this
// connection.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/kagimori/kagimori/transport"
)

// interrupted is a rig whose transaction stands at STARTED, STAGED or ACTIVE at
// the Target, and OFFERED, OFFERED or COMMITTED at the Source.
func interrupted(t testing.TB, at transport.KeycopyPhase) *rig {
	t.Helper()
	r := newRig(t, 2)
	r.moving(true)
	n := map[transport.KeycopyPhase]int{transport.KeycopyStarted: 4, transport.KeycopyStaged: 6, transport.KeycopyActive: 8}[at]
	sc, tc := newChannels()
	r.pump(context.Background(), sc, tc, cut(n, asSent))
	if got := r.txn(t).Phase; got != at {
		t.Fatalf("the Target is %s, not %s", got, at)
	}
	return r
}

var openPhases = []transport.KeycopyPhase{transport.KeycopyStarted, transport.KeycopyStaged, transport.KeycopyActive}

// untouched finds a transaction as it was, at both ends.
func (r *rig) untouched(t testing.TB, what string, at transport.KeycopyPhase) {
	t.Helper()
	want := transport.KeycopyOffered
	if at == transport.KeycopyActive {
		want = transport.KeycopyCommitted
	}
	if s, g := r.offered(), r.txn(t); s.Phase != want || g.Phase != at || len(g.Resume) != keySize || len(s.Resume) != keySize {
		t.Errorf("%s: %s and %s", what, s.Phase, g.Phase)
	}
}

// Whoever lacks the resume key learns nothing and changes nothing, at either
// end; neither does a Target that asks a Source which has forgotten.
func TestResumeWithoutTheKey(t *testing.T) {
	for _, at := range openPhases {
		r := interrupted(t, at)
		id := r.txn(t).ID
		key := slices.Clone(r.offered().Resume)
		for name, spoil := range map[string]func(){
			"another key": func() { r.sourceLedger.journal[id].Resume[0] ^= 1 },
			"forgotten":   func() { r.sourceLedger.journal[id].Resume = nil },
			"not its own": func() { r.sourceLedger.journal[id].Side = transport.KeycopyTarget },
			"unknown":     func() { delete(r.sourceLedger.journal, id) },
		} {
			was := r.sourceLedger.journal[id]
			spoil()
			n := 0
			sourceErr, targetErr := r.resumeOnce(t, NewResponder(r.sourceConfig), func(h hop) transport.KeycopyFrame { n++; return h.frame })
			wantFault(t, name, sourceErr, transport.KeycopyTxnUnknown, false)
			wantFault(t, name, targetErr, transport.KeycopyTxnUnknown, true)
			if n != 2 {
				t.Errorf("%s: %d frames", name, n)
			}
			was.Resume, was.Side = slices.Clone(key), transport.KeycopySource
			r.sourceLedger.journal[id] = was
			r.untouched(t, name, at)
			r.wantLentWiped(t)
		}
		if sourceErr, targetErr := r.resumeOnce(t, r.source, asSent); sourceErr != nil || targetErr != nil {
			t.Error(sourceErr, targetErr)
		}
		r.wantFinished(t)
	}
}

// One bit of any byte of any frame of a resumed connection is flipped in flight:
// somebody notices, and a good connection finishes afterwards, unless an item
// was forged under the right keys.
func TestEveryFlippedBitIsFoundOnResume(t *testing.T) {
	t.Parallel()
	flipBitsOnResume(t, false)
}

func TestSoakEveryFlippedBitIsFoundOnResume(t *testing.T) {
	soak(t)
	flipBitsOnResume(t, true)
}

func flipBitsOnResume(t *testing.T, all bool) {
	const step = 3 // the phases have other messages at the same place, and hit other bytes
	flips := 0
	for nth, at := range openPhases {
		var good []hop
		r := interrupted(t, at)
		if s, g := r.resumeOnce(t, r.source, func(h hop) transport.KeycopyFrame { good = append(good, h); return h.frame }); s != nil || g != nil {
			t.Fatal(s, g)
		}
		for n, h := range good {
			for i := -1; i < len(h.frame.Body); i++ {
				if i > 64 && i%16 != 0 { // inside ciphertext
					continue
				}
				if !all && 0 <= i && i <= 64 && i%step != (n+nth)%step {
					continue
				}
				r := interrupted(t, at)
				check := r.neverTwo(t)
				sourceErr, targetErr := r.resumeOnce(t, r.source, func(h hop) transport.KeycopyFrame {
					if h.n != n {
						return check(h)
					}
					f := transport.KeycopyFrame{Type: h.frame.Type, Body: slices.Clone(h.frame.Body)}
					if i < 0 {
						f.Type ^= 1 << 4
					} else {
						f.Body[i%len(f.Body)] ^= 1 << (i % 8)
					}
					return f
				})
				flips++
				if what := fmt.Sprintf("%s, %s, byte %d", at, h.frame.Type, i); targetErr == nil || sourceErr == nil && h.frame.Type != transport.KeycopyTypeClose {
					t.Errorf("%s: %v, %v", what, sourceErr, targetErr)
				}
				if h.frame.Type == transport.KeycopyTypeItem {
					continue
				}
				if sourceErr, targetErr := r.resumeOnce(t, r.source, check); sourceErr != nil || targetErr != nil {
					t.Errorf("%s: %v, %v", h.frame.Type, sourceErr, targetErr)
				}
				r.wantFinished(t)
			}
		}
	}
	if flips < 400 {
		t.Errorf("only %d flips", flips)
	}
}

// Each frame of one resumed connection is replayed into another.
func TestReplayIsRefusedOnResume(t *testing.T) {
	t.Parallel()
	for _, at := range openPhases {
		r := interrupted(t, at)
		var old []hop
		last := map[transport.KeycopyPhase]int{transport.KeycopyStarted: 5, transport.KeycopyStaged: 4, transport.KeycopyActive: 4}[at]
		r.resumeOnce(t, r.source, func(h hop) transport.KeycopyFrame {
			if h.n == 2 { // nothing has changed by then
				return transport.KeycopyFrame{}
			}
			old = append(old, h)
			return h.frame
		})
		for n, was := range old {
			sourceErr, targetErr := r.resumeOnce(t, r.source, func(h hop) transport.KeycopyFrame {
				if h.n == n {
					return was.frame
				}
				return h.frame
			})
			if sourceErr == nil || targetErr == nil {
				t.Errorf("%s: replayed %s: %v, %v", at, was.frame.Type, sourceErr, targetErr)
			}
			r.untouched(t, was.frame.Type.String(), at)
		}
		// The frames after those, from another rig at the same place.
		other := interrupted(t, at)
		var theirs []hop
		other.resumeOnce(t, other.source, func(h hop) transport.KeycopyFrame { theirs = append(theirs, h); return h.frame })
		for n := 2; n < last; n++ {
			r := interrupted(t, at)
			sourceErr, targetErr := r.resumeOnce(t, r.source, func(h hop) transport.KeycopyFrame {
				if h.n == n {
					return theirs[n].frame
				}
				return h.frame
			})
			if targetErr == nil || sourceErr == nil && theirs[n].frame.Type != transport.KeycopyTypeClose {
				t.Errorf("%s: another's %s: %v, %v", at, theirs[n].frame.Type, sourceErr, targetErr)
			}
		}
	}
}

// A man in the middle who relays between two TLS connections of his own gets
// past neither end: the exporter and the keys shown differ.
func TestResumeIsBoundToTheConnection(t *testing.T) {
	for name, change := range map[string]func(c *transport.KeycopyChannel){
		"exporter":   func(c *transport.KeycopyChannel) { c.Exporter[63] ^= 1 },
		"source key": func(c *transport.KeycopyChannel) { c.SourceKey = []byte("another") },
		"target key": func(c *transport.KeycopyChannel) { c.TargetKey = nil },
	} {
		r := interrupted(t, transport.KeycopyStaged)
		sc, tc := newChannels()
		change(&tc)
		sourceErr, targetErr := r.pumpResume(t.Context(), r.source, r.txn(t).ID, sc, tc, asSent)
		wantFault(t, name, sourceErr, transport.KeycopyTxnUnknown, false)
		wantFault(t, name, targetErr, transport.KeycopyTxnUnknown, true)
		r.untouched(t, name, transport.KeycopyStaged)
	}
	// RESUME back to its sender, as RESUMED.
	r := interrupted(t, transport.KeycopyStaged)
	_, tc := newChannels()
	g, err := (&Target{cfg: r.targetConfig}).resume(t.Context(), tc, r.txn(t).ID)
	if err != nil {
		t.Fatal(err)
	}
	defer g.end()
	f, _, err := g.create()
	if err != nil {
		t.Fatal(err)
	}
	var m transport.KeycopyResume
	if err := transport.DecodeKeycopy(f, &m); err != nil {
		t.Fatal(err)
	}
	m.Phase = transport.KeycopyReclaimed
	back, err := transport.EncodeKeycopy(&transport.KeycopyResumed{KeycopyResumeBody: m.KeycopyResumeBody, MAC: m.MAC})
	if err != nil {
		t.Fatal(err)
	}
	wantFault(t, "reflected", g.consume(t.Context(), back), transport.KeycopyAuthFailed, false)
	r.untouched(t, "reflected", transport.KeycopyStaged)
}

// An end that shows an identity is held to the device on record.
func TestResumeByAnotherDevice(t *testing.T) {
	_, spki := identity(t)
	for _, atSource := range []bool{true, false} {
		r := interrupted(t, transport.KeycopyStaged)
		sc, tc := newChannels()
		sc.TargetKey, tc.TargetKey, sc.SourceKey, tc.SourceKey = spki, spki, spki, spki
		sc.Peer, tc.Peer = "", "nav-001"
		if atSource {
			sc.Peer, tc.Peer = "nav-002", ""
		}
		n := 0
		sourceErr, targetErr := r.pumpResume(t.Context(), r.source, r.txn(t).ID, sc, tc, func(h hop) transport.KeycopyFrame { n++; return h.frame })
		if atSource && n != 2 || !atSource && n != 3 {
			t.Errorf("%d frames", n)
		}
		wantFault(t, "source", sourceErr, transport.KeycopyAuthFailed, !atSource)
		wantFault(t, "target", targetErr, transport.KeycopyAuthFailed, atSource)
		r.untouched(t, "another device", transport.KeycopyStaged)
	}
}

// A Target that opened the copy with its identity cannot give the receipt
// without: nobody would know later who has the keys. Once the receipt is there
// it may come as nobody, since an identity can expire meanwhile.
func TestResumeKeepsTheIdentity(t *testing.T) {
	for _, mode := range transport.KeycopyModes() {
		r, channels := modeRig(t, mode, 2)
		r.moving(false)
		nobody := func() (sc, tc transport.KeycopyChannel) {
			sc, tc = channels()
			sc.TargetKey, tc.TargetKey, sc.Peer, tc.Identified = nil, nil, "", false
			return sc, tc
		}
		sc, tc := channels()
		r.pump(t.Context(), sc, tc, func(h hop) transport.KeycopyFrame {
			if h.frame.Type == transport.KeycopyTypeReceipt {
				return transport.KeycopyFrame{} // lost
			}
			return h.frame
		})
		signer := r.targetConfig.Identity
		r.targetConfig.Identity = nil
		for _, s := range []*Source{r.source, NewResponder(r.sourceConfig)} {
			sc, tc = nobody()
			sourceErr, targetErr := r.pumpResume(t.Context(), s, r.txn(t).ID, sc, tc, asSent)
			wantFault(t, string(mode), sourceErr, transport.KeycopyModeRefused, false)
			wantFault(t, string(mode), targetErr, transport.KeycopyModeRefused, true)
			r.untouched(t, string(mode), transport.KeycopyStaged)
		}
		r.targetConfig.Identity = signer
		sc, tc = channels()
		r.pumpResume(t.Context(), r.source, r.txn(t).ID, sc, tc, func(h hop) transport.KeycopyFrame {
			if h.frame.Type == transport.KeycopyTypeCommit {
				return transport.KeycopyFrame{} // lost
			}
			return h.frame
		})
		if len(r.offered().Signature) == 0 {
			t.Errorf("%s: no signed receipt", mode)
		}
		r.targetConfig.Identity = nil
		sc, tc = nobody()
		if sourceErr, targetErr := r.pumpResume(t.Context(), r.source, r.txn(t).ID, sc, tc, asSent); sourceErr != nil || targetErr != nil {
			t.Errorf("%s: %v, %v", mode, sourceErr, targetErr)
		}
		r.wantFinished(t)
	}
}

// A responder takes no HELLO, and who comes with one is a stranger to it.
func TestResponderTakesNoHello(t *testing.T) {
	r := newRig(t, 1)
	r.source.Disarm()
	r.source = NewResponder(r.sourceConfig)
	sourceErr, targetErr := r.copyOnce(t)
	wantFault(t, "source", sourceErr, transport.KeycopyNotArmed, false)
	wantFault(t, "target", targetErr, transport.KeycopyNotArmed, true)
	if state, left := r.source.State(); state != Ended || left != 0 {
		t.Errorf("%s, %v left", state, left)
	}
	if o := r.source.Watch(t.Context()); o != (Outcome{}) {
		t.Errorf("%+v", o)
	}
	r.source.Disarm()
}

// Only what is open can be gone on with.
func TestResumeOfWhatIsOver(t *testing.T) {
	r := newRig(t, 1)
	if s, g := r.copyOnce(t); s != nil || g != nil {
		t.Fatal(s, g)
	}
	_, targetErr := r.resumeOnce(t, r.source, asSent)
	wantFault(t, "target", targetErr, transport.KeycopyTxnConflict, false)
	if !errors.Is(targetErr, ErrOtherPhase) {
		t.Error(targetErr)
	}
}
