package keycopy

// How a run of the Target and its peer prove the codes to each other: HELLO
// out, HELLO_ACK in, PROOF out, and the Source's tag in GRANT. In modes direct
// and kek, HELLO out and GRANT in are all.

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"

	"github.com/kagimori/kagimori/transport"
)

// newRun computes HELLO: the one call under the security code, and our share or
// the sealed operator code.
func (t *Target) newRun(ctx context.Context, ch transport.KeycopyChannel) (*targetRun, error) {
	mode := t.Mode()
	r := &targetRun{target: t, channel: ch, mode: mode, state: targetHello}
	if !t.Usable() {
		return r, fail(transport.KeycopyNotArmed, errors.New("the code typed here is used up or too old"))
	}
	if err := t.cfg.allows(mode, &ch); err != nil {
		return r, err
	}
	if err := r.checkIdentity(); err != nil {
		return r, err
	}
	m := transport.KeycopyHello{KeycopyHelloBody: transport.KeycopyHelloBody{Version: transport.KeycopyVersion, Mode: mode,
		Suite: transport.KeycopyCPace21, CodeID: t.cfg.Code.ID, Target: t.cfg.Device, Want: t.cfg.want(), Select: t.cfg.Select, Parent: t.cfg.Parent}}
	var err error
	if r.fleet, err = newFleetKeys(ctx, t.cfg.Code, mode, &ch); err != nil {
		return r, fail(transport.KeycopyAborted, err)
	}
	prove := r.share
	if mode.SealsCode() {
		prove = r.seal
	}
	if err := prove(&m.KeycopyHelloBody); err != nil {
		return r, fail(transport.KeycopyAborted, err)
	}
	body, err := transport.Marshal(m.KeycopyHelloBody)
	if err != nil {
		return r, fail(transport.KeycopyAborted, err)
	}
	m.Admit = r.fleet.admitTarget(body)
	if r.hello, err = transport.EncodeKeycopy(&m); err != nil {
		return r, fail(transport.KeycopyAborted, err)
	}
	return r, nil
}

// Mode is the one that a Fetch proposes, and that its connection must be for.
func (t *Target) Mode() transport.KeycopyMode {
	if t.cfg.Mode != "" {
		return t.cfg.Mode
	}
	return t.cfg.modes()[0]
}

// share begins CPace.
func (r *targetRun) share(m *transport.KeycopyHelloBody) (err error) {
	password := r.fleet.password(r.target.code)
	defer clear(password)
	random := r.target.cfg.Random
	if r.pace, err = startCPace(random, password, channelID(m.Mode, m.Suite, &r.channel), sessionID(&r.channel)); err != nil {
		return err
	}
	m.Share = &r.pace.share
	_, err = io.ReadFull(random, m.Nonce[:])
	return err
}

// seal puts the operator code into HELLO, under the security code (req: C3).
func (r *targetRun) seal(m *transport.KeycopyHelloBody) error {
	if _, err := io.ReadFull(r.target.cfg.Random, m.Nonce[:]); err != nil {
		return err
	}
	fields, err := transport.Marshal(m)
	if err != nil {
		return err
	}
	r.codeKey = r.fleet.codeKey(r.target.code)
	m.Code, err = r.fleet.sealCode(r.target.code, fields)
	return err
}

// sent is the state after HELLO.
func (r *targetRun) sent() targetState {
	if r.pace == nil {
		return targetGrant
	}
	return targetAck
}

// checkIdentity finds out early if the receipt's signature would not do.
func (r *targetRun) checkIdentity() error {
	signer := r.target.cfg.Identity
	if signer == nil {
		return nil
	}
	spki, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil {
		return fail(transport.KeycopyAborted, fmt.Errorf("identity key: %w", err))
	}
	if !bytes.Equal(spki, r.channel.TargetKey) {
		return fail(transport.KeycopyAborted, errors.New("the identity key is not the one shown in TLS"))
	}
	return nil
}

// consumeAck finishes CPace and counts the attempt: PROOF lets whoever is
// there test one guess against our code.
func (r *targetRun) consumeAck(ctx context.Context, f transport.KeycopyFrame) error {
	m := &r.ack
	if err := transport.DecodeKeycopy(f, m); err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	body, err := transport.Marshal(m.KeycopyHelloAckBody)
	if err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	if err := r.admit(m.Source, m.Admit, body); err != nil {
		return err
	}
	ada, adb := sha256.Sum256(r.hello.Body), sha256.Sum256(f.Body)
	isk, err := r.pace.initiate(ada[:], m.Share, adb[:])
	if err != nil {
		return fail(transport.KeycopyAuthFailed, err)
	}
	if r.keys, err = newRunKeys(r.mode, &r.channel, isk, r.fleet, r.hello.Body, f.Body); err != nil {
		return fail(transport.KeycopyAborted, err)
	}
	r.keys.txn = m.Txn
	if err := r.count(ctx); err != nil {
		return err
	}
	r.state = targetProof
	return nil
}

