package agent

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/kagimori/kagimori/transport"
)

const testDeployment transport.Name = "demo"

// authority is a deployment's CA: a root and one that issues.
type authority struct {
	t             testing.TB
	root, issuing *x509.Certificate
	key           *ecdsa.PrivateKey // of issuing
	rootKey       *ecdsa.PrivateKey
	from, to      time.Time // of what it issues next
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t, from: time.Now().Add(-time.Hour).Truncate(time.Second), to: time.Now().Add(365 * 24 * time.Hour).Truncate(time.Second)}
	a.rootKey = newTestKey(t)
	a.root = a.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, a.rootKey.Public(), a.rootKey)
	a.key = newTestKey(t)
	a.issuing = a.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "issuing"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}, a.root, a.key.Public(), a.rootKey)
	return a
}

func newTestKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a *authority) sign(template, parent *x509.Certificate, key crypto.PublicKey, by crypto.Signer) *x509.Certificate {
	a.t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		a.t.Fatal(err)
	}
	template.SerialNumber, template.NotBefore, template.NotAfter = serial, a.from, a.to
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, by)
	if err != nil {
		a.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

// issue certifies a key, leaf first.
func (a *authority) issue(template *x509.Certificate, key crypto.PublicKey) [][]byte {
	a.t.Helper()
	template.KeyUsage = x509.KeyUsageDigitalSignature
	return [][]byte{a.sign(template, a.issuing, key, a.key).Raw, a.issuing.Raw}
}

func (a *authority) client(u transport.URI, key crypto.PublicKey) [][]byte {
	return a.issue(&x509.Certificate{URIs: []*url.URL{u.URL()}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, key)
}

// credential certifies a key for the service maps.
func (a *authority) credential(id, subject transport.Name, key crypto.PublicKey) [][]byte {
	return a.forService(transport.URI{Deployment: testDeployment, Service: "maps", Credential: id}, subject, key)
}

func (a *authority) forService(u transport.URI, subject transport.Name, key crypto.PublicKey) [][]byte {
	return a.issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: string(subject)}, URIs: []*url.URL{u.URL()}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, key)
}

func (a *authority) gate(key crypto.PublicKey, names ...string) [][]byte {
	return a.issue(&x509.Certificate{DNSNames: names, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, key)
}

// management is the management server's certificate, for 127.0.0.1.
func (a *authority) management() tls.Certificate {
	a.t.Helper()
	key := newTestKey(a.t)
	u := transport.URI{Deployment: testDeployment, Server: true}
	chain := a.issue(&x509.Certificate{
		URIs: []*url.URL{u.URL()}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, key.Public())
	return tls.Certificate{Certificate: chain, PrivateKey: key}
}

// revoked is the message that a management server sends about these.
func (a *authority) revoked(number int64, leaves ...[]byte) *transport.ServiceRevoked {
	a.t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: a.from, NextUpdate: a.to}
	for _, der := range leaves {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			a.t.Fatal(err)
		}
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: a.from})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.issuing, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return &transport.ServiceRevoked{Number: number, CRL: der, Issuer: a.issuing.Raw}
}

// bundle makes a provisioning bundle of this deployment.
func (a *authority) bundle(kind transport.BundleKind, terminal transport.Name, servers ...string) *transport.Bundle {
	b := &transport.Bundle{
		ID: transport.NewID(rand.Reader), Kind: kind, Deployment: testDeployment, Issued: time.Now().Unix(), Root: a.root.Raw,
		Group: "default", Epoch: 1, SecurityCode: make(transport.Sensitive, transport.SecurityCodeSize),
	}
	copy(b.SecurityCode, "the security code of this group!")
	if kind != transport.BundleSpare {
		if len(servers) == 0 {
			servers = []string{"127.0.0.1:1"}
		}
		b.Terminal, b.Servers, b.CommonKey = terminal, servers, make(transport.Sensitive, transport.CommonKeySize)
		rand.Read(b.CommonKey)
	}
	if kind == transport.BundleGate {
		b.Service = "maps"
	}
	return b
}

// record is a whole credential for the service maps, fit for use.
func (a *authority) record(id transport.Name) transport.CredentialRecord {
	a.t.Helper()
	key := newTestKey(a.t)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	return transport.CredentialRecord{
		ID: id, Kind: transport.KindCertificate, Service: "maps", Subject: "seat-1", Usage: transport.UsageClient,
		ServerName: "maps.example", Endpoints: []string{"127.0.0.1:8443"}, Anchors: [][]byte{a.root.Raw},
		Chain:  a.credential(id, "seat-1", key.Public()),
		Secret: transport.CredentialSecret{Form: transport.SecretPKCS8, Bytes: der}, Expires: a.to.Unix(),
		State: transport.CredentialActive, Transfer: transport.TransferCopy,
	}
}
