package agent

import (
	"bytes"
	"context"
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"net/url"
	"time"

	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// The terminal's side of enrollment (DESIGN D8, req: L3, L4): a pure
// conversation. Messages come in, messages go out; the link moves them.

// enrollOrder is all that one enrollment needs to know.
type enrollOrder struct {
	terminal   transport.Name
	deployment transport.Name
	device     transport.DeviceID
	commonKey  transport.Sensitive // lent
	roots      *x509.CertPool
	identity   crypto.Signer
	level      string
	exporter   []byte // EnrollExporterSize bytes of the TLS connection
	judge      func([]*x509.Certificate) time.Time
	random     io.Reader
	prover     *prover // nil: key storage that cannot prove what it is
}

// enrollment is one conversation: hello, then answer for each message until it
// returns a result or an error.
type enrollment struct {
	enrollOrder
	first  []byte // body (1) as sent
	second []byte // body (2) as received; nil until then
	proof  proof  // of a TPM, if the server asks for one
}

// enrolled is what a terminal gets out of it.
type enrolled struct {
	chain      [][]byte // DER, leaf first
	serverTime time.Time
	code       *transport.WrappedCode // nil, or what only the chip can open
}

// hello starts a conversation and gives its first message.
func (o enrollOrder) hello() (*enrollment, []byte, error) {
	body := &transport.EnrollHello{Terminal: o.terminal, Device: o.device}
	if _, err := io.ReadFull(o.random, body.Nonce[:]); err != nil {
		return nil, nil, fmt.Errorf("enroll: %w", err)
	}
	payload, sent, err := packKeeping(o.random, body)
	if err != nil {
		return nil, nil, fmt.Errorf("enroll: %w", err)
	}
	return &enrollment{enrollOrder: o, first: sent}, payload, nil
}

// answer takes the server's next message. Exactly one of reply, result and
// error is set, or an error and a reply that is the last word.
func (e *enrollment) answer(ctx context.Context, payload []byte) (reply []byte, result *enrolled, err error) {
	env, err := transport.Unpack(payload, transport.MaxEnrollEnvelope)
	if err != nil {
		return nil, nil, fmt.Errorf("enroll: %w", err)
	}
	if env.Type == (*transport.Fault)(nil).Type() {
		fault, err := transport.Open[transport.Fault](env)
		if err != nil {
			return nil, nil, fmt.Errorf("enroll: %w", err)
		}
		return nil, nil, e.refused(fault)
	}
	switch {
	case e.second == nil:
		reply, err = e.challenge(env)
	case env.Type == (*transport.EnrollAttest)(nil).Type():
		reply, err = e.attest(ctx, env)
	case env.Type == (*transport.EnrollActivate)(nil).Type():
		reply, err = e.activate(ctx, env)
	default:
		result, err = e.certificate(env)
	}
	return reply, result, err
}

// challenge checks that the server holds the common key, then proves that this
// terminal does and asks for its certificate. (2) → (3)
func (e *enrollment) challenge(env *transport.Envelope) ([]byte, error) {
	c, err := transport.Open[transport.EnrollChallenge](env)
	if err != nil {
		return nil, fmt.Errorf("enroll: %w", err)
	}
	want, err := transport.EnrollServerMAC(e.commonKey, e.exporter, e.first, *c)
	if err != nil {
		return nil, fmt.Errorf("enroll: %w", err)
	}
	if !hmac.Equal(want[:], c.MAC[:]) {
		// An unknown terminal gets a random MAC, so this is all one can know.
		return nil, control.Problemf(control.Refused,
			"have an administrator check that terminal "+string(e.terminal)+" exists; if it was enrolled anew since this bundle was made, provision the new bundle",
			"the server does not hold the common key of terminal %s", e.terminal)
	}
	csr, err := identityRequest(e.identity, e.deployment, e.terminal)
	if err != nil {
		return nil, fmt.Errorf("enroll: %w", err)
	}
	r := transport.EnrollRequest{CSR: csr, Level: e.level}
	r.MAC, err = transport.EnrollTerminalMAC(e.commonKey, e.exporter, e.first, env.Body, r)
	if err != nil {
		return nil, fmt.Errorf("enroll: %w", err)
	}
	e.second = env.Body
	payload, sent, err := packKeeping(e.random, &r)
	if err != nil {
		return nil, fmt.Errorf("enroll: %w", err)
	}
	e.proof.third = sent
	if len(payload) > transport.MaxEnrollEnvelope {
		return nil, fmt.Errorf("enroll: request of %d bytes, the limit is %d", len(payload), transport.MaxEnrollEnvelope)
	}
	return payload, nil
}

// certificate checks that what came is this device's identity. (4)
func (e *enrollment) certificate(env *transport.Envelope) (*enrolled, error) {
	c, err := transport.Open[transport.EnrollCertificate](env)
	if err != nil {
		return nil, fmt.Errorf("enroll: %w", err)
	}
	chain, err := transport.ParseChain(c.Chain)
	if err != nil {
		return nil, fmt.Errorf("enroll: identity certificate: %w", err)
	}
	if err := checkIdentity(chain, e.roots, e.deployment, e.terminal, e.identity.Public(), e.judge(chain)); err != nil {
		return nil, fmt.Errorf("enroll: identity certificate: %w", err)
	}
	if err := e.checkCode(c.Code); err != nil {
		return nil, fmt.Errorf("enroll: %w", err)
	}
	return &enrolled{chain: c.Chain, serverTime: time.Unix(c.Time, 0), code: c.Code}, nil
}

// checkIdentity verifies an identity certificate and that it is for this key
// and this terminal.
func checkIdentity(chain []*x509.Certificate, roots *x509.CertPool, deployment, terminal transport.Name, key crypto.PublicKey, at time.Time) error {
	name, err := transport.VerifyTerminal(chain, roots, deployment, at)
	if err != nil {
		return err
	}
	if name != terminal {
		return fmt.Errorf("it is for terminal %s, this is %s", name, terminal)
	}
	return certifies(chain[0], key)
}

// certifies checks that a certificate is for a public key.
func certifies(leaf *x509.Certificate, key crypto.PublicKey) error {
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return err
	}
	if !bytes.Equal(spki, leaf.RawSubjectPublicKeyInfo) {
		return errors.New("it is for another key")
	}
	return nil
}

