package store

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

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
	nonceSize    = hsm.BoxNonceSize
	epochSize    = 8
	headerSize   = 1 + epochSize + nonceSize
	sealOverhead = headerSize + hsm.BoxOverhead
	keySize      = hsm.BoxKeySize
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
	rand.Read(nonce)          // never fails: crypto/rand ends the process instead
	if key.Len() != keySize { // Close wiped it
		return nil, ErrClosed
	}
	return hsm.SealBox(key, out, nonce, plain, at.associated(epoch))
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
	if len(sealed) < 1+nonceSize+hsm.BoxOverhead || sealed[0] != versionFirst {
		return nil, fmt.Errorf("%w (not a value of version 1)", ErrDamaged)
	}
	return unlock(key, sealed[1:], at.prefix())
}

// unlock opens nonce, ciphertext and tag.
func unlock(key *hsm.Secret, box, associated []byte) ([]byte, error) {
	if key.Len() != keySize {
		return nil, ErrClosed
	}
	plain, err := hsm.OpenBox(key, box[:nonceSize], box[nonceSize:], associated)
	if errors.Is(err, hsm.ErrBox) {
		return nil, fmt.Errorf("%w (a value that does not open in its place)", ErrDamaged)
	}
	return plain, err
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
