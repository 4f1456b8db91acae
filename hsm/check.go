package hsm

// What every module refuses in the same words, before any key is touched.

import (
	"crypto"
	"errors"
	"fmt"
)

// CheckSealed holds Seal to 1 to MaxSealed bytes.
func CheckSealed(secret *Secret) error {
	switch n := secret.Len(); {
	case n == 0:
		return errors.New("the secret is empty, or was wiped")
	case n > MaxSealed:
		return fmt.Errorf("%w: a secret of %d bytes, the limit is %d", ErrTooLong, n, MaxSealed)
	}
	return nil
}

// CheckMACKey holds ImportMAC to exactly MACKeySize bytes.
func CheckMACKey(key *Secret) error {
	switch n := key.Len(); {
	case n > MACKeySize:
		return fmt.Errorf("%w: a key of %d bytes, it must be %d", ErrTooLong, n, MACKeySize)
	case n < MACKeySize:
		return fmt.Errorf("a key of %d bytes, it must be %d", n, MACKeySize)
	}
	return nil
}

// CheckMessage holds MAC to MaxMACMessage bytes.
func CheckMessage(message []byte) error {
	if len(message) > MaxMACMessage {
		return fmt.Errorf("%w: a message of %d bytes, the limit is %d", ErrTooLong, len(message), MaxMACMessage)
	}
	return nil
}

// CheckDigest holds a Signer to digests of SHA-256.
func CheckDigest(digest []byte, opts crypto.SignerOpts) error {
	if opts == nil || opts.HashFunc() != crypto.SHA256 {
		name := "no hash"
		if opts != nil {
			name = opts.HashFunc().String()
		}
		return fmt.Errorf("this key signs SHA-256 digests only, not %s; ask for ECDSAWithSHA256", name)
	}
	if len(digest) != crypto.SHA256.Size() {
		return fmt.Errorf("a digest of %d bytes, SHA-256 has %d", len(digest), crypto.SHA256.Size())
	}
	return nil
}
