package keycopy

// The modes of figures 4 and 5: what direct and kek do otherwise than pake.

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/kagimori/kagimori/transport"
)

// modeRig is a rig whose ends speak this mode and no other, and have identity
// certificates, and the two views of a connection between them.
func modeRig(t testing.TB, mode transport.KeycopyMode, keys int) (r *rig, channels func() (source, target transport.KeycopyChannel)) {
	t.Helper()
	r = newRig(t, keys)
	_, sourceKey := identity(t)
	key, targetKey := identity(t)
	s, g := &r.sourceConfig, &r.targetConfig
	s.Modes, g.Modes = []transport.KeycopyMode{mode}, []transport.KeycopyMode{mode}
	s.Device, g.Device, g.Identity = transport.NewDeviceID(sourceKey), transport.NewDeviceID(targetKey), key
	r.arm("12345678", "12345678")
	return r, func() (sc, tc transport.KeycopyChannel) {
		sc, tc = newChannels()
		for _, ch := range []*transport.KeycopyChannel{&sc, &tc} {
			ch.Mode, ch.Identified, ch.SourceKey, ch.TargetKey = mode, true, sourceKey, targetKey
		}
		sc.Peer, tc.Peer = "nav-002", "nav-001"
		return sc, tc
	}
}

// In each mode the keys arrive, and all that could open them is destroyed when
// the patent says. req: C3, C4, C5, C6, C7
func TestEveryModeCopies(t *testing.T) {
	for mode, want := range map[transport.KeycopyMode][]transport.KeycopyType{
		transport.KeycopyPAKE:   {1, 2, 3, 4, 5, 5, 6, 9},
		transport.KeycopyDirect: {1, 4, 5, 5, 6, 9},
		transport.KeycopyKEK:    {1, 4, 5, 5, 6, 9},
	} {
		r, channels := modeRig(t, mode, 2)
		sc, tc := channels()
		s := r.source.newRun(sc)
		g, err := r.target.newRun(t.Context(), tc)
		if err != nil {
			t.Fatal(err)
		}
		var types []transport.KeycopyType
		sourceErr, targetErr := pumpRuns(t.Context(), s, g, func(h hop) transport.KeycopyFrame {
			types = append(types, h.frame.Type)
			var gone [][]byte
			switch h.frame.Type {
			case transport.KeycopyTypeItem:
				if bytes.Equal(s.keys.item, make([]byte, keySize)) || (mode == transport.KeycopyKEK) != (len(s.keys.kek) == keySize && len(g.keys.kek) == keySize) ||
					!bytes.Equal(s.keys.kek, g.keys.kek) || !bytes.Equal(s.keys.item, g.keys.item) {
					t.Errorf("%s: item keys %x, %x; KEK %x, %x", mode, s.keys.item, g.keys.item, s.keys.kek, g.keys.kek)
				}
			case transport.KeycopyTypeReceipt: // the Target has the keys durably
				gone = append(gone, g.keys.item, g.keys.kek, r.secrets[3])
			case transport.KeycopyTypeClose: // the Source has the receipt durably
				gone = append(gone, s.keys.item, s.keys.kek, r.secrets[2])
			}
			for i, b := range gone {
				if !bytes.Equal(b, make([]byte, len(b))) {
					t.Errorf("%s: at %s secret %d is still there", mode, h.frame.Type, i)
				}
			}
			return h.frame
		})
		s.end(sourceErr)
		g.end()
		if sourceErr != nil || targetErr != nil || !slices.Equal(types, want) {
			t.Errorf("%s: %v, %v, %v", mode, sourceErr, targetErr, types)
		}
		r.wantInstalled(t, r.records)
		r.wantWiped(t)
		if d := r.sourceLedger.deals[0]; d.Mode != mode || d.Name != "nav-002" || d.Peer != r.targetConfig.Device {
			t.Errorf("%s: recorded as %+v", mode, d)
		}
		if r.sourceLedger.counted != 1 || r.targetLedger.counted != 1 || r.sourceLedger.failures()+r.targetLedger.failures() != 0 {
			t.Errorf("%s: %d and %d attempts", mode, r.sourceLedger.counted, r.targetLedger.counted)
		}
	}
}

