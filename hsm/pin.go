package hsm

import (
	"context"
	"errors"
)

// MaxPIN is the length of a PIN in bytes, MinPIN the least that is taken.
const (
	MinPIN = 4
	MaxPIN = 32
)

// PINs guards a secret by what a person types. It is for human actions only:
// wrong PINs count towards a lockout, and on a TPM even a right one does when
// the power is cut before the chip was told of an orderly stop. Nothing that a
// daemon needs at its start may lie behind a PIN.
type PINs interface {
	SealPIN(ctx context.Context, secret, pin *Secret) (Blob, error)
	// UnsealPIN fails with ErrPIN for a wrong PIN and ErrLockout after too many.
	UnsealPIN(ctx context.Context, sealed Blob, pin *Secret) (*Secret, error)
}

// ErrPIN is a wrong PIN; it was counted.
var ErrPIN = errors.New("wrong PIN")
