package store

import (
	"bytes"
	"fmt"

	"go.etcd.io/bbolt"

	"github.com/kagimori/kagimori/hsm"
)

// How a record is sealed. One of an ordinary bucket is sealed under the store
// key. One of a key bucket (Config.Keys) is sealed under a random key that
// belongs to this one value; that key is in bucketKeys, sealed under the store
// key. When the value is replaced or deleted its key goes too, and scrub.go sees
// that nothing of either stays in the file.

// keyName is where in bucketKeys a record's own key stands.
func keyName(bucket, name string) string { return bucket + "\x00" + name }

// open gives the plaintext of a record, which the caller clears.
func (tx *Tx) open(bucket, name string, sealed []byte) ([]byte, error) {
	if tx.s.asFirst && len(sealed) > 0 && sealed[0] == versionFirst { // else resealFirst was there
		return openFirst(tx.s.key, place{bucket, name, versionFirst}, sealed)
	}
	if !tx.s.keyed[bucket] {
		return openValue(tx.s.key, place{bucket, name, versionShared}, tx.newest(), sealed)
	}
	own, err := tx.ownKey(bucket, name)
	if err != nil {
		return nil, err
	}
	defer own.Wipe()
	return openValue(own, place{bucket, name, versionKeyed}, tx.newest(), sealed)
}

func (tx *Tx) ownKey(bucket, name string) (*hsm.Secret, error) {
	var wrapped []byte
	if b := tx.b.Bucket(bucketKeys); b != nil {
		wrapped = b.Get([]byte(keyName(bucket, name)))
	}
	if wrapped == nil {
		return nil, fmt.Errorf("%w (a record without its key)", ErrDamaged)
	}
	own, err := openValue(tx.s.key, place{string(bucketKeys), keyName(bucket, name), versionShared}, tx.newest(), wrapped)
	if err != nil {
		return nil, err
	}
	return hsm.NewSecret(own), nil
}

// seal seals a record, with a new key if it is one of a key bucket.
func (tx *Tx) seal(bucket, name string, plain []byte) ([]byte, error) {
	if !tx.s.keyed[bucket] {
		return sealValue(tx.s.key, place{bucket, name, versionShared}, tx.head.Epoch, plain)
	}
	own := hsm.RandomSecret(keySize)
	defer own.Wipe()
	at := place{string(bucketKeys), keyName(bucket, name), versionShared}
	wrapped, err := sealValue(tx.s.key, at, tx.head.Epoch+1, own.Bytes())
	if err != nil {
		return nil, err
	}
	if err := tx.store(bucketKeys, at.name, wrapped); err != nil {
		return nil, err
	}
	return sealValue(own, place{bucket, name, versionKeyed}, tx.head.Epoch+1, plain)
}

// store writes a value as it is. It is where every change of the file begins,
// but for remove.
func (tx *Tx) store(bucket []byte, name string, value []byte) error {
	b, err := tx.make(bucket)
	if err != nil {
		return err
	}
	old := b.Get([]byte(name))
	tx.touch(bucket, old)
	tx.grown += len(value) - len(old)
	return b.Put([]byte(name), value)
}

// remove deletes a value, and a record's own key with it.
func (tx *Tx) remove(b *bbolt.Bucket, bucket []byte, name string, old []byte) error {
	tx.touch(bucket, old)
	tx.grown -= len(old)
	if err := b.Delete([]byte(name)); err != nil {
		return err
	}
	if !tx.s.keyed[string(bucket)] {
		return nil
	}
	keys := tx.b.Bucket(bucketKeys)
	if keys == nil {
		return nil
	}
	own := []byte(keyName(string(bucket), name))
	tx.grown -= len(keys.Get(own))
	return keys.Delete(own)
}

// touch takes note of what a change means.
func (tx *Tx) touch(bucket, old []byte) {
	tx.dirty = true
	if tx.s.keyed[string(bucket)] || bytes.Equal(bucket, bucketBlobs) || bytes.Equal(bucket, bucketSlots) {
		tx.key = true
		tx.destroys = tx.destroys || old != nil
	}
}

// newest is the last epoch of which this transaction can see values: one more
// than it knows of, which is its own, or was committed as a View began.
func (tx *Tx) newest() uint64 { return tx.head.Epoch + 1 }