// refused turns a fault into what a technician can act on.
func (e *enrollment) refused(f *transport.Fault) error {
	switch f.Code {
	case transport.FaultDevice:
		return control.Problemf(control.Refused, fmt.Sprintf("if this is the wrong bundle: stop the daemon, remove its state directory, and provision the right one; "+
			"if this device takes the place of the other: have an administrator run `kagimori-server terminal reenroll %s`, which cuts the other one off, and provision the bundle it makes", e.terminal),
			"terminal %s is enrolled with another device", e.terminal)
	case transport.FaultAttest:
		return control.Problemf(control.Refused, fmt.Sprintf("have an administrator look into the server's log: if this board's TPM is to be believed, the CA of its maker belongs into ek_roots; "+
			"else remove terminal %s and add it without --attest", e.terminal), "enroll: %w", f)
	case transport.FaultLater:
		return control.Problemf(control.Unavailable, "nothing to do: this terminal tries again by itself", "enroll: %w", f)
	}
	return control.Problemf(control.Refused,
		"have an administrator check terminal "+string(e.terminal)+" with `kagimori-server terminal show "+string(e.terminal)+"`", "enroll: %w", f)
}

// identityRequest makes the PKCS#10 request for the device's identity key.
func identityRequest(key crypto.Signer, deployment, terminal transport.Name) ([]byte, error) {
	u := transport.URI{Deployment: deployment, Terminal: terminal}
	return signingRequest(key, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: string(terminal)}, URIs: []*url.URL{u.URL()}, SignatureAlgorithm: x509.ECDSAWithSHA256,
	})
}

func signingRequest(key crypto.Signer, template *x509.CertificateRequest) ([]byte, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate request: %w", err)
	}
	if len(csr) > transport.MaxCertificate {
		return nil, fmt.Errorf("certificate request of %d bytes, the limit is %d", len(csr), transport.MaxCertificate)
	}
	return csr, nil
}

// packKeeping packs a body and also gives its encoding, as the MACs need it.
// No time: an enrolling terminal has none that counts.
func packKeeping(random io.Reader, body transport.Body) (payload, encoded []byte, err error) {
	payload, err = transport.Pack(random, time.Time{}, nil, body)
	if err != nil {
		return nil, nil, err
	}
	env, err := transport.Unpack(payload, transport.MaxEnvelope)
	if err != nil {
		return nil, nil, err
	}
	return payload, env.Body, nil
}
