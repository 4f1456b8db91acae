package hsm

// XChaCha20-Poly1305 for what is sealed by a program, not by a chip.

import (
	"crypto/cipher"
	"errors"
	"fmt"

	"golang.org/x/crypto/chacha20"
	"golang.org/x/crypto/chacha20poly1305"
)

// Sizes of boxes, in bytes.
const (
	BoxKeySize   = chacha20poly1305.KeySize
	BoxNonceSize = chacha20poly1305.NonceSizeX
	BoxOverhead  = chacha20poly1305.Overhead
)

// ErrBox: a box does not open. It was altered, or key, nonce or associated data
// are not those that it was sealed with.
var ErrBox = errors.New("a sealed value does not open")

// SealBox appends to dst what XChaCha20-Poly1305 makes of plain, BoxOverhead bytes
// more. The nonce is random, of BoxNonceSize bytes, and not appended. A key that
// is not of BoxKeySize bytes, such as one that was wiped, is an error.
func SealBox(key *Secret, dst, nonce, plain, associated []byte) ([]byte, error) {
	aead, tail, err := newBox(key, nonce)
	if err != nil {
		return nil, err
	}
	return aead.Seal(dst, tail, plain, associated), nil
}

// OpenBox gives what SealBox sealed, the caller's to clear, or ErrBox.
func OpenBox(key *Secret, nonce, box, associated []byte) ([]byte, error) {
	aead, tail, err := newBox(key, nonce)
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, tail, box, associated)
	if err != nil {
		return nil, ErrBox
	}
	return plain, nil
}

// newBox is what chacha20poly1305.NewX does for one nonce, without the copy of
// the key that it would leave in memory for good: only a key for this one value
// is derived (draft-irtf-cfrg-xchacha-03 §2.3).
func newBox(key *Secret, nonce []byte) (aead cipher.AEAD, tail []byte, err error) {
	if n := key.Len(); n != BoxKeySize || len(nonce) != BoxNonceSize {
		return nil, nil, fmt.Errorf("key of %d and nonce of %d bytes, not %d and %d", n, len(nonce), BoxKeySize, BoxNonceSize)
	}
	sub, err := chacha20.HChaCha20(key.Bytes(), nonce[:16])
	if err != nil {
		return nil, nil, err
	}
	defer clear(sub)
	if aead, err = chacha20poly1305.New(sub); err != nil {
		return nil, nil, err
	}
	tail = make([]byte, chacha20poly1305.NonceSize)
	copy(tail[4:], nonce[16:])
	return aead, tail, nil
}
