package transport

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net/url"
	"testing"
	"time"
)

var testNow = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// pki is a root with one issuing CA per usage, as server/ca makes them.
type pki struct {
	root, issuer *x509.Certificate
	pool         *x509.CertPool
	key          *ecdsa.PrivateKey
}

func newPKI(t *testing.T, usage x509.ExtKeyUsage) *pki {
	p := &pki{pool: x509.NewCertPool(), key: newKey(t)}
	rootKey := newKey(t)
	p.root = sign(t, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, rootKey, rootKey)
	p.issuer = sign(t, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{usage}}, p.root, p.key, rootKey)
	p.pool.AddCert(p.root)
	return p
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sign(t *testing.T, c, parent *x509.Certificate, key, parentKey *ecdsa.PrivateKey) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	c.SerialNumber, c.Subject = serial, pkix.Name{CommonName: serial.String()}
	if c.NotBefore.IsZero() {
		c.NotBefore, c.NotAfter = testNow.Add(-time.Hour), testNow.Add(time.Hour)
	}
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func uris(ss ...string) (out []*url.URL) {
	for _, s := range ss {
		u, err := url.Parse(s)
		if err != nil {
			panic(err)
		}
		out = append(out, u)
	}
	return out
}

var clientOnly = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}

func (p *pki) leaf(t *testing.T, change func(*x509.Certificate)) []*x509.Certificate {
	c := &x509.Certificate{KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: clientOnly, URIs: uris("kagimori://demo/terminal/nav-001")}
	if change != nil {
		change(c)
	}
	return []*x509.Certificate{sign(t, c, p.issuer, newKey(t), p.key), p.issuer}
}

func TestVerifyTerminal(t *testing.T) {
	p, foreign := newPKI(t, x509.ExtKeyUsageClientAuth), newPKI(t, x509.ExtKeyUsageClientAuth)
	if name, err := VerifyTerminal(p.leaf(t, nil), p.pool, "demo", testNow); err != nil || name != "nav-001" {
		t.Fatalf("%q, %v", name, err)
	}
	good := p.leaf(t, nil)
	self := newKey(t)
	for name, chain := range map[string][]*x509.Certificate{
		"none":                       nil,
		"foreign root":               foreign.leaf(t, nil),
		"without the issuing CA":     good[:1],
		"issuing CA as leaf":         {p.issuer, p.root},
		"root as leaf":               {p.root},
		"leaf of another, good rest": append(foreign.leaf(t, nil)[:1], good...),
		"self-signed beside a good one": append([]*x509.Certificate{sign(t, &x509.Certificate{ExtKeyUsage: clientOnly,
			URIs: uris("kagimori://demo/terminal/nav-001")}, nil, self, self)}, good...),
		"long chain": append(good, good[1], good[1], good[1]),
		"expired": p.leaf(t, func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = testNow.Add(-2*time.Hour), testNow.Add(-time.Hour)
		}),
		"server usage":       p.leaf(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
		"both usages":        p.leaf(t, func(c *x509.Certificate) { c.ExtKeyUsage = append(clientOnly, x509.ExtKeyUsageServerAuth) }),
		"any usage":          p.leaf(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }),
		"no usage":           p.leaf(t, func(c *x509.Certificate) { c.ExtKeyUsage = nil }),
		"two names":          p.leaf(t, func(c *x509.Certificate) { c.URIs = append(c.URIs, uris("kagimori://demo/terminal/nav-002")...) }),
		"a host name too":    p.leaf(t, func(c *x509.Certificate) { c.DNSNames = []string{"localhost"} }),
		"no name":            p.leaf(t, func(c *x509.Certificate) { c.URIs = nil }),
		"other deployment":   p.leaf(t, func(c *x509.Certificate) { c.URIs = uris("kagimori://other/terminal/nav-001") }),
		"service credential": p.leaf(t, func(c *x509.Certificate) { c.URIs = uris("kagimori://demo/service/maps/credential/cr-1") }),
		"the server's name":  p.leaf(t, func(c *x509.Certificate) { c.URIs = uris("kagimori://demo/server") }),
		"a web name":         p.leaf(t, func(c *x509.Certificate) { c.URIs = uris("https://demo/terminal/nav-001") }),
		"a CA's leaf":        p.leaf(t, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }),
	} {
		if who, err := VerifyTerminal(chain, p.pool, "demo", testNow); !errors.Is(err, ErrCertificate) || who != "" {
			t.Errorf("%s: %q, %v", name, who, err)
		}
	}
	var wait NotYetValid
	future := p.leaf(t, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = testNow.Add(time.Minute), testNow.Add(time.Hour) })
	if _, err := VerifyTerminal(future, p.pool, "demo", testNow); !errors.As(err, &wait) || !wait.At.Equal(future[0].NotBefore) {
		t.Errorf("future: %v", err)
	}
	if _, err := VerifyTerminal(future, p.pool, "demo", LatestStart(future)); err != nil {
		t.Errorf("future, judged at its own start: %v", err)
	}
}

// req: L5
func TestVerifyCredential(t *testing.T) {
	p := newPKI(t, x509.ExtKeyUsageClientAuth)
	named := func(s string) []*x509.Certificate {
		return p.leaf(t, func(c *x509.Certificate) { c.URIs = uris(s) })
	}
	if id, err := VerifyCredential(named("kagimori://demo/service/maps/credential/cr-1"), p.pool, "demo", "maps", testNow); err != nil || id != "cr-1" {
		t.Fatalf("%q, %v", id, err)
	}
	for _, s := range []string{"kagimori://demo/service/radio/credential/cr-1", "kagimori://demo/terminal/nav-001", "kagimori://other/service/maps/credential/cr-1"} {
		if id, err := VerifyCredential(named(s), p.pool, "demo", "maps", testNow); !errors.Is(err, ErrCertificate) {
			t.Errorf("%s: %q, %v", s, id, err)
		}
	}
}

func TestVerifyManagement(t *testing.T) {
	p := newPKI(t, x509.ExtKeyUsageServerAuth)
	cert := func(change func(*x509.Certificate)) []*x509.Certificate {
		return p.leaf(t, func(c *x509.Certificate) {
			c.ExtKeyUsage, c.DNSNames, c.URIs = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, []string{"kagimori.test"}, uris("kagimori://demo/server")
			if change != nil {
				change(c)
			}
		})
	}
	if err := VerifyManagement(cert(nil), p.pool, "demo", "kagimori.test", testNow); err != nil {
		t.Fatal(err)
	}
	for name, chain := range map[string][]*x509.Certificate{
		"a gate's":         cert(func(c *x509.Certificate) { c.URIs = nil }),
		"other deployment": cert(func(c *x509.Certificate) { c.URIs = uris("kagimori://other/server") }),
		"other host":       cert(func(c *x509.Certificate) { c.DNSNames = []string{"other.test"} }),
		"client usage":     cert(func(c *x509.Certificate) { c.ExtKeyUsage = clientOnly }),
	} {
		if err := VerifyManagement(chain, p.pool, "demo", "kagimori.test", testNow); !errors.Is(err, ErrCertificate) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
