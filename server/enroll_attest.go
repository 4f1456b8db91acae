package server

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/attest"
	"github.com/kagimori/kagimori/server/ca"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// Proof of a TPM at enrollment, the server's side (DESIGN D8, req: L3);
// transport/enroll_attest.go says what the messages are. It begins when the
// common key is proven: only then may a client send more, take longer and have
// certificates checked.

// attestTime is how long a terminal may take from its request on: a slow chip
// makes an RSA key in a minute.
const attestTime = 2 * time.Minute

// attestation is how far a terminal's proof is.
type attestation struct {
	request *transport.EnrollRequest // nil: no proof is asked for
	third   []byte                   // body (3) as it came
	proven  *attest.Proven           // nil until the evidence held
	fourth  [][]byte                 // bodies (3b) and (3c)
	secret  *hsm.Secret              // hidden in (3c)
}

// attestAsk asks for the proof, if the terminal must give one. Then asked is
// true, or out is a refusal.
func (s *Server) attestAsk(ctx context.Context, n *enrollment, m *transport.EnrollRequest, raw []byte) (out outcome, asked bool, err error) {
	var x store.Terminal
	err = s.store.View(ctx, func(tx *store.Tx) (err error) {
		x, err = tx.Terminal(n.hello.Terminal)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return outcome{}, false, nil // gone by now: enrollPin refuses it
	}
	if err != nil || x.Attest != store.AttestRequired {
		return outcome{}, false, err
	}
	if s.cfg.EKRoots == nil {
		return s.attestRefused(n, errors.New("this server knows no makers of TPMs: an administrator must set ek_roots in its configuration")), false, nil
	}
	n.attest.request, n.attest.third = m, raw
	return outcome{reply: &transport.EnrollAttest{}, attesting: true}, true, nil
}

// attestRefused says why, to the terminal and to the log.
func (s *Server) attestRefused(n *enrollment, why error) outcome {
	s.log.Warn("enrollment refused: the TPM is not proven", "terminal", n.hello.Terminal, "device", n.hello.Device.Short(), "err", why)
	text := why.Error()
	return refusal(transport.FaultAttest, strings.ToValidUTF8(text[:min(len(text), transport.MaxDetail)], "?"))
}

// attestStep takes the messages of a proof.
func (s *Server) attestStep(ctx context.Context, n *enrollment, e *transport.Envelope) (out outcome, more bool, err error) {
	if f, err := transport.Open[transport.Fault](e); err == nil {
		text := f.Error()
		s.log.Warn("enrollment ended: the terminal cannot prove a TPM", "terminal", n.hello.Terminal, "err", fmt.Sprintf("%.*q", transport.MaxDetail, text))
		return outcome{}, false, nil
	}
	if n.attest.proven == nil {
		return s.attestEvidence(n, e)
	}
	m, err := transport.Open[transport.EnrollActivated](e)
	if err != nil {
		return outcome{}, false, err
	}
	bodies := append([][]byte{n.helloRaw, n.challenge, n.attest.third}, n.attest.fourth...)
	mac := transport.EnrollActivatedMAC(n.key.Bytes(), n.attest.secret.Bytes(), n.exporter, bodies...)
	if !hmac.Equal(mac[:], m.MAC[:]) {
		return s.attestRefused(n, errors.New("the challenge was not opened by the TPM that it was made for")), false, nil
	}
	out, err = s.enrollProven(ctx, n, n.attest.request)
	return out, false, err
}

// attestEvidence checks what the chip shows and makes the challenge that only
// this chip can open.
func (s *Server) attestEvidence(n *enrollment, e *transport.Envelope) (out outcome, more bool, err error) {
	m, err := transport.Open[transport.EnrollEvidence](e)
	if err != nil {
		return outcome{}, false, err
	}
	request, err := ca.ParseRequest(n.attest.request.CSR)
	if err != nil {
		return refusal(transport.FaultRequest, err.Error()), false, nil
	}
	nonce := transport.EnrollAttestNonce(n.exporter, n.helloRaw, n.challenge, n.attest.third)
	proven, err := s.cfg.EKRoots.Verify(evidenceOf(m), request.SPKI, nonce, s.cfg.Now())
	if err != nil {
		return s.attestRefused(n, err), false, nil
	}
	challenge, secret, err := proven.Challenge()
	if err != nil {
		return s.attestRefused(n, err), false, nil
	}
	n.attest.proven, n.attest.secret = proven, secret
	reply := &transport.EnrollActivate{Credential: challenge.Credential, Secret: challenge.Secret}
	body, err := transport.Marshal(reply)
	if err != nil {
		return outcome{}, false, err
	}
	n.attest.fourth = [][]byte{e.Body, body}
	return outcome{reply: reply}, true, nil
}

func evidenceOf(m *transport.EnrollEvidence) *hsm.Evidence {
	return &hsm.Evidence{
		Endorsement: m.Endorsement, Chain: m.Chain, EK: m.EK, AK: m.AK, Root: m.Root, Identity: m.Identity,
		RootProof: hsm.Proof(m.RootProof), IdentityProof: hsm.Proof(m.IdentityProof),
	}
}

// attestCode is a security code on its way to a proven chip.
type attestCode struct {
	group store.Group
	root  []byte
	code  *hsm.Secret
}

// epoch is which code it is; 0 for nil.
func (c *attestCode) epoch() uint32 {
	if c == nil {
		return 0
	}
	return c.group.Epoch
}

func (c *attestCode) wipe() {
	if c != nil {
		c.code.Wipe()
	}
}

// wrap gives it to nobody but that chip; nil stays nil.
func (c *attestCode) wrap() (*transport.WrappedCode, error) {
	if c == nil {
		return nil, nil
	}
	w, err := attest.WrapMAC(c.root, c.code)
	if err != nil {
		return nil, err
	}
	return &transport.WrappedCode{Group: c.group.Name, Epoch: c.group.Epoch, Public: w.Public, Duplicate: w.Duplicate, Seed: w.Seed}, nil
}

// pin records which chip a device has proven, and takes out the security code
// for it: part of the transaction that enrolls. One chip is one live terminal.
// The state counts as it is now, not as it was when the proof was asked for.
func (a *attestation) pin(tx *store.Tx, name transport.Name, device transport.DeviceID) (*attestCode, error) {
	x, err := tx.Terminal(name)
	if err != nil {
		return nil, err
	}
	if a.proven == nil {
		if x.Attest == store.AttestRequired {
			return nil, enrollRefused(transport.FaultLater, "proof of a TPM is asked for by now")
		}
		return nil, tx.Endorse(device, nil)
	}
	e := store.Endorsement{Key: a.proven.Endorsement, Root: a.proven.Root}
	switch other, err := tx.EndorsedAs(e, name); {
	case err == nil:
		return nil, enrollRefused(transport.FaultAttest, fmt.Sprintf("this TPM is enrolled as %s; remove that one, or make a new bundle for it, first", other.Name))
	case !errors.Is(err, store.ErrNotFound):
		return nil, err
	}
	if err := tx.Endorse(device, &e); err != nil {
		return nil, err
	}
	g, err := tx.Group(x.Group)
	if err != nil {
		return nil, err
	}
	code, err := tx.SecurityCode(g)
	if err != nil {
		return nil, err
	}
	return &attestCode{group: g, root: e.Root, code: code}, nil
}
