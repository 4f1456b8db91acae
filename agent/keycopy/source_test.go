package keycopy

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// begin brings a new run up to PROOF: HELLO and HELLO_ACK are exchanged.
func (r *rig) begin(t *testing.T) (s *sourceRun, g *targetRun, err error) {
	t.Helper()
	sc, tc := newChannels()
	s = r.source.newRun(sc)
	g, err = r.target.newRun(t.Context(), tc)
	if err != nil {
		t.Fatal(err)
	}
	hello, _, err := g.create()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.consume(t.Context(), hello); err != nil {
		return s, g, err
	}
	ack, _, err := s.create()
	if err != nil {
		t.Fatal(err)
	}
	return s, g, g.consume(t.Context(), ack)
}

// One handshake at a time is in the proof stage, and one Target gets the code.
func TestOneTargetAtATime(t *testing.T) {
	r := newRig(t, 1)
	first, firstTarget, err := r.begin(t)
	if err != nil {
		t.Fatal(err)
	}
	r.target = NewTarget(r.targetConfig, r.typed("12345678"))
	second, _, err := r.begin(t)
	wantFault(t, "while the first is proving", err, transport.KeycopyBusy, false)
	second.end(err)
	first.end(errDisk) // the first drops out: its place is free
	firstTarget.end()
	third, thirdTarget, err := r.begin(t)
	if err != nil {
		t.Fatal(err)
	}
	proof, _, err := thirdTarget.create()
	if err != nil {
		t.Fatal(err)
	}
	if err := third.consume(t.Context(), proof); err != nil {
		t.Fatal(err)
	}
	r.target = NewTarget(r.targetConfig, r.typed("12345678"))
	fourth, _, err := r.begin(t)
	wantFault(t, "while another is served", err, transport.KeycopyBusy, false)
	fourth.end(err)
	if state, _ := r.source.State(); state != Serving {
		t.Errorf("%s", state)
	}
	third.end(errDisk) // the code has opened its one transaction, which can be resumed
	r.target = NewTarget(r.targetConfig, r.typed("12345678"))
	_, _, err = r.begin(t)
	wantFault(t, "after the link was lost", err, transport.KeycopyNotArmed, false)
	r.at(CodeLifetime)
	if o := r.ended(t); o.Reason != EndPending || o.Transaction == nil || o.Transaction.Status != nil {
		t.Errorf("%+v", o)
	}
}

// Whoever has heard that a code was wrong may come back at once.
func TestPlaceIsFreeBeforeTheVerdictIsSent(t *testing.T) {
	r := newRig(t, 1)
	r.target = NewTarget(r.targetConfig, r.typed("00000000"))
	first, firstTarget, err := r.begin(t)
	if err != nil {
		t.Fatal(err)
	}
	proof, _, err := firstTarget.create()
	if err != nil {
		t.Fatal(err)
	}
	verdict := first.consume(t.Context(), proof)
	wantFault(t, "wrong code", verdict, transport.KeycopyAuthFailed, false)
	r.target = NewTarget(r.targetConfig, r.typed("12345678"))
	if _, _, err := r.begin(t); err != nil {
		t.Error(err)
	}
	first.end(verdict) // and does not take the place from the other
	if r.source.proving == nil {
		t.Error("the place was taken from its holder")
	}
}

// Modes, suites, transfers and versions of other times have answers of their
// own; none is negotiated down to.
func TestWhatIsNotSpokenIsRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*transport.KeycopyHello)
		want   transport.KeycopyFault
	}{
		"version 2": {func(h *transport.KeycopyHello) { h.Version = 2 }, transport.KeycopyVersionRefused},
		"mode direct": {func(h *transport.KeycopyHello) {
			h.Mode, h.Share, h.Code = transport.KeycopyDirect, nil, make([]byte, sealedSize)
		}, transport.KeycopyModeRefused},
		"mode kek": {func(h *transport.KeycopyHello) {
			h.Mode, h.Share, h.Code = transport.KeycopyKEK, nil, make([]byte, sealedSize)
		}, transport.KeycopyModeRefused},
		"suite 2": {func(h *transport.KeycopyHello) { h.Suite = 2 }, transport.KeycopyModeRefused},
	} {
		r := newRig(t, 1)
		sc, tc := newChannels()
		g, err := r.target.newRun(t.Context(), tc)
		if err != nil {
			t.Fatal(err)
		}
		var h transport.KeycopyHello
		if err := transport.DecodeKeycopy(g.hello, &h); err != nil {
			t.Fatal(err)
		}
		tt.change(&h)
		body, err := transport.Marshal(h.KeycopyHelloBody)
		if err != nil {
			t.Fatal(err)
		}
		h.Admit = g.fleet.admitTarget(body) // by somebody who has the security code
		f, err := transport.EncodeKeycopy(&h)
		if err != nil {
			t.Fatal(err)
		}
		wantFault(t, name, r.source.newRun(sc).consume(t.Context(), f), tt.want, false)
		if r.sourceLedger.counted != 0 {
			t.Errorf("%s was counted", name)
		}
	}
}

