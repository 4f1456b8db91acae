package hsm

import (
	"context"
	"errors"
)

// CounterKeySize is the length in bytes of the secret that uses a counter.
const CounterKeySize = 32

// Counters only go up. The agent's store compares its epoch with one, so that
// an older copy of its file is noticed (DESIGN D6). A counter is used with a
// secret of its owner, of exactly CounterKeySize bytes, so that nobody else on
// the machine can push it.
type Counters interface {
	// NewCounter makes a counter; the Blob finds it again. The value it starts
	// with is the module's choice.
	NewCounter(ctx context.Context, key *Secret) (Blob, error)
	// Count reads it.
	Count(ctx context.Context, counter Blob, key *Secret) (uint64, error)
	// Increment adds one, durably, and gives the new value. After an error it is
	// unknown whether it was added: Count tells.
	Increment(ctx context.Context, counter Blob, key *Secret) (uint64, error)
	// DropCounter frees the place of a counter that is no longer needed.
	DropCounter(ctx context.Context, counter Blob, key *Secret) error
	// RollbackProof says whether somebody who can write to the disk, but is not
	// the chip, could turn a counter back: true for a TPM's.
	RollbackProof() bool
}

var (
	// ErrCounter is a counter that is not there any more, or that is not the one
	// that was made: the TPM was cleared, or somebody removed it.
	ErrCounter = errors.New("the counter of this store is gone from key storage")
	// ErrNoCounter is a module that has no place for one more counter.
	ErrNoCounter = errors.New("key storage has no room for a counter")
)
