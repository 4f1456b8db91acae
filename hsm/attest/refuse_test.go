package attest_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/attest"
	"github.com/kagimori/kagimori/hsm/hsmtest"
)

// refused checks that evidence is refused, and says why.
func (d *device) refused(name string, e *hsm.Evidence, n [32]byte, says string) {
	d.t.Helper()
	_, err := d.roots.Verify(e, d.spki, n, time.Now())
	if !errors.Is(err, attest.ErrProof) || !strings.Contains(err.Error(), says) {
		d.t.Errorf("%s: %v, want %q", name, err, says)
	}
}

// req: L3
func TestCertificatesThatAreRefused(t *testing.T) {
	maker, p := hsmtest.NewMaker(t), hsmtest.NewTPM(t)
	ek := p.EK("ecc")
	maker.Endorse(p)
	d := newDevice(t, p, maker.Roots())
	n := nonce()
	good, _ := d.evidence(n)
	if _, err := d.roots.Verify(good, d.spki, n, time.Now()); err != nil {
		t.Fatal(err)
	}
	another := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	for name, c := range map[string]struct {
		certificate []byte
		says        string
	}{
		"of another maker":         {hsmtest.NewMaker(t).Certificate(ek, nil), "unknown authority"},
		"of another chip":          {maker.Certificate(another.Public(), nil), "for another key"},
		"for another use":          {maker.Certificate(ek, func(c *x509.Certificate) { c.UnknownExtKeyUsage = nil }), "2.23.133.8.1"},
		"of a CA":                  {maker.Certificate(ek, func(c *x509.Certificate) { c.IsCA = true }), "2.23.133.8.1"},
		"expired":                  {maker.Certificate(ek, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), "expired"},
		"not yet good":             {maker.Certificate(ek, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }), "not yet valid"},
		"with a critical stranger": {maker.Certificate(ek, func(c *x509.Certificate) { c.ExtraExtensions[0].Id = asn1.ObjectIdentifier{2, 5, 29, 99} }), "unhandled critical"},
		"none":                     {nil, "endorsement certificate"},
		"too long":                 {make([]byte, attest.MaxEndorsement+1), "limit"},
		"with more behind it":      {append(bytes.Clone(good.Endorsement), 0), "trailing"},
	} {
		e := *good
		e.Endorsement = c.certificate
		d.refused(name, &e, n, c.says)
	}
	long := *good
	long.Chain = slices.Repeat([][]byte{good.Endorsement}, attest.MaxChain+1)
	d.refused("a long chain", &long, n, "limit")
	for name, roots := range map[string]string{"empty": "", "no PEM": "x", "a leaf": "leaf", "text behind": string(maker.Roots()) + "x", "a key": "-----BEGIN X-----\n-----END X-----\n"} {
		if name == "a leaf" {
			roots = string(hsmtest.PEM(good.Endorsement))
		}
		if _, err := attest.ParseRoots([]byte(roots)); err == nil {
			t.Errorf("roots, %s: taken", name)
		}
	}
}

// RSA keys that a maker marks for OAEP are keys like others.
func TestCertificateMarkedOAEP(t *testing.T) {
	maker, p := hsmtest.NewMaker(t), hsmtest.NewTPM(t)
	der := maker.Certificate(p.EK("rsa"), nil)
	cert := must(x509.ParseCertificate(der))
	// The same certificate, marked, and signed anew.
	var tbs struct {
		Raw     asn1.RawContent
		Version int `asn1:"explicit,tag:0"`
		Serial  *big.Int
		Alg     pkix.AlgorithmIdentifier
		Issuer  asn1.RawValue
		Valid   asn1.RawValue
		Subject asn1.RawValue
		SPKI    struct {
			Alg pkix.AlgorithmIdentifier
			Key asn1.BitString
		}
		Extensions []pkix.Extension `asn1:"explicit,tag:3"`
	}
	must(asn1.Unmarshal(cert.RawTBSCertificate, &tbs))
	tbs.Raw, tbs.SPKI.Alg = nil, pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}}
	marked := maker.Resign(must(asn1.Marshal(tbs)), tbs.Alg)
	if c := must(x509.ParseCertificate(marked)); c.PublicKey != nil {
		t.Fatal("crypto/x509 has learned of OAEP keys: the code for them can go")
	}
	maker.Put(p, 0x01c00002, marked)
	newDevice(t, p, maker.Roots()).whole()
}

