package hsm

import (
	"context"
	"errors"
	"fmt"
)

// MinPassphrase and MaxPassphrase bound a passphrase, in bytes.
const (
	MinPassphrase = 8
	MaxPassphrase = 1024
)

// Passphrases is a Module that can be locked with a passphrase, so that what
// lies on the disk is not enough to open it.
type Passphrases interface {
	// SetPassphrase takes another passphrase, or none at all for nil. What the
	// module made before stays as it is.
	SetPassphrase(ctx context.Context, passphrase *Secret) error
	// HasPassphrase says whether one is needed to open the module.
	HasPassphrase() bool
}

var (
	// ErrPassphrase is key storage that nobody has unlocked since it was started.
	ErrPassphrase = errors.New("key storage waits for its passphrase")
	// ErrWrongPassphrase is, together with ErrPassphrase, one that does not fit.
	ErrWrongPassphrase = errors.New("this passphrase is wrong")
)

// CheckPassphrase holds a new passphrase to MinPassphrase to MaxPassphrase bytes.
func CheckPassphrase(p *Secret) error {
	switch n := p.Len(); {
	case n > MaxPassphrase:
		return fmt.Errorf("%w: a passphrase of %d bytes, the limit is %d", ErrTooLong, n, MaxPassphrase)
	case n < MinPassphrase:
		return fmt.Errorf("a passphrase of %d bytes, it must have at least %d", n, MinPassphrase)
	}
	return nil
}
