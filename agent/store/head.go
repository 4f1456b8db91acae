package store

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"slices"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// The head is the one record that speaks for the whole file. It is sealed under
// the store key and written by every key change, in the same transaction.
type head struct {
	// Epoch counts key changes. Delta is what the counter shows when the epoch's
	// change is finished, less the epoch, modulo 2^64; it is of use only with a
	// counter's blob in bucketBlobs.
	Epoch uint64 `cbor:"1,keyasint"`
	Delta uint64 `cbor:"2,keyasint"`
	// Incarnation counts losses; Loss is the last one.
	Incarnation uint32 `cbor:"3,keyasint"`
	Loss        *loss  `cbor:"4,keyasint,omitempty"`
	// Keys are the key buckets, sorted.
	Keys []string `cbor:"5,keyasint"`
	// Digest is of all record keys, blobs and slots: none of them can be removed,
	// added or put back by somebody without the store key.
	Digest []byte `cbor:"6,keyasint"`
}

// loss is a Fallback as it is stored.
type loss struct {
	At   int64  `cbor:"1,keyasint"` // Unix seconds
	Kept string `cbor:"2,keyasint,omitempty"`
	Lost string `cbor:"3,keyasint"`
	Way  Way    `cbor:"4,keyasint,omitempty"`
}

func (l *loss) public() *Fallback {
	if l == nil {
		return nil
	}
	return &Fallback{At: time.Unix(l.At, 0).UTC(), Kept: l.Kept, Lost: l.Lost, Way: l.Way}
}

const (
	headKey = "head"
	maxHead = 64 << 10
)

var headPlace = place{string(bucketMeta), headKey, versionShared}

// errNoOpen is a head that the key does not open: it is another store's key, or
// the head is damaged.
var errNoOpen = fmt.Errorf("%w (its head does not open with the store key)", ErrDamaged)

// readHead opens the head, which proves that the key is this store's, and holds
// what the head vouches for against it.
func (tx *Tx) readHead() (h head, err error) {
	defer tx.guard(&err)
	sealed := tx.raw(bucketMeta, headKey)
	plain, err := openValue(tx.s.key, headPlace, anyEpoch, sealed)
	if err != nil {
		return h, errNoOpen
	}
	defer clear(plain)
	if err := transport.Unmarshal(plain, &h, maxHead); err != nil {
		return h, fmt.Errorf("%w (head: %w)", ErrDamaged, err)
	}
	if binary.BigEndian.Uint64(sealed[1:]) != h.Epoch || !slices.IsSorted(h.Keys) {
		return h, fmt.Errorf("%w (its head contradicts itself)", ErrDamaged)
	}
	sum, err := tx.digest()
	if err != nil {
		return h, err
	}
	if !slices.Equal(sum, h.Digest) {
		return h, fmt.Errorf("%w (keys or blobs are not those of epoch %d)", ErrDamaged, h.Epoch)
	}
	return h, tx.pairs(h.Keys)
}

// writeHead seals the head of the next epoch.
func (tx *Tx) writeHead() error {
	h := tx.head
	h.Epoch++
	h.Keys = tx.s.keyBuckets()
	var err error
	if h.Digest, err = tx.digest(); err != nil {
		return err
	}
	if err := tx.sealHead(h); err != nil {
		return err
	}
	tx.head = h
	return nil
}

func (tx *Tx) sealHead(h head) error {
	plain, err := transport.Marshal(h)
	if err != nil {
		return err
	}
	sealed, err := sealValue(tx.s.key, headPlace, h.Epoch, plain)
	if err != nil {
		return err
	}
	return tx.store(bucketMeta, headKey, sealed)
}

// digest is SHA-256 over bucketKeys, bucketBlobs and bucketSlots: of each its
// name and then every key and value, all with their lengths in front.
func (tx *Tx) digest() (sum []byte, err error) {
	defer tx.guard(&err)
	h := sha256.New()
	for _, name := range [][]byte{bucketKeys, bucketBlobs, bucketSlots} {
		measure(h, name)
		b := tx.b.Bucket(name)
		if b == nil {
			continue
		}
		c := b.Cursor()
		for k, v := c.First(); k != nil; k, v = c.Next() {
			measure(h, k)
			measure(h, v)
		}
	}
	return h.Sum(nil), nil
}

func measure(h hash.Hash, b []byte) {
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
	h.Write(b)
}

// pairs makes sure that every record of a key bucket has its key, and every key
// its record: the digest vouches for keys, so it vouches for records as well.
func (tx *Tx) pairs(buckets []string) (err error) {
	defer tx.guard(&err)
	records, keys := 0, 0
	own := tx.b.Bucket(bucketKeys)
	for _, name := range buckets {
		b := tx.b.Bucket([]byte(name))
		if b == nil {
			continue
		}
		c := b.Cursor()
		for k, _ := c.First(); k != nil; k, _ = c.Next() {
			records++
			if own == nil || own.Get([]byte(keyName(name, string(k)))) == nil {
				return fmt.Errorf("%w (%s %q has no key)", ErrDamaged, name, k)
			}
		}
	}
	if own != nil {
		c := own.Cursor()
		for k, _ := c.First(); k != nil; k, _ = c.Next() {
			keys++
		}
	}
	if keys != records {
		return errors.Join(fmt.Errorf("%w (%d records with keys of their own, %d keys)", ErrDamaged, records, keys))
	}
	return nil
}
