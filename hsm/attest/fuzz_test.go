package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
)

// FuzzPublic: whatever passes has one encoding, and can be worked with.
func FuzzPublic(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	for _, template := range []tpm2.TPMTPublic{tpm2.ECCSRKTemplate, tpm2.ECCEKTemplate, tpm2.RSAEKTemplate} {
		if template.Type == tpm2.TPMAlgECC {
			template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
				X: tpm2.TPM2BECCParameter{Buffer: key.X.FillBytes(make([]byte, 32))}, Y: tpm2.TPM2BECCParameter{Buffer: key.Y.FillBytes(make([]byte, 32))},
			})
		} else {
			template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: bytes.Repeat([]byte{0xff}, 256)})
		}
		f.Add(tpm2.Marshal(template))
	}
	f.Add(tpm2.Marshal(macPublic(hsm.RandomSecret(32), hsm.RandomSecret(32))))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := decode(b, checkEK)
		if err == nil {
			if !bytes.Equal(tpm2.Marshal(p.public), b) || p.key == nil || len(p.name.Buffer) < 34 {
				t.Fatalf("%x", b)
			}
			if _, _, err := (&Proven{ek: p.public, akName: p.name}).Challenge(); err != nil {
				t.Fatalf("%x: %v", b, err)
			}
		}
		if _, err := WrapMAC(b, hsm.RandomSecret(hsm.MACKeySize)); err == nil {
			if p, err := decode(b, checkRoot); err != nil || p.public.Type != tpm2.TPMAlgECC {
				t.Fatalf("wrapped to %x", b)
			}
		}
		for _, check := range []func(*public) error{checkAK, checkIdentity} {
			if p, err := decode(b, check); err == nil && !p.public.ObjectAttributes.FixedTPM {
				t.Fatalf("%x", b)
			}
		}
	})
}

// FuzzStatement: nothing that the key did not sign is believed.
func FuzzStatement(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	name := tpm2.TPM2BName{Buffer: append([]byte{0, 0x0b}, make([]byte, 32)...)}
	statement := tpm2.Marshal(tpm2.TPMSAttest{Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestCertify, QualifiedSigner: name,
		ExtraData: tpm2.TPM2BData{Buffer: make([]byte, 32)}, Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{Name: name, QualifiedName: name})})
	signature := tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
		Hash: tpm2.TPMAlgSHA256, SignatureR: tpm2.TPM2BECCParameter{Buffer: []byte{1}}, SignatureS: tpm2.TPM2BECCParameter{Buffer: []byte{1}}})})
	f.Add(statement, signature)
	f.Add(statement[:20], signature[:5])
	f.Fuzz(func(t *testing.T, statement, signature []byte) {
		w := witness{key: key.Public(), name: name}
		if w.check(hsm.Proof{Attest: statement, Signature: signature}, name, name) == nil {
			t.Fatalf("believed: %x, %x", statement, signature)
		}
	})
}

// FuzzRoots: roots are CAs, or nothing.
func FuzzRoots(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("-----BEGIN X-----\n-----END X-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if r, err := ParseRoots(text); err == nil && r.pool == nil {
			t.Fatalf("%q", text)
		}
	})
}
