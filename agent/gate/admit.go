package gate

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// Who may pass. All of it is asked at the TLS handshake; what can change while
// a connection lives is asked again later. [GATE-1] [GATE-2]

// An identity is what a certificate proved. It is set once, at the handshake.
type identity struct {
	credential, subject transport.Name
	serial              transport.Serial
	issuer              transport.ListIssuerID // zero: none whose lists are held
	from, until         time.Time
}

// A refusal is an error with the reason that is counted and told.
type refusal struct {
	reason Reason
	err    error
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// identify checks the chain that a terminal sent, leaf first, and what the
// handshake can know about revocation.
//
// A terminal with a sound credential is let through the handshake when there
// is no usable list, because a TLS alert could not tell it what to do: judge
// then refuses each of its requests.
func (g *Gate) identify(chain []*x509.Certificate) (identity, error) {
	place, err := g.source.Place()
	if err != nil {
		return identity{}, &refusal{NotReady, err}
	}
	now := g.now()
	g.crls.load(place.Roots, now)
	id, err := transport.VerifyCredential(chain, place.Roots, place.Deployment, place.Service, now.judged)
	if err != nil {
		return identity{}, &refusal{classify(err), err}
	}
	leaf := chain[0]
	subject, err := subjectOf(leaf)
	if err != nil {
		return identity{}, &refusal{NotForService, err}
	}
	who := identity{credential: id, subject: subject, serial: transport.NewSerial(leaf.SerialNumber), from: leaf.NotBefore, until: validUntil(chain)}
	who.issuer = g.crls.issuerOf(leaf)
	if reason := g.judge(who, now); reason != Admitted && !passing(reason) {
		return identity{}, &refusal{reason, fmt.Errorf("credential %s, serial %s: %s", id, who.serial, reason)}
	}
	return who, nil
}

// judge says whether a terminal that proved who it is may go on.
func (g *Gate) judge(who identity, now moment) Reason {
	switch {
	case now.judged.Before(who.from):
		return NotYetValid
	case now.judged.After(who.until):
		return Expired
	}
	return g.crls.check(who.issuer, who.serial, now)
}

// passing says that the gate is the reason, not the terminal: it may pass.
func passing(r Reason) bool { return r == NoList || r == StaleList }

func classify(err error) Reason {
	if _, ok := errors.AsType[transport.NotYetValid](err); ok {
		return NotYetValid
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return UnknownIssuer
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok && e.Reason == x509.Expired {
		return Expired
	}
	return NotForService
}

var commonName = asn1.ObjectIdentifier{2, 5, 4, 3}

// subjectOf is the one common name of a certificate: the place registered at
// the service. It goes into a header, so it must be a name.
func subjectOf(leaf *x509.Certificate) (transport.Name, error) {
	n := 0
	for _, a := range leaf.Subject.Names {
		if a.Type.Equal(commonName) {
			n++
		}
	}
	if n != 1 {
		return "", fmt.Errorf("%w: its subject has %d common names, want one", transport.ErrCertificate, n)
	}
	name, err := transport.ParseName(leaf.Subject.CommonName)
	if err != nil {
		return "", fmt.Errorf("%w: subject: %w", transport.ErrCertificate, err)
	}
	return name, nil
}

// validUntil is when the leaf ends, or before it the CA above it.
func validUntil(chain []*x509.Certificate) time.Time {
	leaf, above := chain[0], time.Time{}
	for _, c := range chain[1:] {
		if string(c.RawSubject) == string(leaf.RawIssuer) && c.NotAfter.After(above) {
			above = c.NotAfter
		}
	}
	if !above.IsZero() && above.Before(leaf.NotAfter) {
		return above
	}
	return leaf.NotAfter
}

// tlsConfig is made anew for each connection: it carries the session that is
// to learn who is there. A resumed session would skip the checks, so there are
// no tickets.
func (g *Gate) tlsConfig(s *session) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{"http/1.1"},
		SessionTicketsDisabled: true,
		ClientAuth:             tls.RequireAnyClientCert,
		Time:                   g.source.Time,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			c, err := g.source.Certificate()
			if err != nil {
				return nil, &refusal{NotReady, err}
			}
			return c, nil
		},
		VerifyConnection: func(cs tls.ConnectionState) (err error) {
			s.who, err = g.identify(cs.PeerCertificates)
			return err
		},
	}
}
