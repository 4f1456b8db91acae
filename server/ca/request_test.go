package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"net"
	"net/url"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/transport"
)

func TestRequestsThatAreRefused(t *testing.T) {
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	rsaKey, _ := rsa.GenerateKey(rand.Reader, 2048)
	_, edKey, _ := ed25519.GenerateKey(rand.Reader)
	with := func(key crypto.Signer, algorithm x509.SignatureAlgorithm, template x509.CertificateRequest) []byte {
		template.SignatureAlgorithm = algorithm
		der, err := x509.CreateCertificateRequest(rand.Reader, &template, key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	good := with(p256, x509.ECDSAWithSHA256, x509.CertificateRequest{})
	if _, err := ParseRequest(good); err != nil {
		t.Fatal(err)
	}
	flipped := append([]byte(nil), good...)
	flipped[len(flipped)-3] ^= 1
	for name, der := range map[string][]byte{
		"nothing":         nil,
		"rubbish":         []byte("rubbish"),
		"cut short":       good[:len(good)-1],
		"trailing byte":   append(append([]byte(nil), good...), 0),
		"wrong signature": flipped,
		"P-384":           with(p384, x509.ECDSAWithSHA384, x509.CertificateRequest{}),
		"RSA":             with(rsaKey, x509.SHA256WithRSA, x509.CertificateRequest{}),
		"Ed25519":         with(edKey, x509.PureEd25519, x509.CertificateRequest{}),
		"SHA-512":         with(p256, x509.ECDSAWithSHA512, x509.CertificateRequest{}),
		"too long":        with(p256, x509.ECDSAWithSHA256, x509.CertificateRequest{Subject: pkix.Name{CommonName: strings.Repeat("x", transport.MaxCertificate)}}),
	} {
		if _, err := ParseRequest(der); !errors.Is(err, ErrRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNamesInARequestAreNeverTrusted(t *testing.T) {
	c := testCA(t)
	uri := func(s string) []*url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return []*url.URL{u}
	}
	own := uri("kagimori://demo/terminal/nav-001")
	for name, x := range map[string]struct {
		template x509.CertificateRequest
		good     bool
	}{
		"no name":           {x509.CertificateRequest{}, true},
		"own name":          {x509.CertificateRequest{URIs: own}, true},
		"subject ignored":   {x509.CertificateRequest{Subject: pkix.Name{CommonName: "nav-999"}, URIs: own}, true},
		"another terminal":  {x509.CertificateRequest{URIs: uri("kagimori://demo/terminal/nav-002")}, false},
		"another beside":    {x509.CertificateRequest{URIs: append(own, uri("kagimori://demo/terminal/nav-002")...)}, false},
		"the server":        {x509.CertificateRequest{URIs: uri("kagimori://demo/server")}, false},
		"a credential":      {x509.CertificateRequest{URIs: uri("kagimori://demo/service/maps/credential/cr-1")}, false},
		"DNS name":          {x509.CertificateRequest{DNSNames: []string{"server.test"}}, false},
		"address":           {x509.CertificateRequest{IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1)}}, false},
		"mail address":      {x509.CertificateRequest{EmailAddresses: []string{"a@b"}}, false},
		"asks to be a CA":   {x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}}}, true},
		"asks for a server": {x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Value: []byte{0x30, 10, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 1}}}}, true},
	} {
		r, err := ParseRequest(csr(t, &x.template))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		i, err := c.Identity(r, "nav-001", now)
		if (err == nil) != x.good {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil {
			continue
		}
		if _, err := transport.VerifyTerminal(parsed(t, i), c.Roots(), "demo", now); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := parsed(t, i)[0].Subject.CommonName; got != "nav-001" {
			t.Errorf("%s: subject %s", name, got)
		}
	}
	r, err := ParseRequest(csr(t, &x509.CertificateRequest{DNSNames: []string{"maps.test"}, IPAddresses: []net.IP{net.IPv4(192, 0, 2, 7)}}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Gate(r, "maps", []string{"maps.test", "192.0.2.7"}, now); err != nil {
		t.Errorf("names as ordered: %v", err)
	}
	if _, err := c.Gate(r, "maps", []string{"maps.test"}, now); !errors.Is(err, ErrRequest) {
		t.Errorf("an address that was not ordered: %v", err)
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add(csr(f, &x509.CertificateRequest{}))
	f.Add(csr(f, &x509.CertificateRequest{DNSNames: []string{"maps.test"}}))
	f.Add([]byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, der []byte) {
		r, err := ParseRequest(der)
		if err != nil {
			if !errors.Is(err, ErrRequest) {
				t.Fatal(err)
			}
			return
		}
		if r.Device() != transport.NewDeviceID(r.csr.RawSubjectPublicKeyInfo) {
			t.Fatal("one key, two devices")
		}
	})
}
