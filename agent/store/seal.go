package store

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"math"

	"golang.org/x/crypto/chacha20"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/kagimori/kagimori/hsm"
)

// A sealed value is one version byte, the epoch in which it was written, a random
// nonce, then ciphertext and tag of XChaCha20-Poly1305. Associated data: bucket,
// 0, key, 0, version byte, epoch. No bucket has a 0 in it, and a key has one only
// in bucketKeys, where its place is always the same one; so no two places share it.
//
// Version 1, of schema 1, had no epoch. It is read by its migration only.
const (
	versionFirst  = 1
	versionShared = 2 // sealed under the store key
	versionKeyed  = 3 // sealed under a record key of its own, which bucketKeys holds
)

const (
	nonceSize    = chacha20poly1305.NonceSizeX
	epochSize    = 8
	headerSize   = 1 + epochSize + nonceSize
	sealOverhead = headerSize + chacha20poly1305.Overhead
	keySize      = chacha20poly1305.KeySize
)

// anyEpoch takes values of whatever epoch.
const anyEpoch = math.MaxUint64

// A place is where a value stands and what it must look like there.
type place struct {
	bucket, name string
	version      byte
}

func sealValue(key *hsm.Secret, at place, epoch uint64, plain []byte) ([]byte, error) {
	out := make([]byte, headerSize, sealOverhead+len(plain))
	out[0] = at.version
	binary.BigEndian.PutUint64(out[1:], epoch)
	nonce := out[1+epochSize:]
	rand.Read(nonce) // never fails: crypto/rand ends the process instead
	aead, err := newAEAD(key, nonce)
	if err != nil {
		return nil, err
	}
	return aead.Seal(out, tail(nonce), plain, at.associated(epoch)), nil
}

// openValue gives the plaintext, which the caller clears. A value of an epoch
// behind newest was not written by the store in which it stands.
func openValue(key *hsm.Secret, at place, newest uint64, sealed []byte) ([]byte, error) {
	if at.version == versionFirst {
		return openFirst(key, at, sealed)
	}
	if len(sealed) < sealOverhead {
		return nil, fmt.Errorf("%w (a value of %d bytes)", ErrDamaged, len(sealed))
	}
	if v := sealed[0]; v != at.version {
		return nil, fmt.Errorf("%w (a value of version %d, not %d)", ErrDamaged, v, at.version)
	}
	epoch := binary.BigEndian.Uint64(sealed[1:])
	if epoch > newest {
		return nil, fmt.Errorf("%w (a value of epoch %d in a store of epoch %d)", ErrDamaged, epoch, newest)
	}
	return unlock(key, sealed[1+epochSize:], at.associated(epoch))
}

// openFirst opens a value of version 1: version byte, nonce, ciphertext, tag.
func openFirst(key *hsm.Secret, at place, sealed []byte) ([]byte, error) {
	if len(sealed) < 1+nonceSize+chacha20poly1305.Overhead || sealed[0] != versionFirst {
		return nil, fmt.Errorf("%w (not a value of version 1)", ErrDamaged)
	}
	return unlock(key, sealed[1:], at.prefix())
}

// unlock opens nonce, ciphertext and tag.
func unlock(key *hsm.Secret, box, associated []byte) ([]byte, error) {
	nonce := box[:nonceSize]
	aead, err := newAEAD(key, nonce)
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, tail(nonce), box[nonceSize:], associated)
	if err != nil {
		return nil, fmt.Errorf("%w (a value that does not open in its place)", ErrDamaged)
	}
	return plain, nil
}

// newAEAD is what chacha20poly1305.NewX does for one nonce, without the copy of
// the key that it would leave in memory for good: only a key for this one
// record is derived (draft-irtf-cfrg-xchacha-03 §2.3).
func newAEAD(key *hsm.Secret, nonce []byte) (cipher.AEAD, error) {
	if key.Len() != keySize {
		return nil, ErrClosed
	}
	sub, err := chacha20.HChaCha20(key.Bytes(), nonce[:16])
	if err != nil {
		return nil, err
	}
	defer clear(sub)
	return chacha20poly1305.New(sub)
}

func tail(nonce []byte) []byte {
	return append(make([]byte, chacha20poly1305.NonceSize-8, chacha20poly1305.NonceSize), nonce[16:]...)
}

func (p place) prefix() []byte {
	a := make([]byte, 0, len(p.bucket)+len(p.name)+3+epochSize)
	a = append(a, p.bucket...)
	a = append(a, 0)
	a = append(a, p.name...)
	return append(a, 0, p.version)
}

func (p place) associated(epoch uint64) []byte {
	return binary.BigEndian.AppendUint64(p.prefix(), epoch)
}
