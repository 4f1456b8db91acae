package keycopy

// Who does not have the codes: guesses, strangers, men in the middle.

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// noKeyFrames fails the test if anything that carries a key was sent.
func noKeyFrames(t testing.TB, h hop) transport.KeycopyFrame {
	t.Helper()
	if h.frame.Type == transport.KeycopyTypeGrant || h.frame.Type == transport.KeycopyTypeItem {
		t.Errorf("%s was sent", h.frame.Type)
	}
	return h.frame
}

// A wrong operator code sends no key and is counted on both ends; the third
// kills the code.
// req: C2, C3
func TestWrongOperatorCode(t *testing.T) {
	r := newRig(t, 1)
	r.target.Wipe()
	for i := range CodeAttempts {
		r.target = NewTarget(r.targetConfig, r.typed(fmt.Sprintf("1234567%d", i)))
		sc, tc := newChannels()
		sourceErr, targetErr := r.pump(t.Context(), sc, tc, func(h hop) transport.KeycopyFrame { return noKeyFrames(t, h) })
		wantFault(t, "source", sourceErr, transport.KeycopyAuthFailed, false)
		wantFault(t, "target", targetErr, transport.KeycopyAuthFailed, true)
		if r.sourceLedger.failures() != i+1 || r.targetLedger.failures() != i+1 {
			t.Errorf("%d and %d failures after %d attempts", r.sourceLedger.failures(), r.targetLedger.failures(), i+1)
		}
		if e := r.events[len(r.events)-1]; i < 2 && (e.Kind != EventRefused || e.Left != 2-i || e.Device != r.targetConfig.Device) {
			t.Errorf("event %+v", e)
		}
		if state, _ := r.source.State(); (state == Armed) != (i < 2) {
			t.Fatalf("%s after %d attempts", state, i+1)
		}
	}
	r.wantWiped(t)
	if o := r.ended(t); o.Reason != EndKilled || o.Transaction != nil {
		t.Errorf("%+v", o)
	}
	if k := r.kinds(); !slices.Equal(k, []EventKind{EventRefused, EventRefused, EventRefused, EventKilled}) {
		t.Errorf("events %v", k)
	}
	// The right code comes too late.
	r.targetLedger.log.Reset()
	r.target = NewTarget(r.targetConfig, r.typed("12345678"))
	sourceErr, targetErr := r.copyOnce(t)
	wantFault(t, "source", sourceErr, transport.KeycopyNotArmed, false)
	wantFault(t, "target", targetErr, transport.KeycopyNotArmed, true)
	r.wantInstalled(t, nil)
}

// A wrong code, then the right one.
// req: C3
func TestRightCodeAfterAWrongOne(t *testing.T) {
	r := newRig(t, 1)
	r.target = NewTarget(r.targetConfig, r.typed("00000000"))
	if _, targetErr := r.copyOnce(t); !errors.Is(targetErr, transport.KeycopyAuthFailed) {
		t.Fatal(targetErr)
	}
	r.target = NewTarget(r.targetConfig, r.typed("12345678"))
	if sourceErr, targetErr := r.copyOnce(t); sourceErr != nil || targetErr != nil {
		t.Fatal(sourceErr, targetErr)
	}
	r.wantInstalled(t, r.records)
	if r.sourceLedger.failures() != 1 {
		t.Errorf("%d failures", r.sourceLedger.failures())
	}
}

// Without the security code nobody gets as far as an attempt: nothing is
// counted, and the operator code stays in force.
// req: C1, C3
func TestWrongSecurityCode(t *testing.T) {
	r := newRig(t, 1)
	r.targetConfig.Code = hmacCode([]byte("another fleet's security code..."), "default", 2)
	r.arm("12345678", "12345678")
	for range 2 * CodeAttempts {
		n := 0
		sc, tc := newChannels()
		sourceErr, targetErr := r.pump(t.Context(), sc, tc, func(h hop) transport.KeycopyFrame { n++; return noKeyFrames(t, h) })
		wantFault(t, "source", sourceErr, transport.KeycopyAuthFailed, false)
		wantFault(t, "target", targetErr, transport.KeycopyAuthFailed, true)
		if n != 2 {
			t.Errorf("%d frames", n)
		}
	}
	if r.sourceLedger.counted+r.targetLedger.counted != 0 {
		t.Error("counted")
	}
	if state, left := r.source.State(); state != Armed || left != CodeLifetime || !r.target.Usable() {
		t.Errorf("%s, %v left", state, left)
	}
	// An unknown group or epoch is named, and not counted either.
	for _, id := range []transport.KeycopyCodeID{{Group: "other", Epoch: 2}, {Group: "default", Epoch: 3}} {
		r.targetConfig.Code.ID = id
		r.target = NewTarget(r.targetConfig, r.typed("12345678"))
		sourceErr, targetErr := r.copyOnce(t)
		wantFault(t, "source", sourceErr, transport.KeycopyCodeUnknown, false)
		wantFault(t, "target", targetErr, transport.KeycopyCodeUnknown, true)
	}
	// The epoch before is still good.
	r.targetConfig.Code = r.sourceConfig.Codes[1]
	r.target = NewTarget(r.targetConfig, r.typed("12345678"))
	if sourceErr, targetErr := r.copyOnce(t); sourceErr != nil || targetErr != nil {
		t.Fatal(sourceErr, targetErr)
	}
}