// admit checks that the peer has our security code, and is another device and
// the one that it shows; body is what its MAC covers.
func (r *targetRun) admit(source transport.DeviceID, tag transport.KeycopyTag, body []byte) error {
	if !same(tag, r.fleet.admitSource(r.hello.Body, body)) {
		return fail(transport.KeycopyAuthFailed, errors.New("the peer does not hold our security code"))
	}
	if err := sameDevice(r.channel.Peer, r.channel.SourceKey, source); err != nil {
		return err
	}
	if source == r.target.cfg.Device {
		return fail(transport.KeycopyProtocol, errors.New("this terminal is fetching from itself"))
	}
	return nil
}

// consumeGrant checks the Source's tag before it reads anything else.
func (r *targetRun) consumeGrant(ctx context.Context, f transport.KeycopyFrame) error {
	var m transport.KeycopyGrant
	cfg := &r.target.cfg
	if err := transport.DecodeKeycopy(f, &m); err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	mode := r.mode
	if (m.Ack != nil) != mode.SealsCode() || (len(m.KEK) > 0) != (mode == transport.KeycopyKEK) {
		return fail(transport.KeycopyProtocol, fmt.Errorf("GRANT is not of mode %q", mode))
	}
	var proof transport.KeycopyTag // Ta; modes without PROOF have zeros
	if m.Ack != nil {
		if err := r.consumeHead(ctx, &m); err != nil {
			return err
		}
	} else {
		proof = r.keys.targetTag()
	}
	r.keys.manifest = sha256.Sum256(m.Manifest)
	if !same(m.Tag, r.keys.sourceTag(proof, m.KEK)) {
		return fail(transport.KeycopyAuthFailed, errors.New("the peer does not know the operator code"))
	}
	if err := r.takeKEK(m.KEK); err != nil {
		return err
	}
	if err := cfg.Attempts.Succeed(ctx); err != nil {
		return fail(transport.KeycopyStoreFailed, fmt.Errorf("count the attempt: %w", err))
	}
	return r.granted(ctx, m.Manifest)
}

// consumeHead takes what GRANT has in place of HELLO_ACK, and counts the attempt
// before the verdict on the peer's tag. To send HELLO was none: who can read the
// code in it needs no guess, and who cannot gets none.
func (r *targetRun) consumeHead(ctx context.Context, m *transport.KeycopyGrant) error {
	body, err := transport.Marshal(m.Ack)
	if err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	if err := r.admit(m.Ack.Source, *m.Admit, body); err != nil {
		return err
	}
	head, err := transport.Marshal(transport.KeycopyGrantHead{Ack: *m.Ack, Admit: *m.Admit})
	if err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	if r.keys, err = newRunKeys(r.mode, &r.channel, r.codeKey, r.fleet, r.hello.Body, head); err != nil {
		return fail(transport.KeycopyAborted, err)
	}
	r.ack.Source, r.ack.Nonce, r.ack.Txn = m.Ack.Source, m.Ack.Nonce, m.Ack.Txn
	r.keys.txn = m.Ack.Txn
	return r.count(ctx)
}

// takeKEK opens the key-encryption key with our security code (req: C6).
func (r *targetRun) takeKEK(sealed []byte) error {
	if len(sealed) == 0 {
		return nil
	}
	kek, err := r.fleet.openKEK(sealed, r.keys.transcript)
	if err != nil {
		return fail(transport.KeycopyAuthFailed, fmt.Errorf("key-encryption key: %w", err))
	}
	if err := r.keys.takeKEK(&r.channel, kek, r.fleet); err != nil {
		return fail(transport.KeycopyAborted, err)
	}
	return nil
}

func (r *targetRun) count(ctx context.Context) error {
	if err := r.target.cfg.Attempts.Count(ctx, r.target.code); err != nil {
		return fail(transport.KeycopyAborted, fmt.Errorf("count the attempt: %w", err))
	}
	return nil
}

// refused looks at an ERROR that answers a sealed code. A Source that has judged
// it has seen a wrong one, which is counted here too; one that had another reason
// has not looked at it, and it is as good as new.
func (r *targetRun) refused(ctx context.Context, err error) error {
	e, ok := errors.AsType[*Error](err)
	if !ok || !e.Remote || r.state != targetGrant || r.keys != nil {
		return err
	}
	switch e.Fault {
	case transport.KeycopyVersionRefused, transport.KeycopyModeRefused, transport.KeycopyCodeUnknown, transport.KeycopyNotArmed, transport.KeycopyBusy:
		r.unread = true
	case transport.KeycopyAuthFailed:
		if failed := r.count(ctx); failed != nil {
			return failed
		}
	}
	return err
}
