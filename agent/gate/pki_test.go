package gate

import (
	"crypto"
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
	"sync/atomic"
	"testing"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// A deployment as the management server makes it: a root and three issuing
// CAs, each good for one kind of certificate (DESIGN D7).
type deployment struct {
	name                            transport.Name
	root, identity, service, server *authority
	roots                           *x509.CertPool
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

var lastSerial atomic.Int64

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newDeployment(t testing.TB, name transport.Name) *deployment {
	t.Helper()
	d := &deployment{name: name, roots: x509.NewCertPool()}
	d.root = newCA(t, nil, string(name)+" root")
	d.identity = newCA(t, d.root, string(name)+" identity CA", x509.ExtKeyUsageClientAuth)
	d.service = newCA(t, d.root, string(name)+" service CA", x509.ExtKeyUsageClientAuth)
	d.server = newCA(t, d.root, string(name)+" server CA", x509.ExtKeyUsageServerAuth)
	d.roots.AddCert(d.root.cert)
	return d
}

func newCA(t testing.TB, above *authority, name string, usage ...x509.ExtKeyUsage) *authority {
	t.Helper()
	return newCAWith(t, above, name, newKey(t), usage...)
}

func newCAWith(t testing.TB, above *authority, name string, key *ecdsa.PrivateKey, usage ...x509.ExtKeyUsage) *authority {
	t.Helper()
	a := &authority{key: key}
	tmpl := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, BasicConstraintsValid: true, IsCA: true, ExtKeyUsage: usage,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, NotAfter: time.Now().Add(365 * 24 * time.Hour),
	}
	if above == nil {
		above = &authority{cert: tmpl, key: key}
	} else {
		tmpl.MaxPathLen, tmpl.MaxPathLenZero = 0, true
	}
	a.cert = above.sign(t, tmpl, key.Public())
	return a
}

// sign makes a certificate: serial number and notBefore are filled in.
func (a *authority) sign(t testing.TB, tmpl *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
	t.Helper()
	if tmpl.SerialNumber == nil {
		tmpl.SerialNumber = big.NewInt(1e6 + lastSerial.Add(1))
	}
	if tmpl.NotBefore.IsZero() {
		tmpl.NotBefore = time.Now().Add(-time.Hour)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, public, a.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// leaf makes a certificate with its key, and the chain that a client sends.
func (a *authority) leaf(t testing.TB, tmpl *x509.Certificate) tls.Certificate {
	t.Helper()
	key := newKey(t)
	c := a.sign(t, tmpl, key.Public())
	return tls.Certificate{Certificate: [][]byte{c.Raw, a.cert.Raw}, PrivateKey: key, Leaf: c}
}

// template is that of a terminal's credential for a service.
func (d *deployment) template(service, id, subject transport.Name) *x509.Certificate {
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: string(subject)}, NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs: []*url.URL{transport.URI{Deployment: d.name, Service: service, Credential: id}.URL()},
	}
}

func (d *deployment) credential(t testing.TB, service, id transport.Name) tls.Certificate {
	t.Helper()
	return d.service.leaf(t, d.template(service, id, "place-"+id))
}

// gateCertificate is the gate's own.
func (d *deployment) gateCertificate(t testing.TB) tls.Certificate {
	t.Helper()
	return d.server.leaf(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "maps"}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotAfter: time.Now().Add(30 * 24 * time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
}

// list signs a list of revoked certificates.
func (a *authority) list(t testing.TB, number int64, revoked ...tls.Certificate) []byte {
	t.Helper()
	return a.listWith(t, &x509.RevocationList{Number: big.NewInt(number)}, revoked...)
}

func (a *authority) listWith(t testing.TB, tmpl *x509.RevocationList, revoked ...tls.Certificate) []byte {
	t.Helper()
	if tmpl.ThisUpdate.IsZero() {
		tmpl.ThisUpdate = time.Now().Add(-time.Minute)
	}
	if tmpl.NextUpdate.IsZero() {
		tmpl.NextUpdate = time.Now().Add(time.Hour)
	}
	for _, c := range revoked {
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: c.Leaf.SerialNumber, RevocationTime: tmpl.ThisUpdate, ReasonCode: 1})
	}
	der, err := x509.CreateRevocationList(rand.Reader, tmpl, a.cert, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// writePEM writes blocks of one type to a file and gives its path.
func writePEM(t testing.TB, dir, name, kind string, der ...[]byte) string {
	t.Helper()
	var out []byte
	for _, d := range der {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: d})...)
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, out, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// writeIdentity writes a chain and its key, as other programs want them.
func writeIdentity(t testing.TB, dir, name string, c tls.Certificate) (cert, key string) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return writePEM(t, dir, name+".pem", "CERTIFICATE", c.Certificate...), writePEM(t, dir, name+".key", "PRIVATE KEY", der)
}

// serialNumber is one as long as those of a real CA.
func serialNumber(i int) *big.Int {
	return new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), 120), big.NewInt(int64(i)))
}