// A Source that lacks the security code learns nothing: the Target counts
// nothing and sends no PROOF.
// req: C1
func TestSourceWithoutSecurityCode(t *testing.T) {
	r := newRig(t, 1)
	sc, tc := newChannels()
	g, err := r.target.newRun(t.Context(), tc)
	if err != nil {
		t.Fatal(err)
	}
	defer g.end()
	hello, _, err := g.create()
	if err != nil {
		t.Fatal(err)
	}
	s := r.source.newRun(sc)
	if err := s.consume(t.Context(), hello); err != nil {
		t.Fatal(err)
	}
	var ack transport.KeycopyHelloAck
	if err := transport.DecodeKeycopy(s.ack, &ack); err != nil {
		t.Fatal(err)
	}
	ack.Admit[0] ^= 1
	f, err := transport.EncodeKeycopy(&ack)
	if err != nil {
		t.Fatal(err)
	}
	wantFault(t, "target", g.consume(t.Context(), f), transport.KeycopyAuthFailed, false)
	if r.targetLedger.counted != 0 || g.state >= targetProof {
		t.Error("the Target went on")
	}
}

// A man in the middle who has the security code and sits on two TLS
// connections of his own: he may relay, then both ends refuse, because CI and
// sid differ; or play both parts with a guess, and gets one verdict per run.
func TestManInTheMiddleGetsOneVerdictPerRun(t *testing.T) {
	r := newRig(t, 1)
	code := hmacCode([]byte(fleetKey), "default", 2)
	sc, mallorySource := newChannels() // Mallory dials the Source here
	malloryTarget, tc := newChannels() // and the Target dials him here
	s := r.source.newRun(sc)
	g, err := r.target.newRun(t.Context(), tc)
	if err != nil {
		t.Fatal(err)
	}
	upFleet, err := newFleetKeys(t.Context(), code, transport.KeycopyPAKE, &mallorySource)
	if err != nil {
		t.Fatal(err)
	}
	downFleet, err := newFleetKeys(t.Context(), code, transport.KeycopyPAKE, &malloryTarget)
	if err != nil {
		t.Fatal(err)
	}
	// He relays HELLO and HELLO_ACK with MACs made anew, and PROOF as it is.
	targetHello, _, _ := g.create()
	var hello transport.KeycopyHello
	if err := transport.DecodeKeycopy(targetHello, &hello); err != nil {
		t.Fatal(err)
	}
	body, _ := transport.Marshal(hello.KeycopyHelloBody)
	hello.Admit = upFleet.admitTarget(body)
	relayed, _ := transport.EncodeKeycopy(&hello)
	if err := s.consume(t.Context(), relayed); err != nil {
		t.Fatal(err)
	}
	sourceAck, _, _ := s.create()
	var ack transport.KeycopyHelloAck
	if err := transport.DecodeKeycopy(sourceAck, &ack); err != nil {
		t.Fatal(err)
	}
	body, _ = transport.Marshal(ack.KeycopyHelloAckBody)
	ack.Admit = downFleet.admitSource(targetHello.Body, body)
	relayedAck, _ := transport.EncodeKeycopy(&ack)
	if err := g.consume(t.Context(), relayedAck); err != nil {
		t.Fatal(err)
	}
	proof, _, _ := g.create()
	sourceErr := s.consume(t.Context(), proof)
	wantFault(t, "relayed proof", sourceErr, transport.KeycopyAuthFailed, false)
	s.end(sourceErr)
	g.end()
	if r.sourceLedger.failures() != 1 || r.targetLedger.failures() != 1 {
		t.Errorf("%d and %d failures for one run", r.sourceLedger.failures(), r.targetLedger.failures())
	}
	// He plays a Target and a Source with guesses: three runs each, no more.
	for i := range 10 {
		guess := newRig(t, 1)
		guess.target = NewTarget(guess.targetConfig, guess.typed(fmt.Sprintf("0000000%d", i)))
		sc, tc := newChannels()
		run, err := guess.target.newRun(t.Context(), tc)
		if err != nil {
			t.Fatal(err)
		}
		real := r.source.newRun(sc)
		sourceErr, _ := pumpRuns(t.Context(), real, run, func(h hop) transport.KeycopyFrame { return noKeyFrames(t, h) })
		real.end(sourceErr)
		run.end()
	}
	if r.sourceLedger.failures() != CodeAttempts {
		t.Errorf("%d verdicts of the Source on one code", r.sourceLedger.failures())
	}
	for i := range 10 {
		fake := newRig(t, 1)
		fake.arm(fmt.Sprintf("0000000%d", i), "00000000")
		r.target = NewTarget(r.targetConfig, r.typed("12345678")) // the operator types the right code again and again
		sc, tc := newChannels()
		run, err := r.target.newRun(t.Context(), tc)
		if err != nil {
			t.Fatal(err)
		}
		_, targetErr := pumpRuns(t.Context(), fake.source.newRun(sc), run, asSent)
		if targetErr == nil {
			t.Fatal("a guess was right")
		}
		run.end()
	}
	if r.targetLedger.failures() != CodeAttempts {
		t.Errorf("%d verdicts of the Target on one code", r.targetLedger.failures())
	}
}

