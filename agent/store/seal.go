package store

import (
	"context"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"

	"golang.org/x/crypto/chacha20"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/kagimori/kagimori/hsm"
)

// A sealed value is one version byte, a random nonce, then ciphertext and tag of
// XChaCha20-Poly1305. Associated data: bucket, 0, key, 0, version byte; neither
// a bucket nor a key has a 0 in it, so no two places share it.
const (
	recordVersion = 1
	nonceSize     = chacha20poly1305.NonceSizeX
	sealOverhead  = 1 + nonceSize + chacha20poly1305.Overhead
)

// storeKeyBlob is the name of the blob that module.Seal made of the store key.
// keyCheck is a record that opens under this key only.
const (
	storeKeyBlob = "store-key"
	keyCheck     = "key-check"
)

func sealValue(key *hsm.Secret, bucket, name string, plain []byte) ([]byte, error) {
	out := make([]byte, 1+nonceSize, sealOverhead+len(plain))
	out[0] = recordVersion
	nonce := out[1 : 1+nonceSize]
	rand.Read(nonce) // never fails: crypto/rand ends the process instead
	aead, err := newAEAD(key, nonce)
	if err != nil {
		return nil, err
	}
	return aead.Seal(out, tail(nonce), plain, associated(bucket, name, recordVersion)), nil
}

// openValue gives the plaintext, which the caller clears.
func openValue(key *hsm.Secret, bucket, name string, sealed []byte) ([]byte, error) {
	if len(sealed) < sealOverhead {
		return nil, fmt.Errorf("%w (a value of %d bytes)", ErrDamaged, len(sealed))
	}
	if v := sealed[0]; v != recordVersion {
		return nil, fmt.Errorf("%w (a value of version %d)", ErrDamaged, v)
	}
	nonce := sealed[1 : 1+nonceSize]
	aead, err := newAEAD(key, nonce)
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, tail(nonce), sealed[1+nonceSize:], associated(bucket, name, recordVersion))
	if err != nil {
		return nil, fmt.Errorf("%w (a value that does not open in its place)", ErrDamaged)
	}
	return plain, nil
}

// newAEAD is what chacha20poly1305.NewX does for one nonce, without the copy of
// the key that it would leave in memory for good: only a key for this one
// record is derived (draft-irtf-cfrg-xchacha-03 §2.3).
func newAEAD(key *hsm.Secret, nonce []byte) (cipher.AEAD, error) {
	if key.Len() != chacha20poly1305.KeySize {
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

func associated(bucket, name string, version byte) []byte {
	a := make([]byte, 0, len(bucket)+len(name)+3)
	a = append(a, bucket...)
	a = append(a, 0)
	a = append(a, name...)
	return append(a, 0, version)
}

// unseal gets the store key out of the module and makes sure that it is the one
// that this store's values are sealed under.
func (s *Store) unseal(ctx context.Context, module hsm.Module) (key *hsm.Secret, err error) {
	var blob hsm.Blob
	var check []byte
	err = s.View(func(tx *Tx) error {
		blob, check = tx.Blob(storeKeyBlob), tx.raw(bucketMeta, keyCheck)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if blob == nil {
		return nil, fmt.Errorf("%w (it has no store key)", ErrDamaged)
	}
	key, err = module.Unseal(ctx, blob)
	switch {
	case errors.Is(err, hsm.ErrReplaced):
		return nil, fmt.Errorf("%w (%w)", ErrForeign, err)
	case errors.Is(err, hsm.ErrBlob):
		return nil, fmt.Errorf("%w (%w)", ErrDamaged, err)
	case err != nil:
		return nil, fmt.Errorf("unseal the store key: %w", err)
	}
	if key.Len() == chacha20poly1305.KeySize {
		_, err = openValue(key, string(bucketMeta), keyCheck, check)
	} else {
		err = fmt.Errorf("%w (a store key of %d bytes)", ErrDamaged, key.Len())
	}
	if err != nil {
		key.Wipe()
		return nil, err
	}
	return key, nil
}
