package tpm

// What is put together here by hand is what go-tpm makes of the same.

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
)

// theirs is a template of ours as go-tpm has it.
func theirs(p hsm.Purpose) tpm2.TPMTPublic {
	public := tpm2.TPMTPublic{
		Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: true, NoDA: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{
			Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgNull}}),
	}
	switch p {
	case hsm.PurposeMAC:
		public.ObjectAttributes.SignEncrypt = true
		public.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{
			Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgHMAC,
				Details: tpm2.NewTPMUSchemeKeyedHash(tpm2.TPMAlgHMAC, &tpm2.TPMSSchemeHMAC{HashAlg: tpm2.TPMAlgSHA256})}})
	case hsm.PurposeKey, hsm.PurposeAttest:
		public.Type = tpm2.TPMAlgECC
		public.ObjectAttributes.SignEncrypt, public.ObjectAttributes.SensitiveDataOrigin = true, true
		public.ObjectAttributes.Restricted = p == hsm.PurposeAttest
		public.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256,
			Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})}})
	}
	return public
}

func TestAreas(t *testing.T) {
	for _, p := range []hsm.Purpose{hsm.PurposeSeal, hsm.PurposeMAC, hsm.PurposeKey, hsm.PurposeAttest} {
		ours := append(bytes.Clone(template(p)), blank(template(p))...)
		if want := tpm2.Marshal(theirs(p)); !bytes.Equal(ours, want) {
			t.Errorf("%v: %x, want %x", p, ours, want)
		}
	}
	want := tpm2.Marshal(tpm2.ECCSRKTemplate)
	if !rootArea().fits(want) || len(want) != len(rootArea())+2*(2+coordinate) {
		t.Errorf("root: %x, want the beginning of %x", rootArea(), want)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := pointOf(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](authorityArea(point))
	if err != nil {
		t.Fatal(err)
	}
	name, err := tpm2.ObjectName(public)
	if err != nil || !bytes.Equal(name.Buffer, nameOf(authorityArea(point))) {
		t.Errorf("name of an authority: %x, %v", name, err)
	}
	if again, err := tpm2.Pub(*public); err != nil || !key.PublicKey.Equal(again) {
		t.Errorf("an authority's key: %v, %v", again, err)
	}
}

// A chip may leave zeros at the beginning of a coordinate out.
func TestShortCoordinates(t *testing.T) {
	a := template(hsm.PurposeKey)
	for range 2000 {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		b, err := key.PublicKey.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if b[1] != 0 && b[33] != 0 {
			continue
		}
		public := sized(sized(bytes.Clone(a), bytes.TrimLeft(b[1:33], "\x00")), bytes.TrimLeft(b[33:], "\x00"))
		got, err := a.pointIn(public)
		if !a.fits(public) || err != nil || !got.Equal(key.Public()) {
			t.Fatalf("%x: %v", public, err)
		}
		return
	}
	t.Error("no key with a short coordinate came up")
}

func TestAreaFits(t *testing.T) {
	for _, p := range []hsm.Purpose{hsm.PurposeSeal, hsm.PurposeMAC, hsm.PurposeKey} {
		a := template(p)
		good := sized(bytes.Clone(a), make([]byte, 32))
		if p == hsm.PurposeKey {
			good = sized(good, make([]byte, 32))
		}
		if !a.fits(good) {
			t.Fatalf("%v: its own area does not fit", p)
		}
		for n := range good {
			if a.fits(good[:n]) {
				t.Errorf("%v: cut to %d bytes, it fits", p, n)
			}
		}
		for n := range a {
			bad := bytes.Clone(good)
			bad[n] ^= 1
			if a.fits(bad) {
				t.Errorf("%v: byte %d altered, it fits", p, n)
			}
		}
		if a.fits(append(bytes.Clone(good), 0)) {
			t.Errorf("%v: with a byte more, it fits", p)
		}
		if a.fits(sized(sized(bytes.Clone(a), make([]byte, 33)), make([]byte, 33))) {
			t.Errorf("%v: with numbers too long, it fits", p)
		}
	}
}

// The set of registers is part of what an authority signs for: who leads the chip
// through a policy of fewer by hand gets nowhere with an approval of those.
func TestAuthorityBindsRegisters(t *testing.T) {
	key := make([]byte, pointSize)
	few, err := selectPCRs([]int{7})
	if err != nil {
		t.Fatal(err)
	}
	more, err := selectPCRs([]int{7, 14})
	if err != nil {
		t.Fatal(err)
	}
	if few.policyAuthorized(key) == more.policyAuthorized(key) {
		t.Error("two sets of registers make one policy")
	}
}
