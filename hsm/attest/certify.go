package attest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
)

// A witness is an attestation key: what it signs, the chip itself has stated.
type witness struct {
	key   crypto.PublicKey
	name  tpm2.TPM2BName // qualified
	nonce [32]byte       // what it was given to sign along
}

// check takes the answer of TPM2_Certify (Part 3, 18.2) about the object with a
// Name, at a place.
func (w witness) check(p hsm.Proof, name, place tpm2.TPM2BName) error {
	if len(p.Attest) > maxAttest || len(p.Signature) > maxSignature {
		return fmt.Errorf("parts of %d and %d bytes, the limits are %d and %d", len(p.Attest), len(p.Signature), maxAttest, maxSignature)
	}
	if err := w.signed(p); err != nil {
		return err
	}
	a, err := tpm2.Unmarshal[tpm2.TPMSAttest](p.Attest)
	if err != nil {
		return err
	}
	if !bytes.Equal(tpm2.Marshal(a), p.Attest) {
		return errors.New("more than one encoding, or bytes left over")
	}
	if a.Magic != tpm2.TPMGeneratedValue || a.Type != tpm2.TPMSTAttestCertify {
		return errors.New("no statement of a TPM about a key")
	}
	if !bytes.Equal(a.ExtraData.Buffer, w.nonce[:]) {
		return errors.New("it was made for another occasion")
	}
	about, err := a.Attested.Certify()
	if err != nil {
		return err
	}
	switch {
	case !bytes.Equal(about.Name.Buffer, name.Buffer):
		return errors.New("it is about another key")
	case !bytes.Equal(about.QualifiedName.Buffer, place.Buffer), !bytes.Equal(a.QualifiedSigner.Buffer, w.name.Buffer):
		return errors.New("the keys do not lie under this storage root key")
	}
	return nil
}

func (w witness) signed(p hsm.Proof) error {
	key, ok := w.key.(*ecdsa.PublicKey)
	if !ok {
		return errors.New("the attestation key does not sign ECDSA")
	}
	s, err := tpm2.Unmarshal[tpm2.TPMTSignature](p.Signature)
	if err != nil {
		return err
	}
	if !bytes.Equal(tpm2.Marshal(s), p.Signature) {
		return errors.New("a signature with more than one encoding, or bytes left over")
	}
	sig, err := s.Signature.ECDSA()
	if err != nil || s.SigAlg != tpm2.TPMAlgECDSA || sig.Hash != tpm2.TPMAlgSHA256 {
		return errors.New("another kind of signature than ECDSA with SHA-256")
	}
	digest := sha256.Sum256(p.Attest)
	if !ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(sig.SignatureR.Buffer), new(big.Int).SetBytes(sig.SignatureS.Buffer)) {
		return errors.New("the attestation key did not sign it")
	}
	return nil
}
