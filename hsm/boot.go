package hsm

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
)

// Sealing to how the machine was booted. Firmware measures what it starts into
// the TPM's platform configuration registers (PCRs); a secret can be sealed so
// that it opens under the same measurements only, or under those that the
// vendor has signed. Bank: SHA-256.

// PCRCount is how many registers there are; MaxBootPCRs is how many of them one
// secret may be sealed to.
const (
	PCRCount    = 24
	MaxBootPCRs = 8
)

// PCRs are values of registers by their number.
type PCRs map[int][32]byte

// A BootPolicy says under which measurements a secret opens.
type BootPolicy struct {
	// Registers lists the PCRs that count, 1 to MaxBootPCRs of them.
	Registers []int
	// Values are what they must hold; nil means what they hold now. With an
	// Authority they are not looked at.
	Values PCRs
	// Authority, when set, is the vendor's P-256 key: then whatever it signs an
	// Approval for opens the same blob, and an update needs no sealing anew.
	Authority *ecdsa.PublicKey
}

// An Approval is the vendor's word that a set of measurements is good.
type Approval struct {
	Values    PCRs
	Signature []byte // ASN.1 ECDSA by the authority, see hsm/tpm.Approve
}

// BootSealer is a Module that knows how the machine was booted: a TPM.
type BootSealer interface {
	// PCRs reads registers.
	PCRs(ctx context.Context, registers []int) (PCRs, error)
	// SealBoot keeps 1 to MaxSealed bytes. It fails with ErrNotMeasured if all
	// the registers hold zeros, so that nobody believes in a bond that is none.
	SealBoot(ctx context.Context, secret *Secret, policy BootPolicy) (Blob, error)
	// UnsealBoot opens what SealBoot kept, with the approvals that are at hand.
	// Measurements that do not fit are a *BootError.
	UnsealBoot(ctx context.Context, sealed Blob, approvals []Approval) (*Secret, error)
}

var (
	// ErrBoot is a secret sealed to other measurements than those of now.
	ErrBoot = errors.New("the machine was not booted as this secret was sealed to")
	// ErrNotMeasured are registers that nothing was ever measured into.
	ErrNotMeasured = errors.New("the boot of this machine is not measured")
)

// BootError is ErrBoot with the registers that differ from what was sealed to,
// or from what the closest approval says.
type BootError struct{ Changed []int }

func (e *BootError) Error() string { return fmt.Sprintf("%v (PCRs %v)", ErrBoot, e.Changed) }

// Is makes errors.Is(err, ErrBoot) true.
func (e *BootError) Is(target error) bool { return target == ErrBoot }
