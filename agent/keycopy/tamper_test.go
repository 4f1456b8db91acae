package keycopy

// What happens to messages that are changed, replayed, reflected or out of turn.

import (
	"errors"
	"fmt"
	"testing"

	"github.com/kagimori/kagimori/transport"
)

// judgeBroken checks a run that was tampered with at frame n of the good run's
// types: somebody noticed, and nothing was installed unless the tampering came
// after the Target had everything in good order.
func (r *rig) judgeBroken(t testing.TB, what string, at transport.KeycopyType, sourceErr, targetErr error) {
	t.Helper()
	installed := len(r.targetLedger.received)
	switch at {
	case transport.KeycopyTypeReceipt:
		if sourceErr == nil || targetErr == nil || installed != len(r.records) || r.source.outcome.Reason == EndDelivered {
			t.Errorf("%s: source %v, target %v, %d installed", what, sourceErr, targetErr, installed)
		}
	case transport.KeycopyTypeClose:
		if targetErr == nil || installed != len(r.records) {
			t.Errorf("%s: target %v, %d installed", what, targetErr, installed)
		}
	default:
		if sourceErr == nil || targetErr == nil || installed != 0 {
			t.Errorf("%s: source %v, target %v, %d installed", what, sourceErr, targetErr, installed)
		}
	}
}

// Messages of the same run, out of turn or a second time.
func TestMessagesOutOfTurn(t *testing.T) {
	for _, typ := range []transport.KeycopyType{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 99} {
		for n := range 8 {
			r := newRig(t, 2)
			sc, tc := newChannels()
			var at transport.KeycopyType
			sourceErr, targetErr := r.pump(t.Context(), sc, tc, func(h hop) transport.KeycopyFrame {
				if h.n == n {
					at = h.frame.Type
					h.frame.Type = typ
				}
				return h.frame
			})
			if at != typ {
				r.judgeBroken(t, fmt.Sprintf("%s as %s", at, typ), at, sourceErr, targetErr)
			}
		}
	}
	for n := range 8 {
		r := newRig(t, 2)
		sc, tc := newChannels()
		var last transport.KeycopyFrame
		var at transport.KeycopyType
		sourceErr, targetErr := r.pump(t.Context(), sc, tc, func(h hop) transport.KeycopyFrame {
			if h.n == n {
				at, h.frame = h.frame.Type, last
			}
			last = h.frame
			return h.frame
		})
		if at != transport.KeycopyTypeHello { // there was none before
			r.judgeBroken(t, fmt.Sprintf("the frame before in place of %s", at), at, sourceErr, targetErr)
		}
	}
}

// An end that is fed with its own messages and tags does not authenticate.
func TestReflectionIsRefused(t *testing.T) {
	r := newRig(t, 1)
	_, tc := newChannels()
	g, err := r.target.newRun(t.Context(), tc)
	if err != nil {
		t.Fatal(err)
	}
	defer g.end()
	hello, _, err := g.create()
	if err != nil {
		t.Fatal(err)
	}
	wantFault(t, "HELLO to its sender", g.consume(t.Context(), hello), transport.KeycopyProtocol, false)
	// Its own share, nonce and MAC as those of a Source.
	var m transport.KeycopyHello
	if err := transport.DecodeKeycopy(hello, &m); err != nil {
		t.Fatal(err)
	}
	ack, err := transport.EncodeKeycopy(&transport.KeycopyHelloAck{KeycopyHelloAckBody: transport.KeycopyHelloAckBody{Nonce: m.Nonce, Share: *m.Share}, Admit: m.Admit})
	if err != nil {
		t.Fatal(err)
	}
	wantFault(t, "its own share", g.consume(t.Context(), ack), transport.KeycopyAuthFailed, false)
	// Ta as Tb: in a good run, GRANT with the tag of PROOF.
	r = newRig(t, 1)
	sc, tc := newChannels()
	var proof transport.KeycopyProof
	sourceErr, targetErr := r.pump(t.Context(), sc, tc, func(h hop) transport.KeycopyFrame {
		switch h.frame.Type {
		case transport.KeycopyTypeProof:
			err = transport.DecodeKeycopy(h.frame, &proof)
		case transport.KeycopyTypeGrant:
			var grant transport.KeycopyGrant
			err = errors.Join(err, transport.DecodeKeycopy(h.frame, &grant))
			grant.Tag = proof.Tag
			h.frame, _ = transport.EncodeKeycopy(&grant)
		}
		return h.frame
	})
	if err != nil {
		t.Fatal(err)
	}
	r.judgeBroken(t, "Ta as Tb", transport.KeycopyTypeGrant, sourceErr, targetErr)
	// A terminal that fetches from itself.
	r = newRig(t, 1)
	r.targetConfig.Device = r.sourceConfig.Device
	r.arm("12345678", "12345678")
	_, targetErr = r.copyOnce(t)
	wantFault(t, "target", targetErr, transport.KeycopyProtocol, false)
}
