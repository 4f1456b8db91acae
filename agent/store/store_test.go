package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/file"
)

type record struct {
	Name string      `cbor:"1,keyasint"`
	N    int         `cbor:"2,keyasint"`
	Key  *hsm.Secret `cbor:"3,keyasint,omitempty"`
}

func newModule(t testing.TB) hsm.Module {
	t.Helper()
	m, err := file.Open(filepath.Join(t.TempDir(), "device-secret"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// quickDir is for tests that sync a thousand times and lose nothing if memory
// is what they sync to.
func quickDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "kagimori-store-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// newStore makes a store whose file is checked whole when the test ends.
func newStore(t testing.TB) (*Store, hsm.Module, string) {
	t.Helper()
	m, path := newModule(t), filepath.Join(t.TempDir(), "store")
	s := mustOpen(t, path, m)
	t.Cleanup(func() { checkInvariants(t, path, m) })
	t.Cleanup(func() { s.Close() })
	return s, m, path
}

func mustOpen(t testing.TB, path string, m hsm.Module) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Path: path}, m, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// checkInvariants reads the file twice: as we check it, and as bbolt does.
func checkInvariants(t testing.TB, path string, m hsm.Module) {
	t.Helper()
	s, err := Open(context.Background(), Config{Path: path}, m, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Errorf("the store does not open again: %v", err)
		return
	}
	if err := errors.Join(s.Check(context.Background()), s.Close()); err != nil {
		t.Errorf("check: %v", err)
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: foreignLock})
	if err != nil {
		t.Errorf("bbolt cannot open the store: %v", err)
		return
	}
	_ = db.View(func(tx *bbolt.Tx) error {
		for err := range tx.Check() {
			t.Errorf("bbolt check: %v", err)
		}
		return nil
	})
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}

func update(t testing.TB, s *Store, fn func(*Tx) error) {
	t.Helper()
	if err := s.Update(fn); err != nil {
		t.Fatal(err)
	}
}

func view(t testing.TB, s *Store, fn func(*Tx) error) {
	t.Helper()
	if err := s.View(fn); err != nil {
		t.Fatal(err)
	}
}

func get(t testing.TB, s *Store, bucket, key string) (r record, found bool) {
	t.Helper()
	view(t, s, func(tx *Tx) (err error) {
		found, err = tx.Get(bucket, key, &r)
		return err
	})
	return r, found
}

func TestRoundTripAndReopen(t *testing.T) {
	s, m, path := newStore(t)
	want := record{"nav-001", 42, hsm.NewSecret([]byte("0123456789abcdef"))}
	update(t, s, func(tx *Tx) error {
		return errors.Join(tx.Put("credential", "maps", want), tx.PutBlob("identity", hsm.Blob("blob")))
	})
	for round := range 2 {
		got, found := get(t, s, "credential", "maps")
		if !found || got.Name != want.Name || got.N != want.N || !got.Key.Equal(want.Key) {
			t.Errorf("round %d: got %v, %v", round, got, found)
		}
		if _, found := get(t, s, "credential", "other"); found {
			t.Error("a record that was never put is found")
		}
		if _, found := get(t, s, "nothing", "maps"); found {
			t.Error("a record in a bucket that was never made is found")
		}
		view(t, s, func(tx *Tx) error {
			if got := string(tx.Blob("identity")); got != "blob" {
				t.Errorf("blob: got %q", got)
			}
			if got := tx.Blob("none"); got != nil {
				t.Errorf("a blob that was never put: got %q", got)
			}
			return nil
		})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = mustOpen(t, path, m)
		t.Cleanup(func() { s.Close() })
	}
	update(t, s, func(tx *Tx) error {
		return errors.Join(tx.Delete("credential", "maps"), tx.Delete("credential", "maps"), tx.DeleteBlob("identity"))
	})
	if _, found := get(t, s, "credential", "maps"); found {
		t.Error("a deleted record is found")
	}
}

func TestFailedUpdateChangesNothing(t *testing.T) {
	s, _, _ := newStore(t)
	update(t, s, func(tx *Tx) error { return tx.Put("a", "k", record{N: 1}) })
	boom := errors.New("boom")
	err := s.Update(func(tx *Tx) error {
		return errors.Join(tx.Put("a", "k", record{N: 2}), tx.Put("b", "k", record{N: 2}), boom)
	})
	if !errors.Is(err, boom) {
		t.Errorf("got %v", err)
	}
	func() { // a panic of the caller's goes through, and rolls back
		defer func() {
			if p := recover(); p != "mine" {
				t.Errorf("recovered %v", p)
			}
		}()
		_ = s.Update(func(tx *Tx) error {
			_ = tx.Put("a", "k", record{N: 3})
			panic("mine")
		})
	}()
	if got, _ := get(t, s, "a", "k"); got.N != 1 {
		t.Errorf("got %v", got)
	}
	if _, found := get(t, s, "b", "k"); found {
		t.Error("half of a failed transaction is there")
	}
}

func TestIdleWritesNothing(t *testing.T) {
	s, _, path := newStore(t)
	change := func(tx *Tx) error {
		_, err := tx.Get("a", "k", &record{})
		return errors.Join(err, tx.Put("a", "k", record{Name: "same", N: 1}), tx.PutBlob("b", hsm.Blob("same")),
			tx.Delete("a", "none"), tx.Delete("none", "none"), tx.DeleteBlob("none"))
	}
	update(t, s, change)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		update(t, s, change)
	}
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(before, after) {
		t.Error("an update that changes nothing wrote to the file")
	}
}