// What two chips, or two moments, say does not mix. req: L3
func TestProofsThatAreRefused(t *testing.T) {
	maker, one, two := hsmtest.NewMaker(t), hsmtest.NewTPM(t), hsmtest.NewTPM(t)
	maker.Endorse(one)
	maker.Endorse(two)
	d, o := newDevice(t, one, maker.Roots()), newDevice(t, two, maker.Roots())
	n := nonce()
	good, _ := d.evidence(n)
	foreign, _ := o.evidence(n)
	early, _ := d.evidence(nonce())
	for name, c := range map[string]struct {
		spoil func(*hsm.Evidence)
		says  string
	}{
		"stale": {func(e *hsm.Evidence) {
			e.AK, e.RootProof, e.IdentityProof = early.AK, early.RootProof, early.IdentityProof
		}, "another occasion"},
		"the AK of another chip": {func(e *hsm.Evidence) { e.AK = foreign.AK }, "did not sign"},
		"the statements of another chip": {func(e *hsm.Evidence) {
			e.AK, e.RootProof, e.IdentityProof = foreign.AK, foreign.RootProof, foreign.IdentityProof
		}, "another key"},
		"the root of another chip":           {func(e *hsm.Evidence) { e.Root = foreign.Root }, "another key"},
		"the identity of another chip":       {func(e *hsm.Evidence) { e.Identity = foreign.Identity }, "not the key"},
		"a statement about another key":      {func(e *hsm.Evidence) { e.IdentityProof = e.RootProof }, "another key"},
		"root and AK of another, all signed": {func(e *hsm.Evidence) { e.AK, e.Root, e.RootProof = foreign.AK, foreign.Root, foreign.RootProof }, "did not sign"},
		"the EK of another chip":             {func(e *hsm.Evidence) { e.EK = foreign.EK }, "for another key"},
		"an altered statement":               {func(e *hsm.Evidence) { e.RootProof.Attest = flip(e.RootProof.Attest, 40) }, "did not sign"},
		"an altered signature":               {func(e *hsm.Evidence) { e.RootProof.Signature = flip(e.RootProof.Signature, 20) }, "did not sign"},
		"no signature":                       {func(e *hsm.Evidence) { e.RootProof.Signature = nil }, "storage root key"},
		"an AK in place of an EK":            {func(e *hsm.Evidence) { e.EK = e.AK }, "endorsement key"},
		"an identity key in place of an AK":  {func(e *hsm.Evidence) { e.AK = e.Identity }, "restricted to signing"},
		"an EK in place of a root":           {func(e *hsm.Evidence) { e.Root = e.EK }, "template"},
		"a public area with more behind it":  {func(e *hsm.Evidence) { e.AK = append(bytes.Clone(e.AK), 0) }, "attestation key"},
	} {
		e := *good
		c.spoil(&e)
		d.refused(name, &e, n, c.says)
	}
	// EK and certificate of one chip, all else of another: nothing in the bytes
	// tells, but neither chip opens the challenge.
	mixed, ak := o.evidence(n)
	mixed.EK, mixed.Endorsement = good.EK, good.Endorsement
	proven := must(o.roots.Verify(mixed, o.spki, n, time.Now()))
	challenge, secret, err := proven.Challenge()
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Wipe()
	if _, err := o.module.Activate(t.Context(), ak, challenge); !errors.Is(err, hsm.ErrBlob) {
		t.Errorf("the chip of the AK opens it: %v", err)
	}
	_, own := d.evidence(n)
	if _, err := d.module.Activate(t.Context(), own, challenge); !errors.Is(err, hsm.ErrBlob) {
		t.Errorf("the chip of the EK opens it: %v", err)
	}
	d.whole() // and is none the worse for it
}

func flip(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 1
	return b
}

// Keys made in software look as they like: each attribute that could betray
// them must be there, and then the chip's Name for them does not fit. req: L3
func TestKeysThatAreRefused(t *testing.T) {
	d := endorsed(t)
	n := nonce()
	good, _ := d.evidence(n)
	type change = func(*tpm2.TPMTPublic)
	attribute := func(set func(*tpm2.TPMAObject)) change {
		return func(p *tpm2.TPMTPublic) { set(&p.ObjectAttributes) }
	}
	for name, c := range map[string]struct {
		part  func(*hsm.Evidence) *[]byte
		spoil change
		says  string
	}{
		"an AK that signs anything":    {akOf, attribute(func(a *tpm2.TPMAObject) { a.Restricted = false }), "restricted to signing"},
		"an AK that decrypts":          {akOf, attribute(func(a *tpm2.TPMAObject) { a.Decrypt = true }), "restricted to signing"},
		"an AK that may leave":         {akOf, attribute(func(a *tpm2.TPMAObject) { a.FixedTPM = false }), "may leave"},
		"an AK that may move":          {akOf, attribute(func(a *tpm2.TPMAObject) { a.FixedParent = false }), "may leave"},
		"an AK from outside":           {akOf, attribute(func(a *tpm2.TPMAObject) { a.SensitiveDataOrigin = false }), "outside"},
		"an identity that may leave":   {identityOf, attribute(func(a *tpm2.TPMAObject) { a.FixedTPM = false }), "may leave"},
		"an identity that may move":    {identityOf, attribute(func(a *tpm2.TPMAObject) { a.FixedParent = false }), "may leave"},
		"an identity from outside":     {identityOf, attribute(func(a *tpm2.TPMAObject) { a.SensitiveDataOrigin = false }), "outside"},
		"an identity that decrypts":    {identityOf, attribute(func(a *tpm2.TPMAObject) { a.Decrypt = true }), "not for signing"},
		"a root that may leave":        {rootOf, attribute(func(a *tpm2.TPMAObject) { a.FixedTPM = false }), "may leave"},
		"a root for anything":          {rootOf, attribute(func(a *tpm2.TPMAObject) { a.Restricted = false }), "restricted to decryption"},
		"a root with a policy":         {rootOf, func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = make([]byte, 32) }, "template"},
		"an EK that signs":             {ekOf, attribute(func(a *tpm2.TPMAObject) { a.SignEncrypt = true }), "restricted to decryption"},
		"an EK that may leave":         {ekOf, attribute(func(a *tpm2.TPMAObject) { a.FixedTPM = false }), "may leave"},
		"a point off its curve":        {akOf, func(p *tpm2.TPMTPublic) { must(p.Unique.ECC()).X.Buffer[5] ^= 1 }, "no point"},
		"a good-looking AK":            {akOf, software(t), "did not sign"},
		"an identity with its own key": {identityOf, software(t), "not the key"},
	} {
		e := *good
		part := c.part(&e)
		area := must(tpm2.Unmarshal[tpm2.TPMTPublic](*part))
		c.spoil(area)
		*part = tpm2.Marshal(area)
		d.refused(name, &e, n, c.says)
	}
}

