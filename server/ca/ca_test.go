package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/file"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

var now = time.Now().Truncate(time.Second)

func testConfig() Config {
	return Config{
		Deployment: "demo", Hosts: []string{"server.test", "192.0.2.1"}, HTTP: []string{"server.test:8880", "[2001:db8::1]:8880"},
		IdentityLifetime: 365 * 24 * time.Hour, ServiceLifetime: 90 * 24 * time.Hour, ServerLifetime: 365 * 24 * time.Hour,
		CRLLifetime: 24 * time.Hour, Backdate: time.Hour,
	}
}

func testModule(t testing.TB) hsm.Module {
	t.Helper()
	m, err := file.Open(filepath.Join(t.TempDir(), "device.secret"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func testCA(t testing.TB) *CA {
	t.Helper()
	module := testModule(t)
	cfg := testConfig()
	material, err := Create(t.Context(), module, cfg.Deployment, cfg.HTTP, rand.Reader, now)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Open(t.Context(), module, cfg, material, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// csr makes a request with a fresh key.
func csr(t testing.TB, template *x509.CertificateRequest) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func request(t testing.TB) *Request {
	t.Helper()
	r, err := ParseRequest(csr(t, &x509.CertificateRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// issued is one certificate of each kind.
type issued struct{ identity, credential, gate, management Issued }

func issueAll(t testing.TB, c *CA) (i issued) {
	t.Helper()
	var errs [4]error
	i.identity, errs[0] = c.Identity(request(t), "nav-001", now)
	i.credential, errs[1] = c.Credential(request(t), "maps", "cr-1", "place-7", now)
	i.gate, errs[2] = c.Gate(request(t), "maps", []string{"maps.test", "192.0.2.7"}, now)
	i.management, errs[3] = c.Management(request(t).Public, now)
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	return i
}

func parsed(t testing.TB, i Issued) []*x509.Certificate {
	t.Helper()
	chain, err := transport.ParseChain(i.Chain)
	if err != nil {
		t.Fatal(err)
	}
	return chain
}

// req: L18
func TestEachKindVerifiesAsItselfOnly(t *testing.T) {
	c := testCA(t)
	all := issueAll(t, c)
	checks := map[string]func([]*x509.Certificate) error{
		"identity": func(chain []*x509.Certificate) error {
			name, err := transport.VerifyTerminal(chain, c.Roots(), "demo", now)
			if err == nil && name != "nav-001" {
				t.Errorf("identity of %s", name)
			}
			return err
		},
		"credential": func(chain []*x509.Certificate) error {
			id, err := transport.VerifyCredential(chain, c.Roots(), "demo", "maps", now)
			if err == nil && id != "cr-1" {
				t.Errorf("credential %s", id)
			}
			return err
		},
		"gate": func(chain []*x509.Certificate) error {
			return errors.Join(transport.VerifyServer(chain, c.Roots(), "maps.test", now),
				transport.VerifyServer(chain, c.Roots(), "192.0.2.7", now))
		},
		"management": func(chain []*x509.Certificate) error {
			return errors.Join(transport.VerifyManagement(chain, c.Roots(), "demo", "server.test", now),
				transport.VerifyManagement(chain, c.Roots(), "demo", "192.0.2.1", now))
		},
	}
	for kind, i := range map[string]Issued{"identity": all.identity, "credential": all.credential, "gate": all.gate, "management": all.management} {
		chain := parsed(t, i)
		for as, check := range checks {
			if err := check(chain); (err == nil) != (kind == as) {
				t.Errorf("%s as %s: %v", kind, as, err)
			}
		}
		leaf := chain[0]
		if leaf.SerialNumber.BitLen() > serialBits || leaf.SerialNumber.Cmp(i.Serial) != 0 {
			t.Errorf("%s: serial %x", kind, leaf.SerialNumber)
		}
		if !leaf.NotBefore.Equal(now.Add(-time.Hour)) || !leaf.NotAfter.Equal(i.NotAfter) {
			t.Errorf("%s: valid from %v to %v", kind, leaf.NotBefore, leaf.NotAfter)
		}
		if leaf.KeyUsage != x509.KeyUsageDigitalSignature || leaf.IsCA || len(leaf.ExtKeyUsage) != 1 {
			t.Errorf("%s: usage %v %v", kind, leaf.KeyUsage, leaf.ExtKeyUsage)
		}
		want := []string{"http://server.test:8880/crl/" + i.Issuer, "http://[2001:db8::1]:8880/crl/" + i.Issuer}
		if strings.Join(leaf.CRLDistributionPoints, " ") != strings.Join(want, " ") {
			t.Errorf("%s: %v", kind, leaf.CRLDistributionPoints)
		}
	}
	if uris := parsed(t, all.gate)[0].URIs; len(uris) != 0 {
		t.Errorf("a gate carries %v", uris)
	}
}

func TestIssuingCAsAreConstrained(t *testing.T) {
	c := testCA(t)
	for _, name := range Issuers() {
		ca := c.Certificate(name)
		depth := 0
		if name == Root {
			depth = 1
		}
		if !ca.IsCA || ca.MaxPathLen != depth || ca.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign {
			t.Errorf("%s: CA %v, depth %d, usage %v", name, ca.IsCA, ca.MaxPathLen, ca.KeyUsage)
		}
		if name != Root && (len(ca.ExtKeyUsage) != 1 || ca.ExtKeyUsage[0] != usageOf(name)[0]) {
			t.Errorf("%s: %v", name, ca.ExtKeyUsage)
		}
	}
	// A stolen identity CA makes no server certificate that verifies.
	key := c.by[Identity].key
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"server.test"}, NotBefore: now, NotAfter: now.Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, c.Certificate(Identity), request(t).Public, key)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := transport.ParseChain(c.Chain(Identity, der))
	if err != nil {
		t.Fatal(err)
	}
	if err := transport.VerifyServer(chain, c.Roots(), "server.test", now); err == nil {
		t.Error("a server certificate from the identity CA verifies")
	}
}

func TestGatesGetNoOtherNames(t *testing.T) {
	c := testCA(t)
	for _, name := range []string{"server.test", "SERVER.TEST", "192.0.2.1", "::ffff:192.0.2.1", "*.test", "", "a..b", "-a.test", "a_b.test", "10.0.0.256",
		"0.0.0.0", strings.Repeat("a", 64) + ".test", strings.Repeat("a.", 130) + "test", "xn--é.test", "maps.test/x", "maps.test\x00.evil"} {
		if _, err := c.Gate(request(t), "maps", []string{"maps.test", name}, now); err == nil {
			t.Errorf("%q: certified", name)
		}
	}
	if _, err := c.Gate(request(t), "maps", nil, now); err == nil {
		t.Error("no name at all: certified")
	}
}

func TestCertificatesEndWithTheirIssuer(t *testing.T) {
	c := testCA(t)
	end := c.Certificate(Identity).NotAfter
	i, err := c.Identity(request(t), "nav-001", end.Add(-time.Hour))
	if err != nil || !i.NotAfter.Equal(end) {
		t.Errorf("%v, %v", i.NotAfter, err)
	}
	if _, err := c.Identity(request(t), "nav-001", end.Add(time.Second)); err == nil {
		t.Error("signed after the issuer's end")
	}
	i, err = c.Identity(request(t), "nav-001", now)
	if leaf := parsed(t, i)[0]; err != nil || leaf.NotBefore.Before(c.Certificate(Identity).NotBefore) {
		t.Errorf("starts %v, before its issuer, %v", leaf.NotBefore, err)
	}
}

// A clock that is outside of the CA's life signs nothing.
func TestNothingIsSignedByAWrongClock(t *testing.T) {
	c := testCA(t)
	r := request(t)
	for _, at := range []time.Time{time.Unix(0, 0), now.Add(-2 * caBackdate), now.Add(issuingLifetime), now.AddDate(74, 0, 0)} {
		if _, err := c.Identity(r, "nav-001", at); err == nil || !errors.Is(err, &control.Problem{Kind: control.Unavailable}) || !strings.Contains(err.Error(), at.UTC().Format(time.DateOnly)) {
			t.Errorf("at %s: %v", at, err)
		}
	}
}

func TestOpenRefusesMixedMaterial(t *testing.T) {
	module := testModule(t)
	cfg := testConfig()
	one, err := Create(t.Context(), module, "demo", nil, rand.Reader, now)
	if err != nil {
		t.Fatal(err)
	}
	two, err := Create(t.Context(), module, "demo", nil, rand.Reader, now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), module, cfg, one[:3], rand.Reader); err == nil {
		t.Error("a CA is missing: opened")
	}
	one[1].Key = two[1].Key
	if _, err := Open(t.Context(), module, cfg, one, rand.Reader); err == nil {
		t.Error("another CA's key: opened")
	}
	if _, err := Open(t.Context(), testModule(t), cfg, two, rand.Reader); !errors.Is(err, hsm.ErrReplaced) {
		t.Errorf("another module: %v", err)
	}
}

func writePEM(t *testing.T, name, kind string, ders ...[]byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	var data []byte
	for _, der := range ders {
		data = append(data, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func openssl(t *testing.T, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Fatal("openssl is missing: run scripts/setup.sh")
	}
	out, err := exec.Command("openssl", args...).CombinedOutput()
	return string(out), err
}

// The foreign check: OpenSSL takes the chains, strictly and with revocation
// lists, for their purpose only, and refuses a revoked one.
// req: L4, L18
func TestOpenSSLAgrees(t *testing.T) {
	c := testCA(t)
	all := issueAll(t, c)
	root := writePEM(t, "root.pem", "CERTIFICATE", c.Certificate(Root).Raw)
	list := func(revoked ...Revoked) string {
		var ders [][]byte
		for _, issuer := range Issuers() {
			var r []Revoked
			if issuer == Service {
				r = revoked
			}
			l, err := c.CRL(issuer, 7, r, now)
			if err != nil {
				t.Fatal(err)
			}
			ders = append(ders, l.DER)
		}
		return writePEM(t, "crls.pem", "X509 CRL", ders...)
	}
	verify := func(i Issued, purpose, crls string) (string, error) {
		return openssl(t, "verify", "-x509_strict", "-policy_check", "-crl_check_all", "-CRLfile", crls, "-CAfile", root, "-purpose", purpose,
			"-untrusted", writePEM(t, "issuer.pem", "CERTIFICATE", i.Chain[1]), writePEM(t, "leaf.pem", "CERTIFICATE", i.Chain[0]))
	}
	none := list()
	for _, x := range []struct {
		name    string
		i       Issued
		purpose string
		good    bool
	}{
		{"identity", all.identity, "sslclient", true}, {"identity", all.identity, "sslserver", false},
		{"credential", all.credential, "sslclient", true}, {"credential", all.credential, "sslserver", false},
		{"gate", all.gate, "sslserver", true}, {"gate", all.gate, "sslclient", false},
		{"management", all.management, "sslserver", true},
	} {
		if out, err := verify(x.i, x.purpose, none); (err == nil) != x.good {
			t.Errorf("%s as %s: %v\n%s", x.name, x.purpose, err, out)
		}
	}
	gone := list(Revoked{Serial: all.credential.Serial, At: now, Reason: ReasonCessationOfOperation})
	if out, err := verify(all.credential, "sslclient", gone); err == nil || !strings.Contains(out, "certificate revoked") {
		t.Errorf("revoked: %v\n%s", err, out)
	}
	if out, err := verify(all.identity, "sslclient", gone); err != nil {
		t.Errorf("not revoked: %v\n%s", err, out)
	}
	l, err := c.CRL(Service, 9, []Revoked{{Serial: all.credential.Serial, At: now, Reason: ReasonCessationOfOperation}}, now)
	if err != nil {
		t.Fatal(err)
	}
	out, err := openssl(t, "crl", "-in", writePEM(t, "crl.pem", "X509 CRL", l.DER), "-noout", "-text", "-CAfile", writePEM(t, "service.pem", "CERTIFICATE", c.Certificate(Service).Raw, c.Certificate(Root).Raw))
	for _, want := range []string{"verify OK", "X509v3 CRL Number: \n                9", "Cessation Of Operation"} {
		if !strings.Contains(out, want) {
			t.Errorf("openssl crl: %v, no %q in\n%s", err, want, out)
		}
	}
	if strings.Contains(out, "critical") {
		t.Errorf("a critical extension:\n%s", out)
	}
}

func BenchmarkIssue(b *testing.B) {
	c := testCA(b)
	der := csr(b, &x509.CertificateRequest{})
	for b.Loop() {
		r, err := ParseRequest(der)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := c.Credential(r, "maps", "cr-1", "nav-001", now); err != nil {
			b.Fatal(err)
		}
	}
}