// Nobody gets a verdict without having sent a proof.
func TestDroppedRunsAreNotCounted(t *testing.T) {
	for n := range 8 {
		r := newRig(t, 2)
		sc, tc := newChannels()
		var at transport.KeycopyType
		sourceErr, targetErr := r.pump(t.Context(), sc, tc, func(h hop) transport.KeycopyFrame {
			if h.n == n {
				at = h.frame.Type
				return transport.KeycopyFrame{}
			}
			return h.frame
		})
		if at == transport.KeycopyTypeClose {
			if sourceErr != nil || r.source.outcome.Reason != EndDelivered || targetErr == nil {
				t.Errorf("without CLOSE: %v, %v, %s", sourceErr, targetErr, r.source.outcome.Reason)
			}
			r.wantWiped(t)
			continue
		}
		if sourceErr == nil || targetErr == nil {
			t.Errorf("without %s: %v, %v", at, sourceErr, targetErr)
		}
		state, _ := r.source.State()
		if spent := at == transport.KeycopyTypeGrant || at == transport.KeycopyTypeItem || at == transport.KeycopyTypeReceipt; spent != (state == Serving) {
			t.Errorf("without %s the Source is %s", at, state)
		} else if spent { // the code waits for the receipt, for as long as it lives
			r.at(CodeLifetime)
			if o := r.ended(t); o.Reason != EndPending || o.Transaction.Phase != transport.KeycopyOffered {
				t.Errorf("without %s: %+v", at, o)
			}
			r.wantWiped(t)
		}
		if r.sourceLedger.failures() != 0 {
			t.Errorf("without %s: %d failures on the Source", at, r.sourceLedger.failures())
		}
		if want := at == transport.KeycopyTypeProof || at == transport.KeycopyTypeGrant; want != (r.targetLedger.failures() == 1) {
			t.Errorf("without %s: %d failures on the Target", at, r.targetLedger.failures())
		}
	}
}

// A code that expires between two messages is not judged any more; a
// transaction that began in time goes on.
func TestExpiredCode(t *testing.T) {
	for n, want := range map[int]transport.KeycopyFault{0: transport.KeycopyNotArmed, 2: transport.KeycopyNotArmed, 3: 0, 5: 0} {
		r := newRig(t, 2)
		sc, tc := newChannels()
		sourceErr, targetErr := r.pump(t.Context(), sc, tc, func(h hop) transport.KeycopyFrame {
			if h.n == n {
				r.at(CodeLifetime)
			}
			return h.frame
		})
		if want == 0 {
			if sourceErr != nil || targetErr != nil {
				t.Errorf("expired at frame %d: %v, %v", n, sourceErr, targetErr)
			}
		} else {
			wantFault(t, "source", sourceErr, want, false)
			wantFault(t, "target", targetErr, want, true)
			if r.sourceLedger.counted != 0 {
				t.Error("a proof for an expired code was counted")
			}
			r.target.Wipe()
		}
		r.wantWiped(t)
	}
	r := newRig(t, 1)
	r.at(CodeLifetime - time.Second)
	if sourceErr, targetErr := r.copyOnce(t); sourceErr != nil || targetErr != nil {
		t.Error(sourceErr, targetErr)
	}
	r = newRig(t, 1)
	r.target.code.since = moment(-CodeLifetime, 0)
	if _, targetErr := r.copyOnce(t); !errors.Is(targetErr, transport.KeycopyNotArmed) {
		t.Errorf("a code typed long ago: %v", targetErr)
	}
}
