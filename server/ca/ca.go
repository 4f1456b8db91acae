// Package ca signs certificates and revocation lists: one root and, under it,
// an issuing CA each for identities, services and servers (DESIGN D7, D9).
// START HERE: ca.go (the four CAs), request.go (what is believed of a signing
// request: its key and nothing else), profile.go (what each kind of
// certificate says), crl.go.
//
// Keys stay with hsm; the package keeps no state. What it signs must be in the
// store before anybody gets it.
package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"slices"
	"time"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
)

// The four CAs, as they are called in the store and in /crl/<issuer>.
const (
	Root     = "root"
	Identity = "identity" // terminals and gates towards the management server
	Service  = "service"  // terminals towards services
	Server   = "server"   // the management server and gates towards terminals
)

// Issuers lists all four; each has a revocation list.
func Issuers() []string { return []string{Root, Identity, Service, Server} }

const (
	rootLifetime    = 30 * 365 * 24 * time.Hour
	issuingLifetime = 15 * 365 * 24 * time.Hour
	// caBackdate is how far a CA's notBefore lies in the past.
	caBackdate = time.Hour
	// serialBits is the length of serials: random, so that they reveal no count
	// and cannot be predicted. RFC 5280 §4.1.2.2 allows 159.
	serialBits = 128
)

// Config is what the CAs need to know.
type Config struct {
	Deployment transport.Name
	Hosts      []string // names and addresses of the management server, which no gate may have
	HTTP       []string // host:port where revocation lists are fetched

	IdentityLifetime time.Duration
	ServiceLifetime  time.Duration
	ServerLifetime   time.Duration
	CRLLifetime      time.Duration
	Backdate         time.Duration // of notBefore, for slow clocks
}

// Material is what is kept of a CA: its certificate and the blob of its key.
type Material struct {
	Name        string
	Certificate []byte // DER
	Key         hsm.Blob
}

// CA is the four of them, in use.
type CA struct {
	cfg    Config
	random io.Reader
	roots  *x509.CertPool
	by     map[string]*issuer
}

type issuer struct {
	certificate *x509.Certificate
	key         hsm.Signer
}

// usageOf says what an issuing CA may certify; it stands in its certificate
// too, so that no other purpose verifies, whoever has stolen its key.
func usageOf(name string) []x509.ExtKeyUsage {
	switch name {
	case Identity, Service:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	case Server:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	return nil
}

// Create makes keys and certificates of the four CAs.
func Create(ctx context.Context, module hsm.Keys, deployment transport.Name, http []string, random io.Reader, now time.Time) ([]Material, error) {
	var list []Material
	var root *issuer
	for _, name := range Issuers() { // the root comes first
		blob, err := module.NewKey(ctx)
		if err != nil {
			return nil, fmt.Errorf("make key of the %s CA: %w", name, err)
		}
		key, err := module.Signer(ctx, blob)
		if err != nil {
			return nil, fmt.Errorf("make key of the %s CA: %w", name, err)
		}
		defer key.Close()
		serial, err := newSerial(random)
		if err != nil {
			return nil, err
		}
		template := authority(name, deployment, serial, now)
		parent, signer := template, key
		if root != nil {
			template.CRLDistributionPoints = distributionPoints(http, Root)
			parent, signer = root.certificate, root.key
		}
		der, err := x509.CreateCertificate(random, template, parent, key.Public(), signer)
		if err != nil {
			return nil, fmt.Errorf("sign the %s CA: %w", name, err)
		}
		if root == nil {
			certificate, err := x509.ParseCertificate(der)
			if err != nil {
				return nil, err
			}
			root = &issuer{certificate, key}
		}
		list = append(list, Material{Name: name, Certificate: der, Key: blob})
	}
	return list, nil
}

func authority(name string, deployment transport.Name, serial *big.Int, now time.Time) *x509.Certificate {
	start := now.Add(-caBackdate).Truncate(time.Second)
	c := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{string(deployment)}, CommonName: "Kagimori " + name + " CA"},
		NotBefore:             start,
		NotAfter:              start.Add(rootLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            1,
		SignatureAlgorithm:    x509.ECDSAWithSHA256,
	}
	if name != Root {
		c.NotAfter = start.Add(issuingLifetime)
		c.MaxPathLen, c.MaxPathLenZero = 0, true
		c.ExtKeyUsage = usageOf(name)
	}
	return c
}

// Open takes the CAs into use. Close it when done.
func Open(ctx context.Context, module hsm.Keys, cfg Config, material []Material, random io.Reader) (*CA, error) {
	c := &CA{cfg: cfg, random: random, roots: x509.NewCertPool(), by: map[string]*issuer{}}
	for _, m := range material {
		certificate, err := x509.ParseCertificate(m.Certificate)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open the %s CA: %w", m.Name, err), c.Close())
		}
		key, err := module.Signer(ctx, m.Key)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open the %s CA: %w", m.Name, err), c.Close())
		}
		c.by[m.Name] = &issuer{certificate, key}
		if public, ok := certificate.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(key.Public()) {
			return nil, errors.Join(fmt.Errorf("open the %s CA: its key is another one's: restore the database from one backup", m.Name), c.Close())
		}
	}
	for _, name := range Issuers() {
		if c.by[name] == nil {
			return nil, errors.Join(fmt.Errorf("the %s CA is missing: restore the database from a backup", name), c.Close())
		}
	}
	c.roots.AddCert(c.by[Root].certificate)
	return c, nil
}

// Close releases the keys.
func (c *CA) Close() error {
	var errs []error
	for _, i := range c.by {
		errs = append(errs, i.key.Close())
	}
	return errors.Join(errs...)
}

// Roots is the pool with the root alone.
func (c *CA) Roots() *x509.CertPool { return c.roots }

// Certificate is a CA's own, by the names above.
func (c *CA) Certificate(name string) *x509.Certificate { return c.by[name].certificate }

// URLs are where an issuer's revocation list is fetched.
func (c *CA) URLs(issuer string) []string { return distributionPoints(c.cfg.HTTP, issuer) }

func distributionPoints(http []string, issuer string) []string {
	var list []string
	for _, address := range http {
		list = append(list, (&url.URL{Scheme: "http", Host: address, Path: "/crl/" + issuer}).String())
	}
	return list
}

func newSerial(random io.Reader) (*big.Int, error) {
	b := make([]byte, serialBits/8)
	for {
		if _, err := io.ReadFull(random, b); err != nil {
			return nil, fmt.Errorf("draw a serial: %w", err)
		}
		if n := new(big.Int).SetBytes(b); n.Sign() > 0 {
			return n, nil
		}
	}
}

// isHost says whether name is one of the management server's.
func (c *CA) isHost(name string) bool { return slices.ContainsFunc(c.cfg.Hosts, sameHost(name)) }

// SameHost says whether two DNS names or addresses are the same.
func SameHost(a, b string) bool { return sameHost(a)(b) }

func sameHost(name string) func(string) bool {
	ip := net.ParseIP(name)
	return func(other string) bool {
		if ip != nil {
			return ip.Equal(net.ParseIP(other))
		}
		return foldHost(other) == foldHost(name)
	}
}
