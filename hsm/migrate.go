package hsm

import (
	"context"
	"crypto"
)

// A Migrator is a module whose keys can go to another chip, and are nowhere in
// clear on the way (KEYCOPY §3.8; TCG TPM 2.0 Part 1 §23, Duplication). Where
// they may go is said by an authority that is fixed when the key is made.
type Migrator interface {
	// NewMigratableKey makes a signing key as NewKey does. It leaves the chip
	// only wrapped to a parent that authority, an ECDSA P-256 key, has approved.
	NewMigratableKey(ctx context.Context, authority crypto.PublicKey) (Blob, error)
	// Parent is the public area (TPMT_PUBLIC) of the storage key here that keys
	// are imported under.
	Parent(ctx context.Context) ([]byte, error)
	// Duplicate wraps key to parent, whose approval by the key's authority it
	// checks. The result is of one length, and opens only in parent's chip.
	Duplicate(ctx context.Context, key Blob, parent, approval []byte) ([]byte, error)
	// Import takes in what Duplicate gave for this chip.
	Import(ctx context.Context, duplicate []byte) (Blob, error)
}
