package hsmtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// A Maker certifies the endorsement keys of chips, as a manufacturer does.
type Maker struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

// NewMaker founds a manufacturer.
func NewMaker(t testing.TB) *Maker {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	m := &Maker{t: t, key: key}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Maker of TPMs"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(20, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	m.cert = m.sign(template, key.Public(), template)
	return m
}

// Roots is its CA certificate in PEM.
func (m *Maker) Roots() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.cert.Raw})
}

func (m *Maker) sign(template *x509.Certificate, key any, parent *x509.Certificate) *x509.Certificate {
	m.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, m.key)
	if err != nil {
		m.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		m.t.Fatal(err)
	}
	return cert
}

// Certificate is an endorsement certificate for a key, after change.
func (m *Maker) Certificate(key any, change func(*x509.Certificate)) []byte {
	m.t.Helper()
	// A critical name that says what chip it is, as the profile of TCG asks:
	// tcg-at-tpmModel in a directory name.
	name, err := asn1.Marshal([]pkix.RelativeDistinguishedNameSET{{{Type: asn1.ObjectIdentifier{2, 23, 133, 2, 2}, Value: "test"}}})
	if err != nil {
		m.t.Fatal(err)
	}
	san, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: name}})
	if err != nil {
		m.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
		BasicConstraintsValid: true, UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: san}},
	}
	if change != nil {
		change(template)
	}
	return m.sign(template, key, m.cert).Raw
}

// Endorse certifies the chip's P-256 endorsement key and puts the certificate
// where TCG wants it. Modules on the TPM must be closed.
func (m *Maker) Endorse(p *TPM) {
	m.t.Helper()
	m.Put(p, 0x01c0000a, m.Certificate(p.EK("ecc"), nil))
}

// Put writes an NV index of the owner that everybody may read.
func (m *Maker) Put(p *TPM, index uint32, data []byte) {
	m.t.Helper()
	file := filepath.Join(p.dir, "nv")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		m.t.Fatal(err)
	}
	at := fmt.Sprintf("%#x", index)
	p.TryTool("tpm2_nvundefine", "-C", "o", at)
	p.Tool("tpm2_nvdefine", "-C", "o", "-s", fmt.Sprint(len(data)), "-a", "ownerwrite|ownerread|authread|no_da", at)
	p.Tool("tpm2_nvwrite", "-C", "o", "-i", file, at)
}

// EK is the chip's endorsement key of an algorithm, "ecc" (P-256) or "rsa", as
// tpm2-tools makes it.
func (p *TPM) EK(algorithm string) any {
	p.t.Helper()
	p.Tool("tpm2_createek", "-c", "ek.ctx", "-G", algorithm, "-u", "ek.pem", "-f", "pem")
	p.Tool("tpm2_flushcontext", "-t")
	text, err := os.ReadFile(filepath.Join(p.dir, "ek.pem"))
	if err != nil {
		p.t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		p.t.Fatalf("no key in %q", text)
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		p.t.Fatal(err)
	}
	return key
}

// NewMadeTPM is NewTPM with what swtpm_setup gives a chip in its factory: RSA
// and P-384 endorsement keys that stand in it, and certificates for them. roots
// is the factory's CA in PEM.
func NewMadeTPM(t testing.TB) (p *TPM, roots []byte) {
	t.Helper()
	if _, err := exec.LookPath("swtpm_setup"); err != nil {
		t.Fatal("swtpm_setup is missing: run scripts/setup.sh")
	}
	p = newTPM(t)
	write := func(name, text string) string {
		path := filepath.Join(p.dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	at := func(name string) string { return filepath.Join(p.dir, name) }
	options := write("ca.options", "--platform-manufacturer Test\n--platform-version 1\n--platform-model Board\n")
	ca := write("ca.conf", "statedir = "+p.dir+"\nsigningkey = "+at("sign.pem")+"\nissuercert = "+at("issuer.pem")+"\ncertserial = "+at("serial")+"\n")
	config := write("setup.conf", "create_certs_tool = /usr/bin/swtpm_localca\ncreate_certs_tool_config = "+ca+"\ncreate_certs_tool_options = "+options+"\n")
	out, err := exec.Command("swtpm_setup", "--tpm2", "--tpmstate", p.dir, "--create-ek-cert", "--lock-nvram", "--pcr-banks", "sha256", "--config", config).CombinedOutput()
	if err != nil {
		t.Fatalf("swtpm_setup: %v: %s", err, out)
	}
	if roots, err = os.ReadFile(at("issuer.pem")); err != nil {
		t.Fatal(err)
	}
	p.Start()
	return p, roots
}

// PEM is a certificate as text.
func PEM(der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}) }

// Resign makes a certificate around a TBSCertificate that crypto/x509 would not
// make.
func (m *Maker) Resign(tbs []byte, algorithm pkix.AlgorithmIdentifier) []byte {
	m.t.Helper()
	digest := sha512.Sum384(tbs)
	signature, err := ecdsa.SignASN1(rand.Reader, m.key, digest[:])
	if err != nil {
		m.t.Fatal(err)
	}
	der, err := asn1.Marshal(struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{asn1.RawValue{FullBytes: tbs}, algorithm, asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}})
	if err != nil {
		m.t.Fatal(err)
	}
	return der
}

// DER is its CA certificate.
func (m *Maker) DER() []byte { return m.cert.Raw }

// Under is an issuing CA of the maker, with a key of its own.
func (m *Maker) Under() *Maker {
	m.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		m.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "Issuer of TPMs"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	return &Maker{t: m.t, key: key, cert: m.sign(template, key.Public(), m.cert)}
}