// A Target with an identity signs the receipt, and only its own key will do.
func TestReceiptIsSignedByTheIdentity(t *testing.T) {
	key, spki := identity(t)
	other, otherSPKI := identity(t)
	for name, tt := range map[string]struct {
		key    *ecdsa.PrivateKey // that signs; nil does not
		shown  []byte            // in TLS
		peer   transport.Name    // as the Source sees it
		device transport.DeviceID
		source transport.KeycopyFault // 0: the copy succeeds
		target transport.KeycopyFault
	}{
		"identity":                  {key, spki, "nav-002", transport.NewDeviceID(spki), 0, 0},
		"no identity":               {nil, nil, "", transport.DeviceID{'T'}, 0, 0},
		"unsigned":                  {nil, spki, "nav-002", transport.NewDeviceID(spki), transport.KeycopyAuthFailed, transport.KeycopyAuthFailed},
		"signed without identity":   {key, spki, "", transport.NewDeviceID(spki), transport.KeycopyProtocol, transport.KeycopyProtocol},
		"another key than in TLS":   {other, spki, "nav-002", transport.NewDeviceID(spki), transport.KeycopyAborted, transport.KeycopyAborted},
		"another device than shown": {key, spki, "nav-002", transport.NewDeviceID(otherSPKI), transport.KeycopyAuthFailed, transport.KeycopyAuthFailed},
	} {
		r := newRig(t, 1)
		if tt.key != nil {
			r.targetConfig.Identity = tt.key
		}
		r.targetConfig.Device = tt.device
		r.arm("12345678", "12345678")
		sc, tc := newChannels()
		sc.TargetKey, tc.TargetKey, sc.Peer = tt.shown, tt.shown, tt.peer
		sourceErr, targetErr := r.pump(t.Context(), sc, tc, asSent)
		if tt.source == 0 {
			if sourceErr != nil || targetErr != nil || r.sourceLedger.deals[0].Name != tt.peer {
				t.Errorf("%s: %v, %v", name, sourceErr, targetErr)
			}
		} else if tt.source != transport.KeycopyAborted && !errors.Is(sourceErr, tt.source) || !errors.Is(targetErr, tt.target) || r.source.outcome.Reason == EndDelivered {
			t.Errorf("%s: %v, %v", name, sourceErr, targetErr)
		}
	}
}

// A Source that shows an identity is held to its device.
func TestSourceIsHeldToItsIdentity(t *testing.T) {
	_, spki := identity(t)
	for _, device := range []transport.DeviceID{transport.NewDeviceID(spki), {'S'}} {
		r := newRig(t, 1)
		r.sourceConfig.Device = device
		r.arm("12345678", "12345678")
		sc, tc := newChannels()
		sc.SourceKey, tc.SourceKey, tc.Peer = spki, spki, "nav-001"
		_, targetErr := r.pump(t.Context(), sc, tc, asSent)
		if good := device == transport.NewDeviceID(spki); good != (targetErr == nil) || !good && r.targetLedger.counted != 0 {
			t.Errorf("device %s: %v", device.Short(), targetErr)
		}
	}
}

// A receipt for some of the items is believed for those; one for items that
// are not there is not.
func TestReceiptStatus(t *testing.T) {
	deal := &Transaction{Status: []byte{0b1000_0101, 0b10}}
	for i := range 10 {
		deal.Items = append(deal.Items, transport.KeycopyEntry{ID: transport.Name(string(rune('a' + i)))})
	}
	if want := []transport.Name{"a", "c", "h", "j"}; checkStatus(deal.Status, 10) != nil || !slices.Equal(deal.Taken(), want) {
		t.Errorf("%v", deal.Taken())
	}
	for _, status := range [][]byte{nil, {1}, {1, 1, 1}, {0, 0b100}} {
		if err := checkStatus(status, 10); err == nil {
			t.Errorf("%b accepted", status)
		}
	}
}

// The operator calls it off: the code is gone, and no further key leaves.
func TestDisarm(t *testing.T) {
	r := newRig(t, 3)
	r.source.Disarm()
	_, targetErr := r.copyOnce(t)
	wantFault(t, "target", targetErr, transport.KeycopyNotArmed, true)
	r.target.Wipe()
	r.wantWiped(t)
	r = newRig(t, 3)
	items := 0
	sc, tc := newChannels()
	sourceErr, _ := r.pump(t.Context(), sc, tc, func(h hop) transport.KeycopyFrame {
		if h.frame.Type == transport.KeycopyTypeItem {
			if items++; items == 2 {
				r.source.Disarm()
			}
		}
		return h.frame
	})
	wantFault(t, "source", sourceErr, transport.KeycopyAborted, false)
	if items != 2 {
		t.Errorf("%d items left", items)
	}
	r.wantInstalled(t, nil)
	if o := r.ended(t); o.Reason != EndDisarmed || o.Transaction == nil {
		t.Errorf("%+v", o)
	}
	// Between the verdict and the grant.
	r = newRig(t, 1)
	r.sourceLedger.onWrite = func(what string) {
		if what == "succeed" {
			r.source.Disarm()
		}
	}
	sourceErr, _ = r.copyOnce(t)
	wantFault(t, "source", sourceErr, transport.KeycopyNotArmed, false)
	if len(r.sourceLedger.deals) != 0 {
		t.Error("something was offered")
	}
}

