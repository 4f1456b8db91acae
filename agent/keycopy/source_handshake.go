package keycopy

// How a run of the Source finds out that its peer has both codes: HELLO in,
// HELLO_ACK out, PROOF in, and what GRANT answers to it.

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/kagimori/kagimori/transport"
)

func (r *sourceRun) consumeHello(ctx context.Context, f transport.KeycopyFrame) error {
	m := &r.hello
	if err := transport.DecodeKeycopy(f, m); err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	if m.Version != transport.KeycopyVersion {
		return fail(transport.KeycopyVersionRefused, nil)
	}
	if m.Mode != transport.KeycopyPAKE || m.Suite != transport.KeycopyCPace21 {
		return fail(transport.KeycopyModeRefused, fmt.Errorf("mode %q, %s", m.Mode, m.Suite))
	}
	if err := r.source.armed(); err != nil {
		return err
	}
	code, known := r.code(m.CodeID)
	if !known {
		return fail(transport.KeycopyCodeUnknown, fmt.Errorf("the peer uses security code %s", m.CodeID))
	}
	var err error
	if r.fleet, err = newFleetKeys(ctx, code, m.Mode, &r.channel); err != nil {
		return fail(transport.KeycopyAborted, err)
	}
	body, err := transport.Marshal(m.KeycopyHelloBody)
	if err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	if !same(m.Admit, r.fleet.admitTarget(body)) {
		return fail(transport.KeycopyAuthFailed, errors.New("the peer does not hold our security code"))
	}
	if err := sameDevice(r.channel.Peer, r.channel.TargetKey, m.Target); err != nil {
		return err
	}
	r.admitted = true
	return r.exchange(f.Body)
}

// exchange runs CPace and prepares HELLO_ACK. Nothing is known yet of the
// peer's operator code.
func (r *sourceRun) exchange(hello []byte) error {
	password, err := r.source.enter(r, r.fleet)
	if err != nil {
		return err
	}
	defer clear(password)
	m, end := &r.hello, &r.source.cfg.End
	pace, err := startCPace(end.Random, password, channelID(m.Mode, m.Suite, &r.channel), sessionID(&r.channel))
	if err != nil {
		return fail(transport.KeycopyAborted, err)
	}
	defer pace.wipe()
	ack := transport.KeycopyHelloAck{KeycopyHelloAckBody: transport.KeycopyHelloAckBody{Source: end.Device, Share: pace.share}}
	for _, b := range [][]byte{ack.Nonce[:], ack.Txn[:]} {
		if _, err := io.ReadFull(end.Random, b); err != nil {
			return fail(transport.KeycopyAborted, err)
		}
	}
	body, err := transport.Marshal(ack.KeycopyHelloAckBody)
	if err != nil {
		return fail(transport.KeycopyAborted, err)
	}
	ack.Admit = r.fleet.admitSource(hello, body)
	if r.ack, err = transport.EncodeKeycopy(&ack); err != nil {
		return fail(transport.KeycopyAborted, err)
	}
	ada, adb := sha256.Sum256(hello), sha256.Sum256(r.ack.Body)
	isk, err := pace.respond(*m.Share, ada[:], adb[:])
	if err != nil {
		return fail(transport.KeycopyAuthFailed, err)
	}
	if r.keys, err = newRunKeys(m.Mode, &r.channel, isk, r.fleet, hello, r.ack.Body); err != nil {
		return fail(transport.KeycopyAborted, err)
	}
	r.txn, r.keys.txn = ack.Txn, ack.Txn
	r.state = sourceAck
	return nil
}

func (r *sourceRun) consumeProof(ctx context.Context, f transport.KeycopyFrame) error {
	var m transport.KeycopyProof
	if err := transport.DecodeKeycopy(f, &m); err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	r.answer = m.Tag
	if err := r.source.judge(ctx, r, func() bool { return same(m.Tag, r.keys.targetTag()) }); err != nil {
		return err
	}
	r.state = sourceGranting
	return r.prepareGrant(ctx)
}

// sealGrant makes GRANT, which answers the Target's proof with ours.
func (r *sourceRun) sealGrant(manifest []byte) (err error) {
	r.keys.manifest = sha256.Sum256(manifest)
	r.grant, err = transport.EncodeKeycopy(&transport.KeycopyGrant{Tag: r.keys.sourceTag(r.answer), Manifest: manifest})
	if err != nil {
		return fail(transport.KeycopyAborted, err)
	}
	return nil
}

func (r *sourceRun) code(id transport.KeycopyCodeID) (SecurityCode, bool) {
	for _, c := range r.source.cfg.Codes {
		if c.ID == id {
			return c, true
		}
	}
	return SecurityCode{}, false
}
