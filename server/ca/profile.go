package ca

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// Issued is a certificate that was signed and is in nobody's hands yet.
type Issued struct {
	Serial   *big.Int
	Issuer   string
	Chain    [][]byte // DER, leaf first, without the root
	NotAfter time.Time
}

// Identity certifies a terminal or gate towards the management server.
func (c *CA) Identity(r *Request, terminal transport.Name, now time.Time) (Issued, error) {
	uri := transport.URI{Deployment: c.cfg.Deployment, Terminal: terminal}.URL()
	if err := r.fits(uri.String(), nil); err != nil {
		return Issued{}, err
	}
	return c.sign(Identity, profile{name: string(terminal), uri: uri, lifetime: c.cfg.IdentityLifetime}, r.Public, now)
}

// Credential certifies a terminal towards a service. No terminal's name is in
// it: it outlives terminals (DESIGN D7).
func (c *CA) Credential(r *Request, service, credential, subject transport.Name, now time.Time) (Issued, error) {
	uri := transport.URI{Deployment: c.cfg.Deployment, Service: service, Credential: credential}.URL()
	if err := r.fits(uri.String(), nil); err != nil {
		return Issued{}, err
	}
	return c.sign(Service, profile{name: string(subject), uri: uri, lifetime: c.cfg.ServiceLifetime}, r.Public, now)
}

// Gate certifies a gate towards terminals, under the names and addresses that
// are recorded for its service. The management server's are refused: with one
// of them a gate could receive terminals in its place.
func (c *CA) Gate(r *Request, service transport.Name, hosts []string, now time.Time) (Issued, error) {
	if len(hosts) == 0 {
		return Issued{}, fmt.Errorf("%w: service %s has no name", ErrRequest, service)
	}
	for _, name := range hosts {
		if err := CheckHost(name); err != nil {
			return Issued{}, err
		}
		if c.isHost(name) {
			return Issued{}, fmt.Errorf("%s is the management server's name: %w", name, ErrHost)
		}
	}
	if err := r.fits("", hosts); err != nil {
		return Issued{}, err
	}
	return c.sign(Server, profile{name: string(service), hosts: hosts, lifetime: c.cfg.ServerLifetime}, r.Public, now)
}

// Management certifies this server towards terminals and gates. It alone gets
// the server's URI.
func (c *CA) Management(public crypto.PublicKey, now time.Time) (Issued, error) {
	uri := transport.URI{Deployment: c.cfg.Deployment, Server: true}.URL()
	return c.sign(Server, profile{name: "management", uri: uri, hosts: c.cfg.Hosts, lifetime: c.cfg.ServerLifetime}, public, now)
}

// profile is what differs between certificates.
type profile struct {
	name     string // common name, for people
	uri      *url.URL
	hosts    []string
	lifetime time.Duration
}

func (c *CA) sign(issuer string, p profile, public crypto.PublicKey, now time.Time) (Issued, error) {
	i := c.by[issuer]
	now = now.Truncate(time.Second)
	if err := i.current(issuer, now); err != nil {
		return Issued{}, err
	}
	serial, err := newSerial(c.random)
	if err != nil {
		return Issued{}, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: p.name},
		NotBefore:             latest(now.Add(-c.cfg.Backdate), i.certificate.NotBefore),
		NotAfter:              earliest(now.Add(p.lifetime), i.certificate.NotAfter),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           usageOf(issuer),
		BasicConstraintsValid: true,
		CRLDistributionPoints: c.URLs(issuer),
		SignatureAlgorithm:    x509.ECDSAWithSHA256,
	}
	if p.uri != nil {
		template.URIs = []*url.URL{p.uri}
	}
	for _, host := range p.hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(c.random, template, i.certificate, public, i.key)
	if err != nil {
		return Issued{}, fmt.Errorf("sign certificate for %s: %w", p.name, err)
	}
	return Issued{Serial: serial, Issuer: issuer, Chain: [][]byte{der, i.certificate.Raw}, NotAfter: template.NotAfter}, nil
}

// current refuses to sign when the CA is not valid by this machine's clock. It is
// more often the clock that is wrong, and what is signed by a wrong clock is
// refused by all who have a right one.
func (a *issuer) current(name string, now time.Time) error {
	const day = time.DateOnly
	switch c := a.certificate; {
	case now.Before(c.NotBefore):
		return control.Problemf(control.Unavailable, "set the clock of this machine, then start the server again",
			"the clock of this machine says %s, but the %s CA was made on %s", now.UTC().Format(day), name, c.NotBefore.UTC().Format(day))
	case !c.NotAfter.After(now):
		return control.Problemf(control.Unavailable, "check the clock of this machine first; if it is right, this deployment's CAs are at their end, and a new deployment is due",
			"the clock of this machine says %s, and the %s CA has expired on %s", now.UTC().Format(day), name, c.NotAfter.UTC().Format(day))
	}
	return nil
}

// Chain puts the issuer's certificate behind a leaf that was signed earlier.
func (c *CA) Chain(issuer string, leaf []byte) [][]byte {
	return [][]byte{leaf, c.by[issuer].certificate.Raw}
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// ErrHost is a name or address that a server certificate may not carry.
var ErrHost = fmt.Errorf("a server's name is a DNS name without * (a-z, 0-9, - and dots), or an IP address, and not the management server's")

const maxHost = 253 // RFC 1035 §2.3.4, as text

// CheckHost checks a DNS name or IP address for a server certificate: exactly
// one server, so no wildcards (RFC 6125 §7.2), no internationalised forms.
func CheckHost(host string) error {
	if ip := net.ParseIP(host); ip != nil {
		if ip.IsUnspecified() || ip.IsMulticast() {
			return fmt.Errorf("%q: %w", host, ErrHost)
		}
		return nil
	}
	if len(host) > maxHost {
		return fmt.Errorf("name of %d characters: %w", len(host), ErrHost)
	}
	numeric := true
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > transport.MaxName || label[0] == '-' || label[len(label)-1] == '-' {
			return fmt.Errorf("%q: %w", host, ErrHost)
		}
		if strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return fmt.Errorf("%q: %w", host, ErrHost)
		}
		numeric = strings.Trim(label, "0123456789") == ""
	}
	if numeric { // 10.0.0.256 is no address, and no name either
		return fmt.Errorf("%q: %w", host, ErrHost)
	}
	return nil
}

func foldHost(host string) string { return strings.ToLower(strings.TrimSuffix(host, ".")) }
