package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// The schema version says what shape the records have. Version 1 is the first;
// migrations[i] takes version i+1 to i+2. Migrations only go forward, all that
// are due run in one transaction, which is a key change, but for what is too large
// for that (resealFirst), and the list only grows:
// a terminal may skip releases.
var migrations = []migration{migrateEpochs, migrateMoves}

type migration func(*Tx) error

const (
	schemaKey   = "schema"
	schemaFirst = 1 // values of version 1, no head, one slot among the blobs
)

func encodeSchema(n int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(n)) }

// readSchema reads the version, which is not sealed: an older program must be
// able to say that it is too old.
func readSchema(tx *Tx, ours int) (version int, err error) {
	raw := tx.raw(bucketMeta, schemaKey)
	if len(raw) != 4 || binary.BigEndian.Uint32(raw) == 0 {
		return 0, fmt.Errorf("%w (it has no schema version)", ErrDamaged)
	}
	if theirs := binary.BigEndian.Uint32(raw); theirs > uint32(ours) {
		return 0, fmt.Errorf("%w (schema %d, this program knows up to %d)", ErrNewer, theirs, ours)
	}
	return int(binary.BigEndian.Uint32(raw)), nil
}

// migrate runs the migrations that are due.
func (tx *Tx) migrate(from int, steps []migration) error {
	for i, step := range steps[from-1:] {
		if err := step(tx); err != nil {
			return fmt.Errorf("migrate from schema %d: %w", from+i, err)
		}
	}
	tx.key = true
	return tx.putRaw(bucketMeta, schemaKey, encodeSchema(len(steps)+1))
}

// keyCheck is the record of schema 1 that opens under the store key only.
const keyCheck = "key-check"

// checkFirst makes sure of the key of a store of schema 1.
func (tx *Tx) checkFirst() (err error) {
	defer tx.guard(&err)
	if _, err := openFirst(tx.s.key, place{string(bucketMeta), keyCheck, versionFirst}, tx.raw(bucketMeta, keyCheck)); err != nil {
		return errNoOpen
	}
	return nil
}

// migrateEpochs takes schema 1 to 2: every value gets an epoch, those of the key
// buckets a key of their own, and the store key a slot.
func migrateEpochs(tx *Tx) error {
	for _, name := range tx.s.keyBuckets() { // the others are done: see resealFirst
		if _, err := tx.reseal(name, versionFirst, nil, maxSize); err != nil {
			return err
		}
	}
	list, err := tx.slots()
	if err != nil {
		return err
	}
	for _, r := range list {
		r.opened = true
		if err := errors.Join(tx.dropSlots([]*slotRecord{{}}), tx.addSlot(r)); err != nil {
			return err
		}
	}
	tx.reslot = list
	return tx.delete(bucketMeta, keyCheck)
}

// migrateMoves takes schema 2 to 3, in which nothing is another shape, but there
// may be credentials that are held and must not be used, because they move to
// another terminal. A program that does not know that must not open the file.
func migrateMoves(*Tx) error { return nil }

// resealBatch is how many bytes of records resealFirst takes at a time.
const resealBatch = 1 << 20

// resealFirst is the part of migrateEpochs that one transaction has no room for:
// bbolt writes a value anew beside the old one, and a store may be more than half
// full. So records of ordinary buckets, which are most, go ahead some at a time.
// Until migrateEpochs is through the file is of schema 1, and may have some of
// either version.
func (s *Store) resealFirst(keys []string) error {
	var names []string
	err := s.View(func(tx *Tx) (err error) {
		names, err = tx.buckets()
		return err
	})
	if err != nil {
		return err
	}
	for _, name := range names {
		if name[0] == '_' || slices.Contains(keys, name) {
			continue
		}
		for last, more := []byte(nil), true; more; more = last != nil {
			_, err := s.change(func(tx *Tx) (err error) {
				last, err = tx.reseal(name, versionFirst, last, resealBatch)
				return err
			}, nil)
			if err != nil {
				return fmt.Errorf("migrate from schema %d: %w", schemaFirst, err)
			}
		}
	}
	return nil
}

// reseal seals the records of a bucket behind last anew, as the bucket wants it
// now, until there are limit bytes; then next is where to go on. So far they are
// sealed under the store key, in a given version.
func (tx *Tx) reseal(bucket string, version byte, last []byte, limit int) (next []byte, err error) {
	tx.migrates = true
	for done := 0; done < limit; {
		key, sealed, err := tx.next([]byte(bucket), last)
		if err != nil || key == nil {
			return nil, err
		}
		last = key
		if version == versionFirst && len(sealed) > 0 && sealed[0] == versionShared {
			continue // done before a power cut
		}
		done += len(sealed)
		plain, err := openValue(tx.s.key, place{bucket, string(key), version}, tx.newest(), sealed)
		if err != nil {
			return nil, fmt.Errorf("%s %q: %w", bucket, key, err)
		}
		fresh, err := tx.seal(bucket, string(key), plain)
		clear(plain)
		if err == nil {
			err = tx.store([]byte(bucket), string(key), fresh)
		}
		if err != nil {
			return nil, fmt.Errorf("%s %q: %w", bucket, key, err)
		}
	}
	return last, nil
}
