package hsm

import (
	"context"
	"crypto"
	"errors"
)

// DuplicateSize is the length of what Migrator.Duplicate gives, in bytes: one for
// all keys, so that it can be announced before the chip is asked.
const DuplicateSize = 512

// A Migrator is a module whose keys can go to another chip, and are nowhere in
// clear on the way (docs/tpm.md; TCG TPM 2.0 Part 1 §23, Duplication). Where
// they may go is said by an authority that is fixed when the key is made: it
// approves storage keys of chips (hsm/tpm.ApproveParent).
type Migrator interface {
	// NewMigratableKey makes a signing key as NewKey does. It leaves the chip
	// only wrapped to a parent that authority, an ECDSA P-256 key, has approved.
	NewMigratableKey(ctx context.Context, authority crypto.PublicKey) (Blob, error)
	// Parent is the public area (TPMT_PUBLIC) of the storage key here that keys
	// are imported under. The bytes are the same as long as the chip is.
	Parent(ctx context.Context) ([]byte, error)
	// Duplicate wraps key to parent: DuplicateSize bytes, new ones each time, that
	// open only in parent's chip. The key stays here as it was. A key made to
	// stay is ErrStays; a parent without the approval of the key's own authority,
	// or one that is no storage key, is ErrNotApproved.
	Duplicate(ctx context.Context, key Blob, parent, approval []byte) ([]byte, error)
	// Import takes in what Duplicate gave for this chip, of a key that goes
	// nowhere but where authority says; anything else is ErrBlob. The same
	// duplicate may be taken in any number of times.
	Import(ctx context.Context, authority crypto.PublicKey, duplicate []byte) (Blob, error)
}

var (
	// ErrStays is a key that can never leave its chip: it was made so.
	ErrStays = errors.New("this key was made to stay in its chip")
	// ErrNotApproved is a chip that a key may not go to.
	ErrNotApproved = errors.New("the fleet has not approved this chip as a place for its keys")
)