func akOf(e *hsm.Evidence) *[]byte       { return &e.AK }
func ekOf(e *hsm.Evidence) *[]byte       { return &e.EK }
func rootOf(e *hsm.Evidence) *[]byte     { return &e.Root }
func identityOf(e *hsm.Evidence) *[]byte { return &e.Identity }

// software puts another key in a public area.
func software(t *testing.T) func(*tpm2.TPMTPublic) {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	return func(p *tpm2.TPMTPublic) {
		point := must(p.Unique.ECC())
		point.X.Buffer, point.Y.Buffer = key.X.FillBytes(make([]byte, 32)), key.Y.FillBytes(make([]byte, 32))
	}
}

// A software key that claims all that a chip's has, and signs for itself: only
// the challenge tells, for no chip has it. req: L3
func TestASoftwareAKOpensNoChallenge(t *testing.T) {
	d := endorsed(t)
	n := nonce()
	e, ak := d.evidence(n)
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	area := must(tpm2.Unmarshal[tpm2.TPMTPublic](e.AK))
	point := must(area.Unique.ECC())
	point.X.Buffer, point.Y.Buffer = key.X.FillBytes(make([]byte, 32)), key.Y.FillBytes(make([]byte, 32))
	forged := *e
	forged.AK = tpm2.Marshal(area)
	name := func(b []byte) []byte { s := sha256.Sum256(b); return append([]byte{0, 0x0b}, s[:]...) }
	under := func(parent, object []byte) []byte { return name(append(bytes.Clone(parent), object...)) }
	root := under([]byte{0x40, 0, 0, 1}, name(e.Root))
	forge := func(p *hsm.Proof, signer []byte, spoil func(*tpm2.TPMSAttest)) {
		a := must(tpm2.Unmarshal[tpm2.TPMSAttest](p.Attest))
		a.QualifiedSigner.Buffer = signer
		spoil(a)
		p.Attest = tpm2.Marshal(a)
		digest := sha256.Sum256(p.Attest)
		r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		p.Signature = tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
			Hash: tpm2.TPMAlgSHA256, SignatureR: tpm2.TPM2BECCParameter{Buffer: r.FillBytes(make([]byte, 32))}, SignatureS: tpm2.TPM2BECCParameter{Buffer: s.FillBytes(make([]byte, 32))},
		})})
	}
	signer, as := under(root, name(forged.AK)), func(*tpm2.TPMSAttest) {}
	for says, forgery := range map[string]func(){
		"another key": func() {
			forge(&forged.IdentityProof, signer, func(a *tpm2.TPMSAttest) { must(a.Attested.Certify()).Name.Buffer = name(forged.AK) })
		},
		"no statement": func() {
			forge(&forged.IdentityProof, signer, func(a *tpm2.TPMSAttest) {
				a.Type, a.Attested = tpm2.TPMSTAttestCreation, tpm2.NewTPMUAttest(tpm2.TPMSTAttestCreation, &tpm2.TPMSCreationInfo{ObjectName: tpm2.TPM2BName{Buffer: name(e.Identity)}})
			})
		},
		"do not lie under": func() { forge(&forged.IdentityProof, root, as) },
		"do not lie under ": func() {
			forge(&forged.IdentityProof, signer, func(a *tpm2.TPMSAttest) { must(a.Attested.Certify()).QualifiedName.Buffer = signer })
		},
	} {
		keep := forged.IdentityProof
		forge(&forged.RootProof, signer, as)
		forgery()
		d.refused("a forgery", &forged, n, strings.TrimSpace(says))
		forged.IdentityProof = keep
	}
	forge(&forged.IdentityProof, signer, as)
	proven, err := d.roots.Verify(&forged, d.spki, n, time.Now())
	if err != nil {
		t.Fatalf("the forgery should look well: %v", err)
	}
	challenge, _, err := proven.Challenge()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.module.Activate(context.Background(), ak, challenge); !errors.Is(err, hsm.ErrBlob) {
		t.Errorf("the chip opens a challenge to a key that it has not: %v", err)
	}
}

func isEndorsement(err error) bool { return errors.Is(err, hsm.ErrEndorsement) }
