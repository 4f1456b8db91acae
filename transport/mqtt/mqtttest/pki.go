// Package mqtttest has what tests of both ends of the MQTT wire need: a small
// CA, Debian's mosquitto as the foreign broker and client, and a check that no
// goroutine is left behind. Nothing that ships may import it.
package mqtttest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// Deployment is the one that all certificates here name.
const Deployment transport.Name = "plant"

// CA issues every kind of certificate, valid for an hour around now.
type CA struct {
	Pool *x509.CertPool
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	dir  string
	File string // PEM
}

// NewCA makes a root of its own for one test.
func NewCA(t testing.TB) *CA {
	t.Helper()
	ca := &CA{Pool: x509.NewCertPool(), dir: t.TempDir()}
	ca.key = newKey(t)
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test root"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, ca.key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	if ca.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	ca.Pool.AddCert(ca.cert)
	ca.File = ca.write(t, "ca.pem", &pem.Block{Type: "CERTIFICATE", Bytes: der})
	return ca
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Server is a certificate for localhost, for server authentication.
func (ca *CA) Server(t testing.TB) tls.Certificate {
	return ca.issue(t, &x509.Certificate{
		DNSNames:    []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
}

// Terminal is an identity certificate.
func (ca *CA) Terminal(t testing.TB, name string) tls.Certificate {
	return ca.client(t, transport.URI{Deployment: Deployment, Terminal: transport.Name(name)})
}

// Service is a certificate for a service, which is no identity.
func (ca *CA) Service(t testing.TB, service, credential string) tls.Certificate {
	return ca.client(t, transport.URI{Deployment: Deployment, Service: transport.Name(service), Credential: transport.Name(credential)})
}

func (ca *CA) client(t testing.TB, u transport.URI) tls.Certificate {
	return ca.issue(t, &x509.Certificate{URIs: []*url.URL{u.URL()}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
}

func (ca *CA) issue(t testing.TB, template *x509.Certificate) tls.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	template.SerialNumber, template.NotBefore, template.NotAfter = serial, now.Add(-time.Hour), now.Add(time.Hour)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	key := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// Files writes a certificate and its key where foreign programs can read them.
func (ca *CA) Files(t testing.TB, c tls.Certificate) (cert, key string) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	id := c.Leaf.SerialNumber.Text(16)
	return ca.write(t, id+".pem", &pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}),
		ca.write(t, id+".key", &pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func (ca *CA) write(t testing.TB, name string, block *pem.Block) string {
	t.Helper()
	path := filepath.Join(ca.dir, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
