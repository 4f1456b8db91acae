package hsm

import (
	"context"
	"errors"
)

// Attestation (DESIGN D8): a chip proves that it is one, that the device's
// identity key and the storage root key are in it, and so that what is wrapped
// to that root key stays in it. hsm/attest checks it on the server's side.

// LevelAttested is a TPM chip that has proven so to the server.
const LevelAttested Level = "tpm+attested"

// Evidence is what a chip shows. Everything in it is public.
type Evidence struct {
	Endorsement   []byte   // DER certificate of the endorsement key (EK)
	Chain         [][]byte // further certificates that the chip keeps, may be empty
	EK            []byte   // TPMT_PUBLIC of the EK
	AK            []byte   // TPMT_PUBLIC of the attestation key, made for this proof
	Root          []byte   // TPMT_PUBLIC of the storage root key
	Identity      []byte   // TPMT_PUBLIC of the identity key
	RootProof     Proof    // AK over Root
	IdentityProof Proof    // AK over Identity
}

// Proof is TPM2_Certify's answer.
type Proof struct {
	Attest    []byte // TPMS_ATTEST
	Signature []byte // TPMT_SIGNATURE
}

// Challenge is what only the chip with that EK and AK can open
// (TPM2_MakeCredential).
type Challenge struct {
	Credential []byte // TPM2B_ID_OBJECT's content
	Secret     []byte // TPM2B_ENCRYPTED_SECRET's content
}

// Wrapped is a MAC key of MACKeySize bytes under a storage root key
// (TPM2_Import): it opens in that chip only and never comes out.
type Wrapped struct {
	Public    []byte // TPMT_PUBLIC
	Duplicate []byte // TPM2B_PRIVATE's content
	Seed      []byte // TPM2B_ENCRYPTED_SECRET's content
}

// Attester is a Module that can prove what it is.
type Attester interface {
	// Evidence proves the identity key (a Blob of NewKey); nonce makes it fresh.
	// The Blob is the AK's, for Activate.
	Evidence(ctx context.Context, identity Blob, nonce [32]byte) (*Evidence, Blob, error)
	// Activate opens a challenge.
	Activate(ctx context.Context, ak Blob, challenge Challenge) (*Secret, error)
	// ImportWrapped takes in a key that was wrapped to the storage root key.
	ImportWrapped(ctx context.Context, key Wrapped) (Blob, error)
}

// ErrEndorsement is a TPM for which no maker vouches: it has no certificate that
// fits its endorsement key.
var ErrEndorsement = errors.New("the TPM has no certificate of its maker")