// A wrong operator code, and a sealed code that does not open, send no key, are
// counted before the verdict, and look the same; the third kills the code.
// req: C3
func TestWrongSealedCode(t *testing.T) {
	for _, mode := range []transport.KeycopyMode{transport.KeycopyDirect, transport.KeycopyKEK} {
		r, channels := modeRig(t, mode, 1)
		for i := range CodeAttempts {
			r.target.Wipe()
			r.target = NewTarget(r.targetConfig, r.typed(fmt.Sprintf("1234567%d", i)))
			sc, tc := channels()
			r.sourceLedger.writes = nil
			sourceErr, targetErr := r.pump(t.Context(), sc, tc, func(h hop) transport.KeycopyFrame { return noKeyFrames(t, h) })
			wantFault(t, "source", sourceErr, transport.KeycopyAuthFailed, false)
			wantFault(t, "target", targetErr, transport.KeycopyAuthFailed, true)
			if r.sourceLedger.failures() != i+1 || r.targetLedger.failures() != i+1 || !slices.Equal(r.sourceLedger.writes, []string{"count"}) {
				t.Errorf("%s: %d and %d failures after %d attempts, written %v", mode, r.sourceLedger.failures(), r.targetLedger.failures(), i+1, r.sourceLedger.writes)
			}
		}
		r.wantWiped(t)
		if o := r.ended(t); o.Reason != EndKilled || o.Transaction != nil {
			t.Errorf("%s: %+v", mode, o)
		}
		r.wantInstalled(t, nil)

		// Somebody with the security code, whose sealed code does not open.
		r, channels = modeRig(t, mode, 1)
		sc, tc := channels()
		sourceErr, _ := r.pump(t.Context(), sc, tc, func(h hop) transport.KeycopyFrame {
			if h.frame.Type == transport.KeycopyTypeHello {
				h.frame = r.resigned(t, sc, h.frame, func(m *transport.KeycopyHello) { m.Code[0] ^= 1 })
			}
			return noKeyFrames(t, h)
		})
		wantFault(t, "sealed code that does not open", sourceErr, transport.KeycopyAuthFailed, false)
		if r.sourceLedger.failures() != 1 || r.source.failures != 1 {
			t.Errorf("%s: not counted", mode)
		}
	}
}

// resigned is a HELLO that somebody with the security code has changed.
func (r *rig) resigned(t testing.TB, ch transport.KeycopyChannel, f transport.KeycopyFrame, change func(*transport.KeycopyHello)) transport.KeycopyFrame {
	t.Helper()
	var m transport.KeycopyHello
	if err := transport.DecodeKeycopy(f, &m); err != nil {
		t.Fatal(err)
	}
	fleet, err := newFleetKeys(t.Context(), r.targetConfig.Code, m.Mode, &ch)
	if err != nil {
		t.Fatal(err)
	}
	change(&m)
	body, err := transport.Marshal(m.KeycopyHelloBody)
	if err != nil {
		t.Fatal(err)
	}
	m.Admit = fleet.admitTarget(body)
	if f, err = transport.EncodeKeycopy(&m); err != nil {
		t.Fatal(err)
	}
	return f
}

// Without the security code nothing is opened, nothing counted at the Source,
// and the Target's code stays as good as it was wherever it was not judged.
// req: C1, C3
func TestSealedCodeIsAdmittedFirst(t *testing.T) {
	for _, mode := range []transport.KeycopyMode{transport.KeycopyDirect, transport.KeycopyKEK} {
		r, channels := modeRig(t, mode, 1)
		right := r.targetConfig.Code
		r.targetConfig.Code = hmacCode([]byte("another fleet's security code..."), "default", 2)
		r.target = NewTarget(r.targetConfig, r.typed("12345678"))
		sc, tc := channels()
		sourceErr, targetErr := r.pump(t.Context(), sc, tc, func(h hop) transport.KeycopyFrame { return noKeyFrames(t, h) })
		wantFault(t, "source", sourceErr, transport.KeycopyAuthFailed, false)
		wantFault(t, "target", targetErr, transport.KeycopyAuthFailed, true)
		if state, _ := r.source.State(); state != Armed || r.sourceLedger.counted != 0 {
			t.Errorf("%s: %s, %d counted", mode, state, r.sourceLedger.counted)
		}
		// Refusals before the verdict cost nothing at either end.
		r, channels = modeRig(t, mode, 1)
		r.targetConfig.Code.ID.Epoch = 9
		r.target = NewTarget(r.targetConfig, r.typed("12345678"))
		sc, tc = channels()
		_, targetErr = r.pump(t.Context(), sc, tc, asSent)
		wantFault(t, "unknown epoch", targetErr, transport.KeycopyCodeUnknown, true)
		if !r.target.Usable() || r.targetLedger.counted != 0 || r.sourceLedger.counted != 0 {
			t.Errorf("%s: an unknown epoch has cost the code", mode)
		}
		code := r.target.code // the shell dials again with the code as it is
		r.targetConfig.Code = right
		r.target = NewTarget(r.targetConfig, code)
		sc, tc = channels()
		if s, g := r.pump(t.Context(), sc, tc, asSent); s != nil || g != nil {
			t.Error(s, g)
		}
	}
}

