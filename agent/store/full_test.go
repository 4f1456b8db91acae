package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// fill puts records of 8 KiB until one does not fit, and returns how many did.
func fill(t *testing.T, s *Store, bucket string) (n int, err error) {
	t.Helper()
	for ; n < 10_000; n++ {
		err := s.Update(func(tx *Tx) error {
			for i := range 8 { // some at a time, for speed
				if err := tx.Put(bucket, fmt.Sprintf("%05d-%d", n, i), make([]byte, 8<<10)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return n * 8, err
		}
	}
	return n * 8, nil
}

func TestFullStore(t *testing.T) {
	s, _, path := newStore(t)
	update(t, s, func(tx *Tx) error { return tx.Put("a", "k", record{N: 1}) })
	n, err := fill(t, s, "fill")
	if !errors.Is(err, ErrFull) {
		t.Fatalf("after %d records: %v", n, err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d records of 8 KiB, file of %d KiB", n, info.Size()>>10)
	if info.Size() > maxSize || n*8<<10 < maxSize/2 {
		t.Errorf("%d KiB in a file of %d KiB", n*8, info.Size()>>10)
	}
	goesOn(t, s, n)
}

// goesOn says that a full store reads, and writes again once there is room.
func goesOn(t *testing.T, s *Store, n int) {
	t.Helper()
	if got, found := get(t, s, "a", "k"); !found || got.N != 1 {
		t.Errorf("when full: got %v, %v", got, found)
	}
	if err := s.Check(t.Context()); err != nil {
		t.Error(err)
	}
	update(t, s, func(tx *Tx) error {
		left := n
		return tx.Each("fill", func(key string, _ func(any) error) error {
			if left--; left < n/2 {
				return ErrStop
			}
			return tx.Delete("fill", key)
		})
	})
	for i := range 10 {
		update(t, s, func(tx *Tx) error { return tx.Put("a", "k", record{N: 2 + i}) })
	}
}

// However full the store is, it can be emptied record by record: bbolt needs new
// pages in order to delete.
func TestFullStoreCanBeEmptied(t *testing.T) {
	m, path := newModule(t), filepath.Join(quickDir(t), "store")
	s := mustOpen(t, path, m)
	t.Cleanup(func() { checkInvariants(t, path, m) })
	t.Cleanup(func() { s.Close() })
	n, err := fill(t, s, "fill")
	if !errors.Is(err, ErrFull) {
		t.Fatalf("after %d records: %v", n, err)
	}
	small := 0
	for ; err == nil || small == 0; small++ { // into the last free page
		err = s.Update(func(tx *Tx) error { return tx.Put("small", fmt.Sprintf("%06d", small), small) })
		if small > 100_000 {
			t.Fatal("it is never full")
		}
	}
	if !errors.Is(err, ErrFull) {
		t.Fatalf("after %d small records: %v", small, err)
	}
	for i := range small - 1 {
		update(t, s, func(tx *Tx) error { return tx.Delete("small", fmt.Sprintf("%06d", i)) })
		if i%16 == 0 {
			update(t, s, func(tx *Tx) error { return tx.Delete("fill", fmt.Sprintf("%05d-%d", i/16, i%8)) })
		}
	}
	update(t, s, func(tx *Tx) error { return tx.Put("a", "k", record{N: 1}) })
}

// smallDisk is a directory with 1 MiB of room.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m,mode=0700"); err != nil {
		t.Skipf("cannot mount a small disk here (%v): this test needs root and mount", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

func TestFullDisk(t *testing.T) {
	dir := smallDisk(t)
	m, path := newModule(t), filepath.Join(dir, "store")
	s := mustOpen(t, path, m)
	t.Cleanup(func() { checkInvariants(t, path, m) })
	t.Cleanup(func() { s.Close() })
	update(t, s, func(tx *Tx) error { return tx.Put("a", "k", record{N: 1}) })
	n, err := fill(t, s, "fill")
	if !errors.Is(err, ErrFull) || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("after %d records: %v", n, err)
	}
	s.Close() // it also starts on a full disk
	s = mustOpen(t, path, m)
	goesOn(t, s, n)
	s.Close()
}

func TestCreateOnFullDisk(t *testing.T) {
	dir, m := smallDisk(t), newModule(t)
	filler, err := os.Create(filepath.Join(dir, "filler"))
	for err == nil {
		_, err = filler.Write(make([]byte, 4096))
	}
	filler.Close()
	path := filepath.Join(dir, "store")
	if err := tryOpen(t, path, m); !errors.Is(err, syscall.ENOSPC) || !errors.Is(err, ErrFull) {
		t.Errorf("create on a full disk: %v", err)
	}
	for _, name := range []string{path, path + newSuffix} {
		if _, err := os.Stat(name); err == nil {
			t.Errorf("%s is there", name)
		}
	}
	if err := os.Remove(filler.Name()); err != nil {
		t.Fatal(err)
	}
	if err := tryOpen(t, path, m); err != nil {
		t.Errorf("once there is room: %v", err)
	}
	checkInvariants(t, path, m)
}

// After a write that failed otherwise nothing is certain: the store stops, and
// a new Open reads what is there.
func TestFailedDisk(t *testing.T) {
	s, m, path := newStore(t)
	update(t, s, func(tx *Tx) error { return tx.Put("a", "k", record{N: 1}) })
	if err := s.file.Close(); err != nil { // every write fails from here on
		t.Fatal(err)
	}
	for range 2 {
		err := s.Update(func(tx *Tx) error { return tx.Put("a", "k", record{N: 2}) })
		if !errors.Is(err, ErrFailed) {
			t.Errorf("update: %v", err)
		}
	}
	if err := s.View(func(*Tx) error { return nil }); !errors.Is(err, ErrFailed) {
		t.Errorf("view: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	s = mustOpen(t, path, m)
	defer s.Close()
	if got, _ := get(t, s, "a", "k"); got.N != 1 {
		t.Errorf("got %v", got)
	}
}
