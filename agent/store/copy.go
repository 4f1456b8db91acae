package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// The second copy is a whole store file beside the first, as it was at the last
// key change. It is written compact under another name, read back from the disk,
// compared value by value, and then renamed.

const (
	copySuffix = ".copy"
	// copyBatch is how many bytes of values the copy takes at a time: it bounds
	// the memory that it needs.
	copyBatch = 1 << 20
	copyGrow  = 16 << 10
	copyFill  = 0.95 // of a page: nothing is ever added to a copy
)

// writeCopy replaces the second copy by one of the state as it is now. With wipe
// the blocks of the old one are overwritten. It needs writer.
func (s *Store) writeCopy(ctx context.Context, wipe bool) error {
	temp := s.path + copySuffix + newSuffix
	if err := s.compact(ctx, temp); err != nil {
		return err
	}
	s.step("copied")
	if err := s.verify(temp); err != nil {
		_ = os.Remove(temp)
		return err
	}
	return s.place(temp, s.path+copySuffix, wipe)
}

// place renames durably, over what stands there.
func (s *Store) place(temp, path string, wipe bool) error {
	var old *os.File
	if wipe {
		var err error
		if old, err = openOwn(path); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errNoFile) {
			return err
		}
	}
	defer old.Close() // nil is fine
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	s.step("renamed")
	if err := syncPath(filepath.Dir(path)); err != nil {
		return err
	}
	if old == nil {
		return nil
	}
	s.step("placed")
	if err := shred(old); err != nil { // it has no name any more: there is no second try
		s.log.Warn("an older second copy could not be overwritten", "path", path, "err", err)
	}
	return nil
}

// compact writes what the store holds into a new file at path.
func (s *Store) compact(ctx context.Context, path string) (err error) {
	if err := discard(path); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(path)
			if noSpaceText(err) {
				err = fmt.Errorf("%w (%w)", ErrFull, err)
			}
		}
	}()
	var file *os.File
	db, err := openDB(path, &file, false)
	if err != nil {
		return err
	}
	db.NoSync, db.AllocSize = true, copyGrow // it is synced once, as a whole
	err = s.View(func(tx *Tx) (err error) {
		defer tx.guard(&err)
		return pour(ctx, db, tx.b)
	})
	if err == nil {
		err = db.Sync()
	}
	return errors.Join(err, db.Close())
}

// pour copies all buckets. It commits now and then.
func pour(ctx context.Context, db *bbolt.DB, from *bbolt.Tx) error {
	to, err := db.Begin(true)
	if err != nil {
		return err
	}
	defer func() { _ = to.Rollback() }()
	size := 0
	err = from.ForEach(func(name []byte, b *bbolt.Bucket) error {
		into, err := to.CreateBucket(name)
		if err != nil {
			return err
		}
		if err := into.SetSequence(b.Sequence()); err != nil {
			return err
		}
		into.FillPercent = copyFill
		return b.ForEach(func(k, v []byte) error {
			if size += len(k) + len(v); size > copyBatch {
				size = 0
				if err := errors.Join(ctx.Err(), to.Commit()); err != nil {
					return err
				}
				if to, err = db.Begin(true); err != nil {
					return err
				}
				into = to.Bucket(name)
				into.FillPercent = copyFill
			}
			return into.Put(k, v)
		})
	})
	if err != nil {
		return err
	}
	return to.Commit()
}

// verify reads a copy back, from the disk and not from memory, and compares it
// with the store.
func (s *Store) verify(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // it was synced
	_ = f.Close()
	if err := checkPages(path); err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	return s.View(func(tx *Tx) error {
		return s.look(path, func(copied *Tx) (err error) {
			defer copied.guard(&err)
			if _, err := copied.readHead(); err != nil {
				return err
			}
			return equal(tx.b, copied.b)
		})
	})
}

var errCopied = errors.New("the copy is not what was copied")

func equal(a, b *bbolt.Tx) error {
	buckets := 0
	err := a.ForEach(func(name []byte, from *bbolt.Bucket) error {
		buckets++
		to := b.Bucket(name)
		if to == nil || to.Sequence() != from.Sequence() {
			return errCopied
		}
		c := to.Cursor()
		k, v := c.First()
		err := from.ForEach(func(key, value []byte) error {
			if !bytes.Equal(k, key) || !bytes.Equal(v, value) {
				return errCopied
			}
			k, v = c.Next()
			return nil
		})
		if err == nil && k != nil {
			err = errCopied
		}
		return err
	})
	if err != nil {
		return err
	}
	return b.ForEach(func([]byte, *bbolt.Bucket) error {
		if buckets--; buckets < 0 {
			return errCopied
		}
		return nil
	})
}

// look runs fn on another file of this store, whose pages were checked.
func (s *Store) look(path string, fn func(*Tx) error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	other := emptyStore(s.o, path)
	other.key, other.keyed = s.key, s.keyed
	if other.db, err = openDB(path, &other.file, true); err != nil {
		return err
	}
	defer func() {
		other.key = nil // it is not other's to wipe
		err = errors.Join(err, other.Close())
	}()
	return other.View(fn)
}

// copyHead is the head of the second copy, if that is a sound file of this store.
func (s *Store) copyHead() (h head, err error) {
	path := s.path + copySuffix
	if err := checkPages(path); err != nil {
		return h, err
	}
	err = s.look(path, func(tx *Tx) error {
		h, err = tx.readHead()
		return err
	})
	return h, err
}

// discard removes a file, after overwriting it.
func discard(path string) error {
	f, err := openOwn(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		_ = shred(f) // best effort
		_ = f.Close()
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove what an earlier start left: %w", err)
	}
	return nil
}
