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

// CheckCounterKey holds Counters to keys of exactly CounterKeySize bytes.
func CheckCounterKey(key *Secret) error {
	if n := key.Len(); n != CounterKeySize {
		return fmt.Errorf("a counter's key of %d bytes, it must be %d", n, CounterKeySize)
	}
	return nil
}

// CheckPIN holds PINs to MinPIN to MaxPIN bytes. A PIN of another length is no
// guess: it is refused before anything counts it.
func CheckPIN(pin *Secret) error {
	switch n := pin.Len(); {
	case n > MaxPIN:
		return fmt.Errorf("%w: a PIN of %d bytes, the limit is %d", ErrTooLong, n, MaxPIN)
	case n < MinPIN:
		return fmt.Errorf("a PIN of %d bytes, it must have at least %d", n, MinPIN)
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
