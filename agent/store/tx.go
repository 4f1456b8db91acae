package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
)

// Buckets of the store's own. A bucket of records cannot have such a name.
var (
	bucketMeta  = []byte("_meta")  // schema version and head
	bucketBlobs = []byte("_blobs") // hsm blobs, not sealed
	bucketKeys  = []byte("_keys")  // the keys of single records
)

const maxBucket = 63

// A Tx is a transaction. It is used by one goroutine, inside the function that
// it was given to, and not after that.
type Tx struct {
	s        *Store
	b        *bbolt.Tx
	id       int
	writable bool
	head     head // as it was when the transaction began
	dirty    bool
	done     bool
	key      bool          // this is a key change
	destroys bool          // and something must not stay in the file
	recount  *counter      // the counter from now on, if it is another one
	reslot   []*slotRecord // the slots from now on, if they are others
	migrates bool          // it may take maxFile
	grown    int           // bytes of values put, less those replaced and deleted
}

// Put seals v under bucket and key and replaces what was there. If that is
// already v, nothing is written.
func (tx *Tx) Put(bucket, key string, v any) error {
	if err := checkNames(bucket, key); err != nil {
		return fmt.Errorf("put %s %q: %w", bucket, key, err)
	}
	if err := tx.put([]byte(bucket), key, v); err != nil {
		return fmt.Errorf("put %s %q: %w", bucket, key, err)
	}
	return nil
}

func (tx *Tx) put(bucket []byte, key string, v any) (err error) {
	defer tx.guard(&err)
	plain, err := transport.Marshal(v)
	if err != nil {
		return err
	}
	defer clear(plain)
	if len(plain) > maxRecord {
		return fmt.Errorf("value of %d bytes, the limit is %d", len(plain), maxRecord)
	}
	b, err := tx.make(bucket)
	if err != nil {
		return err
	}
	if old := b.Get([]byte(key)); old != nil {
		was, err := tx.open(string(bucket), key, old)
		same := err == nil && bytes.Equal(was, plain)
		clear(was)
		if same {
			return nil
		}
	}
	sealed, err := tx.seal(string(bucket), key, plain)
	if err != nil {
		return err
	}
	return tx.store(bucket, key, sealed)
}

// Append puts v under a key that sorts behind all keys that this bucket ever
// gave out, also those that were deleted since. Use it alone in its bucket.
func (tx *Tx) Append(bucket string, v any) (key string, err error) {
	if err := checkNames(bucket, "0"); err != nil {
		return "", fmt.Errorf("append to %s: %w", bucket, err)
	}
	n, err := tx.sequence([]byte(bucket))
	if err != nil {
		return "", fmt.Errorf("append to %s: %w", bucket, err)
	}
	key = fmt.Sprintf("%016x", n)
	return key, tx.Put(bucket, key, v)
}

func (tx *Tx) sequence(bucket []byte) (n uint64, err error) {
	defer tx.guard(&err)
	b, err := tx.make(bucket)
	if err != nil {
		return 0, err
	}
	tx.dirty = true
	return b.NextSequence()
}

// Get decodes the value into v. A key that is not there is found = false and
// no error; a value that does not open is ErrDamaged. Secrets in v are the
// caller's to wipe.
func (tx *Tx) Get(bucket, key string, v any) (found bool, err error) {
	if err := checkNames(bucket, key); err != nil {
		return false, fmt.Errorf("get %s %q: %w", bucket, key, err)
	}
	if found, err = tx.get([]byte(bucket), key, v); err != nil {
		return found, fmt.Errorf("get %s %q: %w", bucket, key, err)
	}
	return found, nil
}

func (tx *Tx) get(bucket []byte, key string, v any) (found bool, err error) {
	defer tx.guard(&err)
	b := tx.b.Bucket(bucket)
	if b == nil {
		return false, nil
	}
	sealed := b.Get([]byte(key))
	if sealed == nil {
		return false, nil
	}
	return true, tx.decode(bucket, key, sealed, v)
}

func (tx *Tx) decode(bucket []byte, key string, sealed []byte, v any) error {
	plain, err := tx.open(string(bucket), key, sealed)
	if err != nil {
		return err
	}
	defer clear(plain)
	return transport.Unmarshal(plain, v, maxRecord)
}

// Delete removes a record. That it is not there is no error.
func (tx *Tx) Delete(bucket, key string) error {
	if err := checkNames(bucket, key); err != nil {
		return fmt.Errorf("delete %s %q: %w", bucket, key, err)
	}
	if err := tx.delete([]byte(bucket), key); err != nil {
		return fmt.Errorf("delete %s %q: %w", bucket, key, err)
	}
	return nil
}

func (tx *Tx) delete(bucket []byte, key string) (err error) {
	defer tx.guard(&err)
	if !tx.b.Writable() {
		return ErrReadOnly
	}
	b := tx.b.Bucket(bucket)
	if b == nil {
		return nil
	}
	old := b.Get([]byte(key))
	if old == nil {
		return nil
	}
	return tx.remove(b, bucket, key, old)
}

// Each calls fn for every record of a bucket, in the order of the keys. decode
// works only until fn returns. fn may change records: what it adds behind the
// current key is visited as well. ErrStop ends the walk.
func (tx *Tx) Each(bucket string, fn func(key string, decode func(v any) error) error) error {
	if err := checkNames(bucket, "0"); err != nil {
		return fmt.Errorf("read %s: %w", bucket, err)
	}
	var last []byte
	for {
		key, sealed, err := tx.next([]byte(bucket), last)
		if err != nil {
			return fmt.Errorf("read %s: %w", bucket, err)
		}
		if key == nil {
			return nil
		}
		err = fn(string(key), func(v any) error {
			if err := tx.decode([]byte(bucket), string(key), sealed, v); err != nil {
				return fmt.Errorf("get %s %q: %w", bucket, key, err)
			}
			return nil
		})
		if errors.Is(err, ErrStop) {
			return nil
		}
		if err != nil {
			return err
		}
		last = key
	}
}

