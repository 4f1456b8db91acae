package store

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/kagimori/kagimori/hsm"
)

// busyFile is a store with trees, overflow pages, inline buckets and free pages.
func busyFile(t testing.TB, m hsm.Module) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "store")
	s := mustOpen(t, path, m)
	for i := range 3 {
		update(t, s, func(tx *Tx) error {
			for k := range 30 {
				r := record{N: i, Name: strings.Repeat("x", 150)}
				if err := tx.Put("many", fmt.Sprintf("%032d", k*7+i), r); err != nil {
					return err
				}
			}
			return errors.Join(
				tx.Put("large", "one", record{Name: strings.Repeat("y", 9000+i)}),
				tx.Put("small", "one", record{N: i}),
				tx.Delete("many", fmt.Sprintf("%032d", i)))
		})
	}
	if err := s.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Close()
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m0, err := readMeta(bytes.NewReader(body), int64(len(body)))
	if err != nil {
		t.Fatal(err)
	}
	return body[:m0.high*uint64(m0.pageSize)] // the rest is empty
}

// use does all that a daemon would, on a file that may be damaged. The only
// thing it may not do is end the process.
func use(t testing.TB, path string, m hsm.Module) error {
	t.Helper()
	dropCopy(t, path)
	s, err := Open(t.Context(), Config{Path: path}, m, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.Check(t.Context()); err != nil {
		return err
	}
	for round := range 2 { // writes both meta pages
		err := s.Update(func(tx *Tx) error {
			for k := range 20 {
				err := errors.Join(tx.Put("many", fmt.Sprintf("%032d", k*3), record{N: round, Name: strings.Repeat("z", 200)}),
					tx.Delete("many", fmt.Sprintf("%032d", k*5)))
				if err != nil {
					return err
				}
			}
			return tx.Put("large", "two", record{N: round, Name: strings.Repeat("y", 20000)})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Every part of a page that bbolt follows is changed, page by page, and some
// bytes at random. Each result is an error or a store that works; after an
// accepted change the file must still be one that bbolt calls sound.
func TestDamagedFile(t *testing.T) {
	m := newModule(t)
	good := busyFile(t, m)
	seed := rand.Uint64()
	t.Logf("seed %d, %d pages", seed, len(good)/os.Getpagesize())
	random := rand.New(rand.NewPCG(seed, 0))
	var spots []int
	for page := 0; page < len(good); page += os.Getpagesize() {
		for i := range pageHeader {
			spots = append(spots, page+i)
		}
		for range 6 { // the first elements, or a meta page's fields
			spots = append(spots, page+pageHeader+random.IntN(metaSize))
		}
		for range 3 {
			spots = append(spots, page+random.IntN(os.Getpagesize()))
		}
	}
	path := filepath.Join(quickDir(t), "store")
	refused := 0
	for _, at := range spots {
		bad := bytes.Clone(good)
		bad[at] ^= 1 << random.IntN(8)
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		switch err := use(t, path, m); {
		case errors.Is(err, ErrDamaged), errors.Is(err, ErrNewer), errors.Is(err, ErrForeign):
			refused++
		case err != nil:
			t.Errorf("byte %d: got %v", at, err)
		default:
			if err := sound(path); err != nil {
				t.Errorf("byte %d: taken, and bbolt says afterwards: %v", at, err)
			}
		}
	}
	t.Logf("%d of %d changes are refused, the others harmless", refused, len(spots))
	if refused < len(spots)/10 {
		t.Error("hardly any change is noticed")
	}
}

func TestCutFile(t *testing.T) {
	m := newModule(t)
	good := busyFile(t, m)
	path := filepath.Join(t.TempDir(), "store")
	for n := 0; n < len(good); n += 1000 {
		if err := os.WriteFile(path, good[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if err := use(t, path, m); !errors.Is(err, ErrDamaged) {
			t.Errorf("cut at %d: got %v", n, err)
		}
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := use(t, path, m); err != nil {
		t.Errorf("whole: %v", err)
	}
}

// A commit that a power cut tore in its last write leaves one bad meta page, in
// either place: the store is what it was one transaction earlier, or now.
func TestTornMeta(t *testing.T) {
	m := newModule(t)
	good := busyFile(t, m)
	for page := range 2 {
		bad := bytes.Clone(good)
		bad[page*os.Getpagesize()+pageHeader+metaSum] ^= 1
		path := filepath.Join(t.TempDir(), "store")
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := use(t, path, m); err != nil {
			t.Errorf("meta page %d: %v", page, err)
		}
		checkInvariants(t, path, m)
	}
}

func TestNotAStore(t *testing.T) {
	m := newModule(t)
	path := filepath.Join(t.TempDir(), "store")
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	db.Close()
	if err := tryOpen(t, path, m); !errors.Is(err, ErrDamaged) {
		t.Errorf("a database of another program: got %v", err)
	}
	if err := os.WriteFile(path, bytes.Repeat([]byte("text\n"), 10000), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := tryOpen(t, path, m); !errors.Is(err, ErrDamaged) {
		t.Errorf("a text: got %v", err)
	}
	if err := os.Truncate(path, maxFile+1); err != nil {
		t.Fatal(err)
	}
	if err := tryOpen(t, path, m); !errors.Is(err, ErrDamaged) {
		t.Errorf("too large: got %v", err)
	}
}

func sound(path string) (found error) {
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		return err
	}
	defer db.Close()
	_ = db.View(func(tx *bbolt.Tx) error {
		for err := range tx.Check() {
			if !strings.Contains(err.Error(), "unreachable unfreed") { // only lost room
				found = errors.Join(found, err)
			}
		}
		return nil
	})
	return found
}

func FuzzCheckFile(f *testing.F) {
	m := newModule(f)
	good := busyFile(f, m)
	f.Add(good[:8*4096])
	f.Add(good)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = checkFile(bytes.NewReader(b), int64(len(b))) // ends, and without a panic
	})
}
