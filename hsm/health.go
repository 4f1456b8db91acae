package hsm

import (
	"context"
	"errors"
	"time"
)

// Health is what a module can say of itself without using any key.
type Health struct {
	Level Level `json:"level"`
	// RollbackProof: see Counters.
	RollbackProof bool `json:"rollback_proof"`
	// Chip is nil for a module that is none.
	Chip *Chip `json:"chip,omitempty"`
	// Notes are in plain words what the level does not protect against, and what
	// weakens it here.
	Notes []string `json:"notes,omitempty"`
}

// Chip is a TPM's state.
type Chip struct {
	Maker    string `json:"maker"`    // four letters, TPM_PT_MANUFACTURER
	Firmware string `json:"firmware"` // TPM_PT_FIRMWARE_VERSION
	Root     string `json:"root"`     // Name of the storage root key in use, in hex
	Stored   bool   `json:"stored"`   // it stands at 0x81000001
	// OwnerPassword and LockoutPassword tell whether somebody has set one.
	OwnerPassword   bool    `json:"owner_password"`
	LockoutPassword bool    `json:"lockout_password"`
	Lockout         Lockout `json:"lockout"`
	Counters        int     `json:"counters"` // of ours, in use by whichever program
	// Unorderly: the TPM was last stopped without TPM2_Shutdown.
	Unorderly bool `json:"unorderly"`
}

// Lockout is the TPM's guard against guessing (Part 1, 19.8).
type Lockout struct {
	Locked bool   `json:"locked"`
	Count  uint32 `json:"count"` // failed authorisations that are not forgotten yet
	Limit  uint32 `json:"limit"` // at which it locks
	// Recovery is after how long one failure is forgotten, Reset how long a wrong
	// lockout password locks the reset itself.
	Recovery time.Duration `json:"recovery"`
	Reset    time.Duration `json:"reset"`
}

// Wait is how long a locked chip takes until it takes one more try.
func (l Lockout) Wait() time.Duration {
	if !l.Locked {
		return 0
	}
	return l.Recovery
}

// Examiner is a Module that can be examined.
type Examiner interface {
	Health(ctx context.Context) (Health, error)
}

// LockoutSetter is a Module with a guard against guessing that the holder of the
// lockout password (empty if none is set) may set. A wrong password locks the
// setting for Lockout.Reset: it is never guessed, and never tried twice.
type LockoutSetter interface {
	SetLockout(ctx context.Context, password *Secret, limit uint32, recovery, reset time.Duration) error
	ResetLockout(ctx context.Context, password *Secret) error
}

// ErrLockoutPassword is a wrong lockout password. The chip takes no other one
// until Lockout.Reset has passed.
var ErrLockoutPassword = errors.New("wrong lockout password")