// next gives copies of the first key behind last, and of its value. It seeks
// afresh each time, which costs a few microseconds and survives changes.
func (tx *Tx) next(bucket, last []byte) (key, sealed []byte, err error) {
	defer tx.guard(&err)
	b := tx.b.Bucket(bucket)
	if b == nil {
		return nil, nil, nil
	}
	c := b.Cursor()
	k, v := c.First()
	if last != nil {
		if k, v = c.Seek(last); bytes.Equal(k, last) {
			k, v = c.Next()
		}
	}
	return bytes.Clone(k), bytes.Clone(v), nil
}

// ownBlob says whether a name is taken by the store itself.
func ownBlob(name string) bool { return name == storeKeyBlob || name == counterBlob }

// PutBlob keeps an hsm blob, unsealed, under a name that checks as a key does.
func (tx *Tx) PutBlob(name string, blob hsm.Blob) error {
	if err := checkNames("blobs", name); err != nil || ownBlob(name) {
		return fmt.Errorf("put blob %q: %w", name, ErrName)
	}
	if err := tx.putRaw(bucketBlobs, name, blob); err != nil {
		return fmt.Errorf("put blob %q: %w", name, err)
	}
	return nil
}

func (tx *Tx) putRaw(bucket []byte, name string, value []byte) (err error) {
	defer tx.guard(&err)
	b, err := tx.make(bucket)
	if err != nil {
		return err
	}
	if old := b.Get([]byte(name)); old != nil && bytes.Equal(old, value) {
		return nil
	}
	return tx.store(bucket, name, value)
}

// Blob gives a copy of a blob, nil if there is none of that name.
func (tx *Tx) Blob(name string) hsm.Blob { return tx.raw(bucketBlobs, name) }

func (tx *Tx) raw(bucket []byte, name string) (value []byte) {
	var err error // the failure is remembered by the store and ends the transaction
	defer tx.guard(&err)
	b := tx.b.Bucket(bucket)
	if b == nil {
		return nil
	}
	return bytes.Clone(b.Get([]byte(name)))
}

// DeleteBlob removes a blob. That it is not there is no error.
func (tx *Tx) DeleteBlob(name string) error {
	if err := checkNames("blobs", name); err != nil || ownBlob(name) {
		return fmt.Errorf("delete blob %q: %w", name, ErrName)
	}
	if err := tx.delete(bucketBlobs, name); err != nil {
		return fmt.Errorf("delete blob %q: %w", name, err)
	}
	return nil
}

func (tx *Tx) make(bucket []byte) (*bbolt.Bucket, error) {
	if !tx.b.Writable() {
		return nil, ErrReadOnly
	}
	if b := tx.b.Bucket(bucket); b != nil {
		return b, nil
	}
	tx.dirty = true
	return tx.b.CreateBucket(bucket)
}

// commit writes what was done, if anything was.
func (tx *Tx) commit() (err error) {
	if !tx.dirty && !tx.key {
		return nil
	}
	defer tx.guard(&err)
	if tx.key {
		if err := tx.writeHead(); err != nil {
			return err
		}
	}
	tx.s.db.MaxSize = maxSize // read by bbolt in Commit, under our writer lock
	switch {
	case tx.migrates:
		tx.s.db.MaxSize = maxFile
	case tx.grown > 0:
		tx.s.db.MaxSize -= reserve
	}
	err = tx.b.Commit()
	tx.done = true
	var write *fs.PathError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, berrors.ErrMaxSizeReached):
		return fmt.Errorf("%w (its limit is %d MiB)", ErrFull, (maxSize-reserve)>>20)
	case errors.As(err, &write) && noSpace(err), noGrowth(err): // and not a sync that found it out later
		return fmt.Errorf("%w (%w)", ErrFull, err)
	}
	// After a failed sync the kernel may have dropped what it could not write:
	// nothing in memory can be trusted any more.
	tx.s.mu.Lock()
	defer tx.s.mu.Unlock()
	return tx.s.fail(fmt.Errorf("%w (%w)", ErrFailed, err))
}

func noSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// noGrowth says whether there was no room for a larger file, which UBIFS says
// already when the size is set. bbolt keeps the text of that error, not the error.
func noGrowth(err error) bool {
	return strings.HasPrefix(err.Error(), "file resize error") && noSpaceText(err)
}

func noSpaceText(err error) bool {
	return strings.Contains(err.Error(), syscall.ENOSPC.Error()) || strings.Contains(err.Error(), syscall.EDQUOT.Error())
}

// guard turns a panic of bbolt, or a fault in the mapped file, into ErrDamaged.
func (tx *Tx) guard(err *error) {
	p := recover()
	switch {
	case p == nil:
	default:
		tx.s.mu.Lock()
		defer tx.s.mu.Unlock()
		*err = tx.s.gaveUp(p)
	}
}

func checkNames(bucket, key string) error {
	if bucket == "" || len(bucket) > maxBucket || key == "" || len(key) > maxKey || strings.IndexByte(key, 0) >= 0 {
		return ErrName
	}
	for _, c := range []byte(bucket) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != '/' {
			return ErrName
		}
	}
	return nil
}
