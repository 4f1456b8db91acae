// Package attest is the other side of hsm.Attester: it checks, far from any
// chip, that a device's keys are in a TPM whose maker vouches for it, and wraps
// keys so that they open in that TPM only. It is pure: bytes in, a verdict out.
// START HERE, then read along a proof:
//
//   - certificate.go: the chip's endorsement key (EK) has a certificate of a
//     maker that the operator trusts
//   - public.go: which keys are good enough
//   - certify.go: the attestation key (AK) says that the storage root key and
//     the identity key are in the same chip, now
//   - wrap.go: what only that chip opens. TPM2_ActivateCredential ties the AK to
//     the EK: until it is answered, a proof is worth nothing
//
// The chain of reasons: the maker's certificate covers the EK; only the chip
// with the EK opens the challenge, and only if an AK of that very Name, which
// has its attributes in it, is loaded in it; such an AK signs nothing but what
// the chip itself states; it states the Names of root and identity key, and so
// that neither can leave the chip, and that both are where the AK is.
package attest

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
)

// ErrProof is evidence that proves nothing; the error around it says what is
// wrong and is fit to be shown to the one who sent it.
var ErrProof = errors.New("the TPM does not prove what it should")

// Bounds on what a device sends, in bytes. The longest public area that is
// taken is that of an RSA-4096 key.
const (
	MaxEndorsement = 4 << 10
	MaxChain       = 3 // certificates between the EK's and the root
	maxPublic      = 600
	maxAttest      = 512
	maxSignature   = 128 // ECDSA P-256: 72
)

// SecretSize is the length of the secret in a challenge, in bytes.
const SecretSize = 32

// Proven is evidence that holds, but for the answer to a challenge.
type Proven struct {
	// Endorsement is SHA-256 of the EK, as SubjectPublicKeyInfo: the chip's name.
	Endorsement [sha256.Size]byte
	// Root is the TPMT_PUBLIC of the storage root key, for WrapMAC.
	Root []byte

	ek     tpm2.TPMTPublic
	akName tpm2.TPM2BName
}

// Verify checks evidence about the identity key, a DER SubjectPublicKeyInfo,
// that was made for nonce. What is wrong with it is an ErrProof. The result is
// to be believed only after Challenge was answered with its secret.
func (r *Roots) Verify(e *hsm.Evidence, identity []byte, nonce [32]byte, now time.Time) (*Proven, error) {
	p, err := r.verify(e, identity, nonce, now)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProof, err)
	}
	return p, nil
}

func (r *Roots) verify(e *hsm.Evidence, identity []byte, nonce [32]byte, now time.Time) (*Proven, error) {
	cert, err := r.endorsement(e.Endorsement, e.Chain, now)
	if err != nil {
		return nil, fmt.Errorf("endorsement certificate: %w", err)
	}
	ek, err := decode(e.EK, checkEK)
	if err != nil {
		return nil, fmt.Errorf("endorsement key: %w", err)
	}
	if err := certifies(cert, ek.key); err != nil {
		return nil, fmt.Errorf("endorsement certificate: %w", err)
	}
	ak, err := decode(e.AK, checkAK)
	if err != nil {
		return nil, fmt.Errorf("attestation key: %w", err)
	}
	root, err := decode(e.Root, checkRoot)
	if err != nil {
		return nil, fmt.Errorf("storage root key: %w", err)
	}
	id, err := decode(e.Identity, checkIdentity)
	if err != nil {
		return nil, fmt.Errorf("identity key: %w", err)
	}
	if err := sameKey(id.key, identity); err != nil {
		return nil, fmt.Errorf("identity key: %w", err)
	}
	where := qualified(ownerHierarchy, root.name)
	by := witness{key: ak.key, name: qualified(where, ak.name), nonce: nonce}
	if err := by.check(e.RootProof, root.name, where); err != nil {
		return nil, fmt.Errorf("proof of the storage root key: %w", err)
	}
	if err := by.check(e.IdentityProof, id.name, qualified(where, id.name)); err != nil {
		return nil, fmt.Errorf("proof of the identity key: %w", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(ek.key)
	if err != nil {
		return nil, fmt.Errorf("endorsement key: %w", err)
	}
	return &Proven{Endorsement: sha256.Sum256(spki), Root: e.Root, ek: ek.public, akName: ak.name}, nil
}
