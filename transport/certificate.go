package transport

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Who may call himself what. The same checks serve the broker, the gate, the
// agent and both ends of a key copy, so that none of them can forget one.
//
// The identity is taken from the leaf alone, and the chain is built from that
// very leaf: a forged leaf beside a good certificate proves nothing.

// ErrCertificate is any certificate that does not prove the name asked for.
var ErrCertificate = errors.New("certificate refused")

// NotYetValid says when a refused certificate would become valid. A terminal
// with a bad clock waits for that; it never deletes (DESIGN D12).
type NotYetValid struct{ At time.Time }

func (e NotYetValid) Error() string {
	return "not valid before " + e.At.UTC().Format(time.RFC3339) + ": wait, or set the clock"
}

// VerifyTerminal checks an identity certificate, leaf first: issued under
// roots, valid at the given time, for client authentication only, naming
// exactly one terminal of the deployment.
func VerifyTerminal(chain []*x509.Certificate, roots *x509.CertPool, deployment Name, at time.Time) (Name, error) {
	u, err := verifyClient(chain, roots, deployment, at)
	if err != nil {
		return "", err
	}
	if u.Terminal == "" {
		return "", fmt.Errorf("%w: %s is not a terminal's identity", ErrCertificate, u)
	}
	return u.Terminal, nil
}

// VerifyCredential checks a service certificate as VerifyTerminal does, and
// that it is for this service (req: L5, L18). It returns the credential's id.
func VerifyCredential(chain []*x509.Certificate, roots *x509.CertPool, deployment, service Name, at time.Time) (Name, error) {
	u, err := verifyClient(chain, roots, deployment, at)
	if err != nil {
		return "", err
	}
	switch {
	case u.Credential == "":
		return "", fmt.Errorf("%w: %s is not a credential for a service", ErrCertificate, u)
	case u.Service != service:
		return "", fmt.Errorf("%w: it is for service %s, this is %s", ErrCertificate, u.Service, service)
	}
	return u.Credential, nil
}

// VerifyManagement checks the management server's certificate: besides the
// host name it must carry the server's URI, which no gate is ever given.
func VerifyManagement(chain []*x509.Certificate, roots *x509.CertPool, deployment Name, host string, at time.Time) error {
	if err := VerifyServer(chain, roots, host, at); err != nil {
		return err
	}
	if uris := chain[0].URIs; len(uris) != 1 || uris[0].String() != (URI{Deployment: deployment, Server: true}).String() {
		return fmt.Errorf("%w: this is a server of the deployment, but not its management server", ErrCertificate)
	}
	return nil
}

// VerifyServer checks a server certificate for a host name or IP address.
func VerifyServer(chain []*x509.Certificate, roots *x509.CertPool, host string, at time.Time) error {
	if err := verifyChain(chain, roots, x509.ExtKeyUsageServerAuth, at); err != nil {
		return err
	}
	if err := chain[0].VerifyHostname(host); err != nil {
		return fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	return nil
}

func verifyClient(chain []*x509.Certificate, roots *x509.CertPool, deployment Name, at time.Time) (URI, error) {
	if err := verifyChain(chain, roots, x509.ExtKeyUsageClientAuth, at); err != nil {
		return URI{}, err
	}
	leaf := chain[0]
	if !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) || len(leaf.UnknownExtKeyUsage) > 0 {
		return URI{}, fmt.Errorf("%w: it must be for client authentication only", ErrCertificate)
	}
	if len(leaf.URIs) != 1 || len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0 {
		return URI{}, fmt.Errorf("%w: it must carry exactly one name", ErrCertificate)
	}
	u, err := ParseURI(leaf.URIs[0].String())
	if err != nil {
		return URI{}, fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	if u.Deployment != deployment {
		return URI{}, fmt.Errorf("%w: it is of deployment %s, this is %s", ErrCertificate, u.Deployment, deployment)
	}
	return u, nil
}

func verifyChain(chain []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage, at time.Time) error {
	if len(chain) == 0 {
		return fmt.Errorf("%w: none was sent", ErrCertificate)
	}
	if len(chain) > MaxChain {
		return fmt.Errorf("%w: chain of %d, the limit is %d", ErrCertificate, len(chain), MaxChain)
	}
	leaf := chain[0]
	if leaf.IsCA {
		return fmt.Errorf("%w: it is a CA's", ErrCertificate)
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage}})
	switch {
	case err != nil && at.Before(leaf.NotBefore):
		return fmt.Errorf("%w: %w", ErrCertificate, NotYetValid{leaf.NotBefore})
	case err != nil:
		return fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	return nil
}

// LatestStart is the latest notBefore in a chain, the moment at which a
// terminal whose clock is not trusted judges it, if that is later than its
// clock floor (DESIGN D12).
func LatestStart(chain []*x509.Certificate) (t time.Time) {
	for _, c := range chain {
		if c.NotBefore.After(t) {
			t = c.NotBefore
		}
	}
	return t
}

// ParseChain reads DER certificates, leaf first, at most MaxChain of at most
// MaxCertificate bytes.
func ParseChain(der [][]byte) ([]*x509.Certificate, error) {
	if len(der) == 0 || len(der) > MaxChain {
		return nil, fmt.Errorf("%w: chain of %d certificates, want 1 to %d", ErrMalformed, len(der), MaxChain)
	}
	chain := make([]*x509.Certificate, 0, len(der))
	for _, d := range der {
		if len(d) > MaxCertificate {
			return nil, fmt.Errorf("%w: certificate of %d bytes, the limit is %d", ErrMalformed, len(d), MaxCertificate)
		}
		c, err := x509.ParseCertificate(d)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
		}
		chain = append(chain, c)
	}
	return chain, nil
}
