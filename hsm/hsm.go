// Package hsm keeps keys at rest. A Module is the place where a machine's own
// secrets live: a TPM (hsm/tpm) or a sealed file (hsm/file). It knows nobody
// else in this house.
//
// A Module is stateless: NewKey, Seal and ImportMAC return opaque blobs, the
// caller stores them (they need no further protection) and hands them back.
// A blob opens only under the module that made it.
package hsm

import (
	"context"
	"crypto"
	"errors"
	"io"
)

// Level names how well keys are protected; it is shown in every status.
type Level string

const (
	// LevelFile is a 0600 device secret beside the state: a copied backup of
	// the state is safe, a stolen box is not.
	LevelFile Level = "file"
	// LevelTPMSocket is a TPM emulator behind a socket: for tests, never the field.
	LevelTPMSocket Level = "tpm-socket"
	// LevelTPM is a TPM chip.
	LevelTPM Level = "tpm"
)

// Sizes in bytes.
const (
	MACKeySize    = 32   // HMAC-SHA256 keys that ImportMAC takes
	MaxMACMessage = 1024 // TPM2_HMAC takes no longer message in one command
	MaxSealed     = 128  // a TPM sealed object holds no more
	MaxBlob       = 1024 // longer blobs are refused before they are looked at
)

// A Blob is what a module needs to find a key or secret again. It is opaque,
// versioned and useless to any other module.
type Blob []byte

// Sealer wraps small secrets: 1 to MaxSealed bytes. An empty (or wiped) secret
// is refused, so that a mistake in the caller never becomes a stored key.
type Sealer interface {
	Seal(ctx context.Context, secret *Secret) (Blob, error)
	Unseal(ctx context.Context, sealed Blob) (*Secret, error)
}

// Keys makes ECDSA P-256 signing keys that never leave the module in clear.
type Keys interface {
	NewKey(ctx context.Context) (Blob, error)
	Signer(ctx context.Context, key Blob) (Signer, error)
}

// A Signer is a key in use; crypto/tls and crypto/x509 take it as it is. It
// signs SHA-256 digests. Close releases what the module keeps loaded for it.
type Signer interface {
	crypto.Signer
	io.Closer
}

// MACs computes HMAC-SHA256 under a key that, once imported, never comes out.
type MACs interface {
	// ImportMAC takes exactly MACKeySize bytes.
	ImportMAC(ctx context.Context, key *Secret) (Blob, error)
	// MAC takes at most MaxMACMessage bytes. The result is a secret as well:
	// the key schedule of the key copy starts from it.
	MAC(ctx context.Context, key Blob, message []byte) (*Secret, error)
}

// Module is one place where keys live. All methods may be called from several
// goroutines; each returns one of the errors below, wrapped, where it fits.
// Secrets passed in stay the caller's: they may be wiped as soon as a call
// returns. Secrets handed out are the caller's to wipe. Close waits for what
// runs; Close twice is fine.
type Module interface {
	Sealer
	Keys
	MACs
	Counters
	PINs
	Examiner
	Level() Level
	Close() error
}

// What can be wrong with a module. Each is a state of its own, with its own
// message and next step; none of them keeps a daemon from starting.
var (
	ErrAbsent    = errors.New("key storage is absent")
	ErrBusy      = errors.New("key storage is in use by another program")
	ErrOwnerAuth = errors.New("the TPM is owned with a password that is not ours")
	ErrLockout   = errors.New("key storage is locked after failed authorisations")
	ErrReplaced  = errors.New("this blob belongs to another TPM or device secret")
	ErrBlob      = errors.New("not a blob of this module")
	ErrTooLong   = errors.New("longer than the module takes")
	// ErrUnsafe is storage that other users of the machine can read or replace.
	ErrUnsafe = errors.New("key storage is open to other users")
	// ErrTimeout is a chip that does not answer. The next use connects anew.
	ErrTimeout = errors.New("key storage does not answer")
	// ErrClosed is a module, or a Signer of it, used after Close.
	ErrClosed = errors.New("key storage is closed")
)
