package transport

import (
	"crypto/hmac"
	"crypto/sha256"
	"slices"
)

// Proof of a TPM (DESIGN D8, req: L3). The server asks for it when the common
// key is proven, so that no stranger learns which terminals must, or makes the
// server check certificates. hsm/attest says why it is a proof.
//
//	      (3a) ← EnrollAttest
//	(3b) → EnrollEvidence, made for N   (3c) ← EnrollActivate, which hides S
//	(3d) → EnrollActivated, with MAC_a  (4) ← EnrollCertificate with the code
//	N     = SHA-256("kagimori enroll attest/1" ‖ X ‖ SHA-256(1 ‖ 2 ‖ 3))
//	MAC_a = HMAC-SHA256(CK ‖ S, "a" ‖ X ‖ SHA-256(1 ‖ 2 ‖ 3 ‖ 3b ‖ 3c))
//
// So evidence holds for one request on one connection only, and who opened the
// challenge is who asked.
const enrollAttestLabel = "kagimori enroll attest/1"

// EnrollAttest asks a terminal to prove its TPM.
type EnrollAttest struct{}

// EnrollEvidence is what the chip shows (hsm.Evidence). Parts 3 to 6 are
// TPMT_PUBLIC.
type EnrollEvidence struct {
	Endorsement   []byte      `cbor:"1,keyasint"` // DER certificate
	Chain         [][]byte    `cbor:"2,keyasint"`
	EK            []byte      `cbor:"3,keyasint"`
	AK            []byte      `cbor:"4,keyasint"`
	Root          []byte      `cbor:"5,keyasint"`
	Identity      []byte      `cbor:"6,keyasint"`
	RootProof     EnrollProof `cbor:"7,keyasint"`
	IdentityProof EnrollProof `cbor:"8,keyasint"`
}

// EnrollProof is an answer of TPM2_Certify: TPMS_ATTEST and TPMT_SIGNATURE.
type EnrollProof struct {
	Attest    []byte `cbor:"1,keyasint"`
	Signature []byte `cbor:"2,keyasint"`
}

// EnrollActivate hides a secret from all but that chip (TPM2_MakeCredential).
type EnrollActivate struct {
	Credential []byte `cbor:"1,keyasint"`
	Secret     []byte `cbor:"2,keyasint"`
}

// EnrollActivated shows that the chip has opened it.
type EnrollActivated struct {
	MAC [32]byte `cbor:"1,keyasint"`
}

// WrappedCode is the security code of a group's epoch, wrapped to the storage
// root key of a chip (TPM2_Import): TPMT_PUBLIC, TPM2B_PRIVATE's content,
// TPM2B_ENCRYPTED_SECRET's content.
type WrappedCode struct {
	Group     Name   `cbor:"1,keyasint"`
	Epoch     uint32 `cbor:"2,keyasint"`
	Public    []byte `cbor:"3,keyasint"`
	Duplicate []byte `cbor:"4,keyasint"`
	Seed      []byte `cbor:"5,keyasint"`
}

// Type implements Body.
func (*EnrollAttest) Type() string    { return "enroll.attest" }
func (*EnrollEvidence) Type() string  { return "enroll.evidence" }
func (*EnrollActivate) Type() string  { return "enroll.activate" }
func (*EnrollActivated) Type() string { return "enroll.activated" }

// EnrollAttestNonce is N, over the bodies (1), (2) and (3) as sent.
func EnrollAttestNonce(exporter []byte, first, second, third []byte) [32]byte {
	sum := sha256.Sum256(slices.Concat(first, second, third))
	return sha256.Sum256(slices.Concat([]byte(enrollAttestLabel), exporter, sum[:]))
}

// EnrollActivatedMAC is MAC_a; bodies are (1), (2), (3), (3b) and (3c) as sent.
func EnrollActivatedMAC(commonKey, secret, exporter []byte, bodies ...[]byte) [32]byte {
	key := slices.Concat(commonKey, secret)
	defer clear(key)
	sum := sha256.Sum256(slices.Concat(bodies...))
	m := hmac.New(sha256.New, key)
	m.Write([]byte("a"))
	m.Write(exporter)
	m.Write(sum[:])
	return [32]byte(m.Sum(nil))
}
