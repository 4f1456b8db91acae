package keycopy

// How a run of the Target and its peer prove the codes to each other: HELLO
// out, HELLO_ACK in, PROOF out, and the Source's tag in GRANT.

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

// newRun computes HELLO: the one call under the security code, and our share.
func (t *Target) newRun(ctx context.Context, ch transport.KeycopyChannel) (*targetRun, error) {
	r := &targetRun{target: t, channel: ch, mode: transport.KeycopyPAKE, state: targetHello}
	if !t.Usable() {
		return r, fail(transport.KeycopyNotArmed, errors.New("the code typed here is used up or too old"))
	}
	if err := r.checkIdentity(); err != nil {
		return r, err
	}
	m := transport.KeycopyHello{KeycopyHelloBody: transport.KeycopyHelloBody{Version: transport.KeycopyVersion, Mode: r.mode,
		Suite: transport.KeycopyCPace21, CodeID: t.cfg.Code.ID, Target: t.cfg.Device, Want: t.cfg.want(), Select: t.cfg.Select, Parent: t.cfg.Parent}}
	var err error
	if r.fleet, err = newFleetKeys(ctx, t.cfg.Code, m.Mode, &ch); err != nil {
		return r, fail(transport.KeycopyAborted, err)
	}
	password := r.fleet.password(t.code)
	defer clear(password)
	if r.pace, err = startCPace(t.cfg.Random, password, channelID(m.Mode, m.Suite, &ch), sessionID(&ch)); err != nil {
		return r, fail(transport.KeycopyAborted, err)
	}
	if _, err = io.ReadFull(t.cfg.Random, m.Nonce[:]); err != nil {
		return r, fail(transport.KeycopyAborted, err)
	}
	m.Share = &r.pace.share
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
	m, cfg := &r.ack, &r.target.cfg
	if err := transport.DecodeKeycopy(f, m); err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	body, err := transport.Marshal(m.KeycopyHelloAckBody)
	if err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	if !same(m.Admit, r.fleet.admitSource(r.hello.Body, body)) {
		return fail(transport.KeycopyAuthFailed, errors.New("the peer does not hold our security code"))
	}
	if err := sameDevice(r.channel.Peer, r.channel.SourceKey, m.Source); err != nil {
		return err
	}
	if m.Source == cfg.Device {
		return fail(transport.KeycopyProtocol, errors.New("this terminal is fetching from itself"))
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
	if err := cfg.Attempts.Count(ctx, r.target.code); err != nil {
		return fail(transport.KeycopyAborted, fmt.Errorf("count the attempt: %w", err))
	}
	r.state = targetProof
	return nil
}

// consumeGrant checks the Source's tag before it reads anything else.
func (r *targetRun) consumeGrant(ctx context.Context, f transport.KeycopyFrame) error {
	var m transport.KeycopyGrant
	cfg := &r.target.cfg
	if err := transport.DecodeKeycopy(f, &m); err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	r.keys.manifest = sha256.Sum256(m.Manifest)
	if !same(m.Tag, r.keys.sourceTag(r.keys.targetTag())) {
		return fail(transport.KeycopyAuthFailed, errors.New("the peer does not know the operator code"))
	}
	if err := cfg.Attempts.Succeed(ctx); err != nil {
		return fail(transport.KeycopyStoreFailed, fmt.Errorf("count the attempt: %w", err))
	}
	return r.granted(ctx, m.Manifest)
}
