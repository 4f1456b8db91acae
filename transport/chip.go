package transport

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"fmt"
)

// Chips that keys may go to (docs/tpm.md). A key that lives in a chip and may
// travel leaves it only for a chip that the fleet key has approved: the
// management server's word that a storage key is in a chip.

// Bounds of what is said about a chip, in bytes.
const (
	// MaxChipParent bounds the public area of a storage key.
	MaxChipParent = maxKeycopyParent
	// MaxChipSignature bounds a signature of the fleet key, ASN.1.
	MaxChipSignature = 80
	// FleetKeySize is the length of the fleet key, a DER SubjectPublicKeyInfo of
	// a P-256 key.
	FleetKeySize = 91
)

// ChipReport tells the server which storage key this terminal's chip has. It is
// sent on each connection; a server that does not know it answers FaultUnknown.
type ChipReport struct {
	Parent []byte `cbor:"1,keyasint"` // TPMT_PUBLIC
}

// ChipApproval answers it, and is what an administrator brings by hand. Without
// a Signature the chip is not approved, and Why says why not.
type ChipApproval struct {
	Fleet     []byte `cbor:"1,keyasint"` // the fleet key, DER SubjectPublicKeyInfo
	Parent    []byte `cbor:"2,keyasint"`
	Signature []byte `cbor:"3,keyasint,omitempty"`
	Why       string `cbor:"4,keyasint,omitempty"`
}

// Type implements Body.
func (*ChipReport) Type() string   { return "chip.report" }
func (*ChipApproval) Type() string { return "chip.approval" }

// ErrFleetKey is a fleet key that is none.
var ErrFleetKey = errors.New("not the key of a fleet: a P-256 key is needed")

// ParseFleetKey reads one.
func ParseFleetKey(spki []byte) (*ecdsa.PublicKey, error) {
	if len(spki) != FleetKeySize {
		return nil, fmt.Errorf("%w (%d bytes)", ErrFleetKey, len(spki))
	}
	key, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, fmt.Errorf("%w (%v)", ErrFleetKey, err)
	}
	ec, ok := key.(*ecdsa.PublicKey)
	if !ok || ec.Curve != elliptic.P256() {
		return nil, ErrFleetKey
	}
	return ec, nil
}

// Check refuses an approval that is over a limit or has no fleet key. It does
// not look at the signature: that is hsm/tpm's to check.
func (a *ChipApproval) Check() error {
	if len(a.Parent) == 0 || len(a.Parent) > MaxChipParent || len(a.Signature) > MaxChipSignature || len(a.Why) > MaxDetail {
		return fmt.Errorf("%w: a chip's approval with parts of %d, %d and %d bytes", ErrMalformed, len(a.Parent), len(a.Signature), len(a.Why))
	}
	_, err := ParseFleetKey(a.Fleet)
	return err
}
