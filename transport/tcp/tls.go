package tcp

// Whom TLS lets in. Either end may show an identity certificate, which must
// then be good, or a certificate without any name, which says nothing.

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// ErrForeign is a peer whose identity another deployment's server has issued.
var ErrForeign = errors.New("the two terminals belong to different deployments")

// ErrOtherKey is a Source that does not show the key that was asked for.
var ErrOtherKey = errors.New("another terminal answers than the one whose code was read")

// Unaccepted says whether err is the peer's TLS alert that it does not accept
// our identity. In TLS 1.3 a client learns that with its first read only.
func Unaccepted(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "remote error" && strings.Contains(op.Err.Error(), "bad certificate") // RFC 8446 §6.2, 42
}

// findings are what a handshake finds out.
type findings struct {
	peer    transport.Name        // the other end's, if it showed one
	mode    transport.KeycopyMode // agreed on
	offered []string              // to a Source, if it speaks none of these
}

// noProtocol is the alert of a Source that does not speak our mode.
const noProtocol = "no application protocol" // RFC 8446 §6.2, 120

// blame says what a failed handshake was about if that was the mode.
func (h *findings) blame(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" && strings.Contains(op.Err.Error(), noProtocol) {
		return fmt.Errorf("%w (%w)", transport.KeycopyModeRefused, err)
	}
	for _, m := range transport.KeycopyModes() {
		if slices.Contains(h.offered, m.ALPN()) {
			return fmt.Errorf("%w (the other terminal asked for mode %q, which is not enabled here)", transport.KeycopyModeRefused, m)
		}
	}
	return err
}

// protocols are the names of the modes.
func (cfg Config) protocols() (names []string) {
	for _, m := range cfg.Modes {
		names = append(names, m.ALPN())
	}
	if len(names) == 0 {
		names = []string{transport.KeycopyPAKE.ALPN()}
	}
	return names
}

// tls is the configuration of one connection; h gets what it finds out.
func (cfg Config) tls(server bool, h *findings) *tls.Config {
	protocols := cfg.protocols()
	c := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		CurvePreferences:       []tls.CurveID{tls.X25519MLKEM768},
		SessionTicketsDisabled: true,
		// Frames are whole before they are sent: small first records would only
		// cost system calls.
		DynamicRecordSizingDisabled: true,
		NextProtos:                  protocols,
		// A terminal's certificate is for client authentication only, which
		// Go's own check refuses in a server: VerifyConnection does it by hand.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) (err error) {
			h.peer, h.mode, err = cfg.check(state, !server)
			return err
		},
	}
	switch {
	case server:
		c.GetConfigForClient = func(client *tls.ClientHelloInfo) (*tls.Config, error) {
			if !slices.ContainsFunc(client.SupportedProtos, func(p string) bool { return slices.Contains(protocols, p) }) {
				h.offered = client.SupportedProtos
			}
			return nil, nil
		}
		c.Certificates = []tls.Certificate{*cfg.Certificate}
		c.ClientAuth = tls.RequestClientCert
	case cfg.Certificate != nil:
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cfg.Certificate, nil }
	}
	return c
}

// check judges the mode, and what the peer showed. Go's server lets a client pass
// that offers no protocol name, so that is checked here as well.
func (cfg Config) check(state tls.ConnectionState, required bool) (transport.Name, transport.KeycopyMode, error) {
	i := slices.IndexFunc(transport.KeycopyModes(), func(m transport.KeycopyMode) bool { return m.ALPN() == state.NegotiatedProtocol })
	if i < 0 || !slices.Contains(cfg.protocols(), state.NegotiatedProtocol) || state.CurveID != tls.X25519MLKEM768 || state.DidResume {
		return "", "", errors.New("the peer does not speak this version of the key copy")
	}
	name, err := cfg.identify(state, required)
	return name, transport.KeycopyModes()[i], err
}

// identify is the peer's name, if it showed an identity; that must be good.
func (cfg Config) identify(state tls.ConnectionState, required bool) (transport.Name, error) {
	chain := state.PeerCertificates
	if len(chain) == 0 {
		if required {
			return "", errors.New("the peer showed no certificate")
		}
		return "", nil
	}
	if len(chain) > transport.MaxChain {
		return "", fmt.Errorf("chain of %d certificates, the limit is %d", len(chain), transport.MaxChain)
	}
	if key, ok := chain[0].PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		return "", errors.New("the peer's key is not an ECDSA P-256 key")
	}
	if required && cfg.SourceKey != nil && KeyHash(chain[0]) != *cfg.SourceKey {
		return "", ErrOtherKey
	}
	if nameless(chain) {
		return "", nil
	}
	if cfg.Verify == nil {
		return "", errors.New("the peer shows an identity, and there is no root here to check it against")
	}
	name, err := cfg.Verify(chain)
	if _, unknown := errors.AsType[x509.UnknownAuthorityError](err); unknown {
		return "", fmt.Errorf("%w: the peer's identity: %w", ErrForeign, err)
	}
	if err != nil {
		return "", fmt.Errorf("the peer's identity: %w", err)
	}
	return name, nil
}

// nameless tells a certificate made for the moment: alone, self-issued, and
// without a name of any kind.
func nameless(chain []*x509.Certificate) bool {
	c := chain[0]
	return len(chain) == 1 && bytes.Equal(c.RawIssuer, c.RawSubject) &&
		len(c.URIs)+len(c.DNSNames)+len(c.IPAddresses)+len(c.EmailAddresses)+len(c.Subject.Names) == 0
}

// KeyHash is what an invitation knows a Source by: SHA-256 of its public key, DER.
func KeyHash(c *x509.Certificate) [sha256.Size]byte { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

// Shown is the certificate that a Source shows: its own, if it has one, or one
// made for the moment. Its Leaf is set.
func Shown(own *tls.Certificate) (*tls.Certificate, error) {
	if own == nil {
		return ephemeral()
	}
	return parsed(own)
}

// ephemeral makes a certificate without a name. Nobody judges its dates.
func ephemeral() (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0)}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	return parsed(&tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key})
}

// parsed gives a certificate its Leaf, so that no connection parses it again.
func parsed(c *tls.Certificate) (*tls.Certificate, error) {
	if c == nil || c.Leaf != nil {
		return c, nil
	}
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("own certificate: %w", err)
	}
	with := *c
	with.Leaf = leaf
	return &with, nil
}