// A locked role gives no verdict, right or wrong.
func TestLockedRoleGivesNoVerdict(t *testing.T) {
	r := newRig(t, 1)
	for range AttemptsPerWindow {
		if err := r.sourceLedger.log.Count(r.now.Wall); err != nil {
			t.Fatal(err)
		}
	}
	sourceErr, targetErr := r.copyOnce(t)
	wantFault(t, "source", sourceErr, transport.KeycopyNotArmed, false)
	wantFault(t, "target", targetErr, transport.KeycopyNotArmed, true)
	if !errors.Is(sourceErr, ErrLocked) {
		t.Error(sourceErr)
	}
	r = newRig(t, 1)
	for range CodeAttempts {
		if err := r.targetLedger.log.CountTyped(r.now.Wall, r.target.code, rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	sourceErr, targetErr = r.copyOnce(t)
	wantFault(t, "target", targetErr, transport.KeycopyAborted, false)
	if !errors.Is(targetErr, ErrLocked) || r.sourceLedger.counted != 0 {
		t.Error(targetErr, sourceErr)
	}
}

// An attempt that could not be counted, because the role is locked or the disk
// failed, is not judged: the answer is the same for a right code and a wrong
// one, and it is held against nobody. req: C3
func TestUncountedAttemptGetsNoVerdict(t *testing.T) {
	for _, digits := range []string{"12345678", "00000000"} {
		for want, spoil := range map[transport.KeycopyFault]func(*rig){
			transport.KeycopyNotArmed: func(r *rig) {
				r.sourceLedger.log = AttemptLog{Since: r.now.Wall.Unix(), Level: 1}
			},
			transport.KeycopyStoreFailed: func(r *rig) { r.sourceLedger.failOn = "count" },
		} {
			r := newRig(t, 1)
			r.target = NewTarget(r.targetConfig, r.typed(digits))
			spoil(r)
			sc, tc := newChannels()
			sourceErr, targetErr := r.pump(t.Context(), sc, tc, func(h hop) transport.KeycopyFrame { return noKeyFrames(t, h) })
			wantFault(t, "source, code "+digits, sourceErr, want, false)
			wantFault(t, "target, code "+digits, targetErr, want, true)
			if r.sourceLedger.counted != 0 || r.source.failures != 0 || slices.Contains(r.kinds(), EventRefused) {
				t.Errorf("%s, code %s: %d counted, %d failures, events %v", want, digits, r.sourceLedger.counted, r.source.failures, r.kinds())
			}
			if state, _ := r.source.State(); state != Armed {
				t.Errorf("%s, code %s: %s", want, digits, state)
			}
			r.wantInstalled(t, nil)
		}
	}
}

func TestWatchEndsWithTheCode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		clock := NewClock()
		r.sourceConfig.Clock = clock
		code, err := NewOperatorCode(rand.Reader, clock())
		if err != nil {
			t.Fatal(err)
		}
		s := NewSource(r.sourceConfig, code)
		start := time.Now()
		o := s.Watch(t.Context())
		if took := time.Since(start); o.Reason != EndExpired || took != CodeLifetime || code.digits.Len() != 0 {
			t.Errorf("%+v after %v", o, took)
		}
		if !slices.Equal(r.kinds(), []EventKind{EventExpired}) {
			t.Errorf("%v", r.kinds())
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if code, err = NewOperatorCode(rand.Reader, clock()); err != nil {
			t.Fatal(err)
		}
		if o := NewSource(r.sourceConfig, code).Watch(ctx); o.Reason != EndDisarmed || code.digits.Len() != 0 {
			t.Errorf("%+v", o)
		}
	})
}

func TestStatesHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for s := sourceHello; s <= sourceResumed; s++ {
		seen[s.String()] = true
	}
	for s := Armed; s <= Ended; s++ {
		seen[s.String()] = true
	}
	if len(seen) != 14 || sourceState(99).String() != "state 99" || ArmState(9).String() != "unknown" {
		t.Errorf("%v", seen)
	}
	seen = map[string]bool{}
	for s := targetHello; s <= targetResumed; s++ {
		seen[s.String()] = true
	}
	if len(seen) != 12 || targetState(99).String() != "state 99" {
		t.Errorf("%v", seen)
	}
}
