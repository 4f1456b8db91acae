package tcp

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// fleet is a root and an issuing CA.
type fleet struct {
	root, issuing       *x509.Certificate
	rootKey, issuingKey *ecdsa.PrivateKey
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func issue(t testing.TB, template, parent *x509.Certificate, public any, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	if template.NotBefore.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newFleet(t testing.TB) *fleet {
	t.Helper()
	f := &fleet{rootKey: newKey(t), issuingKey: newKey(t)}
	ca := func(name string) *x509.Certificate {
		return &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	}
	f.root = issue(t, ca("root"), ca("root"), f.rootKey.Public(), f.rootKey)
	f.issuing = issue(t, ca("identity"), f.root, f.issuingKey.Public(), f.rootKey)
	return f
}

// identity is a terminal's certificate with its chain. change may spoil it.
func (f *fleet) identity(t testing.TB, name string, change func(*x509.Certificate)) *tls.Certificate {
	t.Helper()
	key := newKey(t)
	u := &url.URL{Scheme: "kagimori", Host: "demo", Path: "/terminal/" + name}
	template := &x509.Certificate{URIs: []*url.URL{u}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature}
	if change != nil {
		change(template)
	}
	leaf := issue(t, template, f.issuing, key.Public(), f.issuingKey)
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw, f.issuing.Raw}, PrivateKey: key}
}

func (f *fleet) verify(chain []*x509.Certificate) (transport.Name, error) {
	roots := x509.NewCertPool()
	roots.AddCert(f.root)
	return transport.VerifyTerminal(chain, roots, "demo", time.Now())
}

func (f *fleet) config(t testing.TB, certificate *tls.Certificate) Config {
	return Config{Certificate: certificate, Verify: f.verify, Log: slog.New(slog.DiscardHandler)}
}

// serve runs Serve on a loopback port until the test ends.
func serve(t testing.TB, cfg Config, handle func(context.Context, *Conn) error) (address string) {
	t.Helper()
	ln, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, ln, cfg, handle)
	return ln.Addr().String()
}

func serveOn(t testing.TB, ln net.Listener, cfg Config, handle func(context.Context, *Conn) error) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := Serve(ctx, ln, cfg, handle); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
}

// echo gives every frame back.
func echo(_ context.Context, c *Conn) error {
	for {
		f, err := c.ReadFrame(transport.MaxKeycopyHandshake, transport.KeycopyMessageTimeout)
		if err != nil {
			return err
		}
		if err := c.WriteFrame(f, true); err != nil {
			return err
		}
	}
}
