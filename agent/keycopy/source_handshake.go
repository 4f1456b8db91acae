package keycopy

// How a run of the Source finds out that its peer has both codes: HELLO in,
// HELLO_ACK out, PROOF in, and what GRANT answers to it. In modes direct and kek
// HELLO has all that the verdict needs.

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
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
	if m.Suite != transport.KeycopyCPace21 {
		return fail(transport.KeycopyModeRefused, errors.New(m.Suite.String()))
	}
	if err := r.source.cfg.allows(m.Mode, &r.channel); err != nil {
		return err
	}
	armed := r.source.armed()
	err := r.admit(ctx)
	if armed != nil { // whoever is not admitted learns nothing more, but is a stranger
		return armed
	}
	if err != nil {
		return err
	}
	if m.Mode.SealsCode() {
		return r.compare(ctx, f.Body)
	}
	return r.exchange(f.Body)
}

// admit finds out whether the peer holds the security code, and is the device
// that it shows.
func (r *sourceRun) admit(ctx context.Context) (err error) {
	m := &r.hello
	code, known := r.code(m.CodeID)
	if !known {
		return fail(transport.KeycopyCodeUnknown, fmt.Errorf("the peer uses security code %s", m.CodeID))
	}
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
	return nil
}

// exchange runs CPace and prepares HELLO_ACK. Nothing is known yet of the
// peer's operator code.
func (r *sourceRun) exchange(hello []byte) error {
	var password []byte
	if err := r.source.enter(r, func(code *OperatorCode) { password = r.fleet.password(code) }); err != nil {
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

// compare opens the operator code in HELLO and judges it (req: C3). The attempt
// is counted before it is opened, and one that does not open goes the same way
// as a wrong one.
func (r *sourceRun) compare(ctx context.Context, hello []byte) error {
	m := &r.hello
	less := m.KeycopyHelloBody
	less.Code = nil
	fields, err := transport.Marshal(less)
	if err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	var own, x []byte
	if err := r.source.enter(r, func(code *OperatorCode) { own, x = code.padded(), r.fleet.codeKey(code) }); err != nil {
		return err
	}
	defer clear(own)
	if err := r.acknowledge(hello, x); err != nil {
		return err
	}
	err = r.source.judge(ctx, r, func() bool {
		theirs, err := r.fleet.openCode(m.Code, fields)
		if err != nil {
			theirs = make([]byte, paddedCode)
		}
		defer clear(theirs)
		return subtle.ConstantTimeCompare(own, theirs) == 1 && err == nil
	})
	if err != nil {
		return err
	}
	r.state = sourceGranting
	return r.prepareGrant(ctx)
}

// acknowledge makes what GRANT has in place of HELLO_ACK, the keys, and in mode
// kek the key-encryption key (req: C6). It wipes x, the own code's key.
func (r *sourceRun) acknowledge(hello, x []byte) (err error) {
	defer clear(x)
	end := &r.source.cfg.End
	g := &r.grantBody
	g.Ack, g.Admit = &transport.KeycopyGrantAck{Source: end.Device}, &transport.KeycopyTag{}
	var kek []byte
	if r.hello.Mode == transport.KeycopyKEK {
		kek = make([]byte, keySize)
	}
	for _, b := range [][]byte{g.Ack.Nonce[:], g.Ack.Txn[:], kek} {
		if _, err := io.ReadFull(end.Random, b); err != nil {
			return fail(transport.KeycopyAborted, err)
		}
	}
	body, err := transport.Marshal(g.Ack)
	if err != nil {
		return fail(transport.KeycopyAborted, err)
	}
	*g.Admit = r.fleet.admitSource(hello, body)
	head, err := transport.Marshal(transport.KeycopyGrantHead{Ack: *g.Ack, Admit: *g.Admit})
	if err != nil {
		return fail(transport.KeycopyAborted, err)
	}
	if r.keys, err = newRunKeys(r.hello.Mode, &r.channel, x, r.fleet, hello, head); err != nil {
		return fail(transport.KeycopyAborted, err)
	}
	r.txn, r.keys.txn = g.Ack.Txn, g.Ack.Txn
	if kek == nil {
		return nil
	}
	if g.KEK, err = r.fleet.sealKEK(kek, r.keys.transcript); err == nil {
		err = r.keys.takeKEK(&r.channel, kek, r.fleet)
	}
	if err != nil {
		clear(kek)
		return fail(transport.KeycopyAborted, err)
	}
	return nil
}

// sealGrant makes GRANT, which answers the Target's proof with ours.
func (r *sourceRun) sealGrant(manifest []byte) (err error) {
	r.keys.manifest = sha256.Sum256(manifest)
	g := &r.grantBody
	g.Tag, g.Manifest = r.keys.sourceTag(r.answer, g.KEK), manifest
	if r.grant, err = transport.EncodeKeycopy(g); err != nil {
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
