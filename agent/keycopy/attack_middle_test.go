package keycopy

// Mallory has the security code and sits between the terminals. guess_test.go
// has what he gets in mode pake: one verdict for each run.

import (
	"bytes"
	"errors"
	"testing"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
)

// In the modes that send the code he needs an identity certificate of the fleet,
// such as a stolen terminal's, and then has the code and the keys in one run.
// This is what the page says of them, and why they are off. req: C3
func TestManInTheMiddleOfModesThatSendTheCode(t *testing.T) {
	for _, mode := range []transport.KeycopyMode{transport.KeycopyDirect, transport.KeycopyKEK} {
		r, channels := modeRig(t, mode, 1)
		r.arm("48151623", "48151623")
		key, public := identity(t)
		// The Target dials him, and takes his certificate for a Source's.
		_, tc := channels()
		tc.SourceKey, tc.Peer = public, "nav-666"
		g, err := r.target.newRun(t.Context(), tc)
		if err != nil {
			t.Fatal(err)
		}
		hello, _, err := g.create()
		if err != nil {
			t.Fatal(err)
		}
		eve := &eve{t: t, sc: []byte(fleetKey), channel: tc, helloRaw: hello.Body}
		if err := transport.DecodeKeycopy(hello, &eve.hello); err != nil {
			t.Fatal(err)
		}
		fields := eve.hello.KeycopyHelloBody
		fields.Code = nil
		padded, ok := opens(eve.scp("code-wrap"), 0, eve.hello.Code, hash(less(t, fields)))
		if !ok {
			t.Fatalf("%s: he does not read the code", mode)
		}
		// He dials the Source with it.
		sc, mc := channels()
		sc.TargetKey, mc.TargetKey, sc.Peer = public, public, "nav-666"
		his := newLedger(r.targetConfig.Clock, true)
		cfg := r.targetConfig
		cfg.Device, cfg.Identity, cfg.Attempts, cfg.Journal = transport.NewDeviceID(public), key, his, his
		mallory := NewTarget(cfg, &OperatorCode{hsm.NewSecret(bytes.TrimRight(padded, "\x00")), r.now})
		run, err := mallory.newRun(t.Context(), mc)
		if err != nil {
			t.Fatal(err)
		}
		s := r.source.newRun(sc)
		sourceErr, hisErr := pumpRuns(t.Context(), s, run, asSent)
		s.end(sourceErr)
		run.end()
		g.end()
		if sourceErr != nil || hisErr != nil || len(his.received) != 1 {
			t.Errorf("%s: he gets %d keys: %v, %v", mode, len(his.received), sourceErr, hisErr)
		}
		// What is left: the Source has his name and his signature on record.
		if d := r.sourceLedger.last(); d.Name != "nav-666" || len(d.Signature) == 0 {
			t.Errorf("%s: recorded as %+v", mode, d)
		}
	}
}

// Without such a certificate he stops at TLS's word: the Target sends nothing,
// and the Source does not look at a code. req: C3
func TestIdentitiesStopTheManInTheMiddle(t *testing.T) {
	for _, mode := range []transport.KeycopyMode{transport.KeycopyDirect, transport.KeycopyKEK} {
		r, channels := modeRig(t, mode, 1)
		_, public := identity(t)
		_, tc := channels()
		tc.SourceKey, tc.Peer = public, "" // nobody's certificate
		g, err := r.target.newRun(t.Context(), tc)
		if !errors.Is(err, transport.KeycopyModeRefused) || g.hello.Body != nil {
			t.Errorf("%s: the Target sends %d bytes: %v", mode, len(g.hello.Body), err)
		}
		g.end()
		if !r.target.Usable() {
			t.Errorf("%s: the code is gone", mode)
		}
		// A HELLO of somebody who knows all codes, and has no identity.
		sc, mc := channels()
		run, err := r.target.newRun(t.Context(), mc)
		if err != nil {
			t.Fatal(err)
		}
		sc.TargetKey, sc.Peer = nil, ""
		s := r.source.newRun(sc)
		err = s.consume(t.Context(), run.hello)
		wantFault(t, "no identity", err, transport.KeycopyModeRefused, false)
		s.end(err)
		run.end()
		if r.sourceLedger.counted != 0 {
			t.Errorf("%s: counted", mode)
		}
		// One who shows an identity and claims to be another device.
		sc, mc = channels()
		if run, err = r.target.newRun(t.Context(), mc); err != nil {
			t.Fatal(err)
		}
		other := transport.DeviceID{'X'}
		f := r.resigned(t, mc, run.hello, func(m *transport.KeycopyHello) { m.Target = other })
		s = r.source.newRun(sc)
		err = s.consume(t.Context(), f)
		wantFault(t, "another device", err, transport.KeycopyAuthFailed, false)
		s.end(err)
		run.end()
		if r.sourceLedger.counted != 0 {
			t.Errorf("%s: counted", mode)
		}
	}
}

// An epoch that was retired, one that is not there yet and another group are
// named, in all modes, and cost nothing; the code goes on to the next epoch.
func TestUnknownSecurityCodesCostNothing(t *testing.T) {
	for _, mode := range transport.KeycopyModes() {
		for _, id := range []transport.KeycopyCodeID{{Group: "default"}, {Group: "default", Epoch: 3}, {Group: "other", Epoch: 2}} {
			r, channels := modeRig(t, mode, 1)
			r.targetConfig.Code.ID = id
			r.target = NewTarget(r.targetConfig, r.typed("12345678"))
			sc, tc := channels()
			sourceErr, targetErr := r.pump(t.Context(), sc, tc, func(h hop) transport.KeycopyFrame { return noKeyFrames(t, h) })
			wantFault(t, "source", sourceErr, transport.KeycopyCodeUnknown, false)
			wantFault(t, "target", targetErr, transport.KeycopyCodeUnknown, true)
			if state, _ := r.source.State(); state != Armed || r.sourceLedger.counted+r.targetLedger.counted != 0 || !r.target.Usable() {
				t.Errorf("%s, %s: %s, counted %d and %d", mode, id, state, r.sourceLedger.counted, r.targetLedger.counted)
			}
			r.targetConfig.Code = r.sourceConfig.Codes[1] // the epoch before is in force
			r.target = NewTarget(r.targetConfig, r.target.code)
			sc, tc = channels()
			if s, g := r.pump(t.Context(), sc, tc, asSent); s != nil || g != nil {
				t.Errorf("%s: with the epoch before: %v, %v", mode, s, g)
			}
		}
	}
}