// A mode is spoken where it is enabled and where identities are that it needs:
// else nothing is sent or counted, and no other mode is tried. req: C3
func TestModePolicy(t *testing.T) {
	for name, tt := range map[string]struct {
		mode   transport.KeycopyMode
		change func(r *rig, sc, tc *transport.KeycopyChannel)
		frames int // until somebody refuses
	}{
		"Source: not enabled": {transport.KeycopyDirect, func(r *rig, _, _ *transport.KeycopyChannel) { r.sourceConfig.Modes = nil }, 2},
		"Source: only the other": {transport.KeycopyPAKE, func(r *rig, _, _ *transport.KeycopyChannel) {
			r.sourceConfig.Modes = []transport.KeycopyMode{transport.KeycopyKEK}
		}, 2},
		"Target: not enabled": {transport.KeycopyKEK, func(r *rig, _, _ *transport.KeycopyChannel) {
			r.targetConfig.Modes, r.targetConfig.Mode = nil, transport.KeycopyKEK
		}, 0},
		"Source: another than in TLS":  {transport.KeycopyDirect, func(_ *rig, sc, _ *transport.KeycopyChannel) { sc.Mode = transport.KeycopyPAKE }, 2},
		"Target: another than in TLS":  {transport.KeycopyDirect, func(_ *rig, _, tc *transport.KeycopyChannel) { tc.Mode = transport.KeycopyPAKE }, 0},
		"Source: no identity":          {transport.KeycopyDirect, func(_ *rig, sc, _ *transport.KeycopyChannel) { sc.Identified = false }, 2},
		"Source: Target without":       {transport.KeycopyKEK, func(_ *rig, sc, _ *transport.KeycopyChannel) { sc.Peer = "" }, 2},
		"Target: no identity":          {transport.KeycopyKEK, func(_ *rig, _, tc *transport.KeycopyChannel) { tc.Identified = false }, 0},
		"Target: Source without":       {transport.KeycopyDirect, func(_ *rig, _, tc *transport.KeycopyChannel) { tc.Peer = "" }, 0},
		"pake, required at the Source": {transport.KeycopyPAKE, func(r *rig, sc, _ *transport.KeycopyChannel) { r.sourceConfig.RequireIdentity, sc.Peer = true, "" }, 2},
		"pake, required at the Target": {transport.KeycopyPAKE, func(r *rig, _, tc *transport.KeycopyChannel) { r.targetConfig.RequireIdentity, tc.Peer = true, "" }, 0},
		"pake, required and not shown there": {transport.KeycopyPAKE, func(r *rig, _, tc *transport.KeycopyChannel) {
			r.targetConfig.RequireIdentity, tc.Identified = true, false
		}, 0},
	} {
		r, channels := modeRig(t, tt.mode, 1)
		sc, tc := channels()
		tt.change(r, &sc, &tc)
		r.arm("12345678", "12345678")
		n := 0
		sourceErr, targetErr := r.pump(t.Context(), sc, tc, func(h hop) transport.KeycopyFrame { n++; return noKeyFrames(t, h) })
		if !errors.Is(targetErr, transport.KeycopyModeRefused) || tt.frames > 0 && !errors.Is(sourceErr, transport.KeycopyModeRefused) || n != tt.frames {
			t.Errorf("%s: %v, %v after %d frames", name, sourceErr, targetErr, n)
		}
		if state, _ := r.source.State(); state != Armed || !r.target.Usable() || r.sourceLedger.counted+r.targetLedger.counted != 0 {
			t.Errorf("%s: %s, %d and %d counted", name, state, r.sourceLedger.counted, r.targetLedger.counted)
		}
	}
	// Identities that are there do no harm, and required ones are enough.
	r, channels := modeRig(t, transport.KeycopyPAKE, 1)
	r.sourceConfig.RequireIdentity, r.targetConfig.RequireIdentity = true, true
	r.arm("12345678", "12345678")
	sc, tc := channels()
	if s, g := r.pump(t.Context(), sc, tc, asSent); s != nil || g != nil {
		t.Error(s, g)
	}
}

// What was begun goes on in a mode that was switched off since: keys that are
// disabled wait for it. A new copy in it is refused, and so is going on in
// another mode than the transaction's.
func TestResumeInAModeThatIsOff(t *testing.T) {
	for _, mode := range transport.KeycopyModes() {
		a := flow{mode, true, true}.ready(t, "12345678")
		off := []transport.KeycopyMode{transport.KeycopyPAKE}
		if mode == transport.KeycopyPAKE {
			off = []transport.KeycopyMode{transport.KeycopyDirect}
		}
		a.sourceConfig.Modes, a.targetConfig.Modes = off, off
		a.rig.source, a.rig.target = NewResponder(a.sourceConfig), NewTarget(a.targetConfig, a.rig.target.code)
		sc, tc := a.channels()
		sc.Mode = off[0]
		sourceErr, _ := a.again(t, sc, tc, asSent)
		wantFault(t, "another mode", sourceErr, transport.KeycopyTxnUnknown, false)
		sc.Mode = mode
		if s, g := a.again(t, sc, tc, asSent); s != nil || g != nil || len(a.targetLedger.received) != 2 || a.sourceLedger.last().Phase != transport.KeycopyDone {
			t.Errorf("%s: %v, %v", mode, s, g)
		}
	}
}