func TestEach(t *testing.T) {
	s, _, _ := newStore(t)
	update(t, s, func(tx *Tx) error {
		for i := range 300 { // several pages
			if err := tx.Put("a", fmt.Sprintf("k%03d", i), record{N: i, Name: strings.Repeat("x", 100)}); err != nil {
				return err
			}
		}
		return nil
	})
	var keys []string
	view(t, s, func(tx *Tx) error {
		return tx.Each("a", func(key string, decode func(any) error) error {
			var r record
			if err := decode(&r); err != nil {
				return err
			}
			if fmt.Sprintf("k%03d", r.N) != key {
				t.Errorf("%s holds %d", key, r.N)
			}
			keys = append(keys, key)
			return nil
		})
	})
	if len(keys) != 300 || !slices.IsSorted(keys) {
		t.Errorf("got %d keys, sorted: %v", len(keys), slices.IsSorted(keys))
	}
	n := 0
	update(t, s, func(tx *Tx) error { // a queue is emptied while it is walked
		return tx.Each("a", func(key string, _ func(any) error) error {
			if n++; n > 250 {
				return ErrStop
			}
			return tx.Delete("a", key)
		})
	})
	boom, left := errors.New("boom"), 0
	err := s.View(func(tx *Tx) error {
		return tx.Each("a", func(string, func(any) error) error {
			if left++; left == 50 {
				return boom
			}
			return nil
		})
	})
	if !errors.Is(err, boom) || left != 50 {
		t.Errorf("got %v after %d records", err, left)
	}
}

func TestAppend(t *testing.T) {
	s, m, path := newStore(t)
	var keys []string
	for i := range 20 {
		update(t, s, func(tx *Tx) error {
			key, err := tx.Append("outbox", record{N: i})
			keys = append(keys, key)
			if i%3 == 0 {
				err = errors.Join(err, tx.Delete("outbox", key))
			}
			return err
		})
		if i == 10 { // numbers go on after a restart, also behind a deleted record
			s.Close()
			s = mustOpen(t, path, m)
			t.Cleanup(func() { s.Close() })
		}
	}
	if !slices.IsSorted(keys) || len(slices.Compact(slices.Clone(keys))) != 20 {
		t.Errorf("keys: %v", keys)
	}
	if want := fmt.Sprintf("%016x", 20); keys[19] != want {
		t.Errorf("the last key is %s, want %s", keys[19], want)
	}
}

func TestMistakesOfCallers(t *testing.T) {
	s, _, _ := newStore(t)
	for _, c := range []struct{ bucket, key string }{
		{"", "k"}, {"_meta", "k"}, {"_blobs", "k"}, {"A", "k"}, {"a b", "k"}, {strings.Repeat("a", 64), "k"},
		{"a", ""}, {"a", "k\x00"}, {"a", strings.Repeat("k", maxKey+1)},
	} {
		err := s.Update(func(tx *Tx) error {
			_, err := tx.Get(c.bucket, c.key, &record{})
			for _, err := range []error{err, tx.Put(c.bucket, c.key, 1), tx.Delete(c.bucket, c.key)} {
				if !errors.Is(err, ErrName) {
					t.Errorf("%q %q: %v", c.bucket, c.key, err)
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	view(t, s, func(tx *Tx) error {
		_, err := tx.Append("a", 1)
		for _, err := range []error{err, tx.Put("a", "k", 1), tx.Delete("a", "k"), tx.PutBlob("b", nil)} {
			if !errors.Is(err, ErrReadOnly) {
				t.Errorf("change in a view: %v", err)
			}
		}
		return nil
	})
	err := s.Update(func(tx *Tx) error {
		return tx.PutBlob(storeKeyBlob, hsm.Blob("mine"))
	})
	if !errors.Is(err, ErrName) {
		t.Errorf("the store's own blob: %v", err)
	}
	if err := s.Update(func(tx *Tx) error { return tx.Put("a", "k", make([]byte, maxRecord)) }); err == nil {
		t.Error("a record over the limit is taken")
	}
	s.Close()
	if err := s.View(func(*Tx) error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if s.key.Len() != 0 {
		t.Error("the store key is there after Close")
	}
}
