package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/kagimori/kagimori/hsm"
)

func tryOpen(t testing.TB, path string, m hsm.Module) error {
	t.Helper()
	s, err := Open(t.Context(), Config{Path: path}, m, slog.New(slog.DiscardHandler))
	if err == nil {
		err = s.Close()
	}
	return err
}

func TestWrongModule(t *testing.T) {
	s, _, path := newStore(t)
	update(t, s, func(tx *Tx) error { return tx.Put("a", "k", record{N: 1}) })
	s.Close()
	if err := tryOpen(t, path, newModule(t)); !errors.Is(err, ErrForeign) || !errors.Is(err, hsm.ErrReplaced) {
		t.Errorf("got %v", err)
	}
}

// absent is a module whose chip does not answer.
type absent struct{ hsm.Module }

func (absent) Unseal(context.Context, hsm.Blob) (*hsm.Secret, error) { return nil, hsm.ErrAbsent }
func (absent) Seal(context.Context, *hsm.Secret) (hsm.Blob, error)   { return nil, hsm.ErrAbsent }

func TestModuleThatFails(t *testing.T) {
	s, m, path := newStore(t)
	s.Close()
	if err := tryOpen(t, path, absent{m}); !errors.Is(err, hsm.ErrAbsent) {
		t.Errorf("open: got %v", err)
	}
	other := filepath.Join(t.TempDir(), "store")
	if err := tryOpen(t, other, absent{m}); !errors.Is(err, hsm.ErrAbsent) {
		t.Errorf("create: got %v", err)
	}
	if _, err := os.Stat(other); err == nil {
		t.Error("a store without a key is there")
	}
	if err := tryOpen(t, path, m); err != nil {
		t.Errorf("once it answers again: %v", err)
	}
}

// A store key that another store of the same module has is not taken: what is
// written under it would be lost.
func TestStoreKeyOfAnotherStore(t *testing.T) {
	s, m, path := newStore(t)
	s.Close()
	other := filepath.Join(t.TempDir(), "store")
	if err := tryOpen(t, other, m); err != nil {
		t.Fatal(err)
	}
	const slot = "00000001"
	mine := rawGet(t, other, bucketSlots, slot)
	for name, foreign := range map[string][]byte{"another store's key": rawGet(t, path, bucketSlots, slot), "a cut slot": mine[:len(mine)-1]} {
		rawPut(t, other, bucketSlots, slot, foreign)
		dropCopy(t, other)
		if err := tryOpen(t, other, m); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	rawPut(t, other, bucketSlots, slot, mine)
	if err := tryOpen(t, other, m); err != nil {
		t.Errorf("the right key: %v", err)
	}
}

func TestSchema(t *testing.T) {
	s, m, path := newStore(t)
	update(t, s, func(tx *Tx) error { return tx.Put("a", "old", record{N: 1}) })
	s.Close()
	log := slog.New(slog.DiscardHandler)
	ran := ""
	steps := slices.Concat(migrations, []migration{
		func(tx *Tx) error { ran += "1"; return tx.Put("a", "new", record{N: 2}) },
		func(tx *Tx) error { ran += "2"; return tx.Delete("a", "old") },
	})
	boom := errors.New("boom")
	broken := slices.Concat(steps[:len(migrations)+1], []migration{func(tx *Tx) error { return boom }})
	open := func(steps []migration) (*Store, error) {
		o := &opener{cfg: Config{Path: path}, module: m, log: log, steps: steps}
		return o.open(t.Context())
	}
	if _, err := open(broken); !errors.Is(err, boom) {
		t.Errorf("a migration that fails: %v", err)
	}
	if err := tryOpen(t, path, m); err != nil {
		t.Errorf("a migration that failed changed the store: %v", err)
	}
	for round := range 2 {
		ran = ""
		s, err := open(steps)
		if err != nil {
			t.Fatal(err)
		}
		_, old := get(t, s, "a", "old")
		_, fresh := get(t, s, "a", "new")
		if want := []string{"12", ""}[round]; ran != want || old || !fresh {
			t.Errorf("round %d: ran %q, old %v, new %v", round, ran, old, fresh)
		}
		s.Close()
	}
	err := tryOpen(t, path, m)
	if !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), fmt.Sprint("schema ", len(steps)+1)) {
		t.Errorf("an older program: %v", err)
	}
	rawPut(t, path, bucketMeta, schemaKey, encodeSchema(len(migrations)+1)) // as the last check wants it
	rawPut(t, path, bucketMeta, schemaKey, nil)
	dropCopy(t, path)
	if err := tryOpen(t, path, m); !errors.Is(err, ErrDamaged) {
		t.Errorf("no schema version: %v", err)
	}
	rawPut(t, path, bucketMeta, schemaKey, encodeSchema(len(migrations)+1))
}

func TestTwoDaemons(t *testing.T) {
	s, m, path := newStore(t)
	err := tryOpen(t, path, m)
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), "it is process ") {
		t.Errorf("got %v", err)
	}
	if err := s.Update(func(tx *Tx) error { return tx.Put("a", "k", 1) }); err != nil {
		t.Errorf("the first one is disturbed: %v", err)
	}
	s.Close()
	if err := tryOpen(t, path, m); err != nil {
		t.Errorf("after it closed: %v", err)
	}
	db, err := bbolt.Open(path, 0o600, nil) // a program that knows nothing of the lock file
	if err != nil {
		t.Fatal(err)
	}
	if err := tryOpen(t, path, m); !errors.Is(err, ErrLocked) {
		t.Errorf("a foreign program: got %v", err)
	}
	db.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s = mustOpen(t, path, m)
	defer s.Close()
	if _, err := Open(ctx, Config{Path: path}, m, slog.New(slog.DiscardHandler)); !errors.Is(err, ErrLocked) {
		t.Errorf("cancelled: got %v", err)
	}
}

// What a crash during creation can leave: any beginning of the file, under the
// other name. And what must never be taken for a store: the same under its name.
func TestTornCreation(t *testing.T) {
	s, m, path := newStore(t)
	s.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	sizes := []int{0, 1, 100, 4095, 4096, 8192, 12288, 16384, len(whole) - 4096}
	for range 20 {
		sizes = append(sizes, random.IntN(4*4096)) // behind that all is growth
	}
	for _, n := range sizes {
		path := filepath.Join(t.TempDir(), "store")
		for name, body := range map[string][]byte{"cut": whole[:n], "zeros": make([]byte, n)} {
			if err := os.WriteFile(path+newSuffix, body, 0o600); err != nil {
				t.Fatal(err)
			}
			os.Remove(path)
			if err := tryOpen(t, path, m); err != nil {
				t.Errorf("%s at %d beside: %v", name, n, err)
			}
			checkInvariants(t, path, m)
			if n > 4*4096 {
				continue // a file cut in its empty end is whole
			}
			if err := os.WriteFile(path, body, 0o600); err != nil {
				t.Fatal(err)
			}
			dropCopy(t, path)
			if err := tryOpen(t, path, m); !errors.Is(err, ErrDamaged) {
				t.Errorf("%s at %d: got %v", name, n, err)
			}
			if now, err := os.ReadFile(path); err != nil || string(now) != string(body) {
				t.Errorf("%s at %d: the broken file was changed (%v)", name, n, err)
			}
		}
	}
}

func TestCannotCreate(t *testing.T) {
	m := newModule(t)
	err := tryOpen(t, filepath.Join(t.TempDir(), "missing", "store"), m)
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "create the directory") {
		t.Errorf("no directory: %v", err)
	}
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(dir, 0o500), os.Chmod(filepath.Dir(dir), 0o755)); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if os.Geteuid() == 0 { // root may write anywhere: be somebody else, on a thread that ends here
			runtime.LockOSThread()
			if _, err := unix.SetfsuidRetUid(65534); err != nil {
				t.Error(err)
				return
			}
		}
		err := tryOpen(t, filepath.Join(dir, "store"), m)
		if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "write to "+dir) {
			t.Errorf("directory not writable: %v", err)
		}
	}()
	<-done
}

func TestFileModes(t *testing.T) {
	s, _, path := newStore(t)
	for _, name := range []string{path, path + lockSuffix} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}
	s.Close()
}

// The file is cut while it is open: reading the mapping is a fault that would
// end the process.
func TestFaultWhileOpen(t *testing.T) {
	m, path := newModule(t), filepath.Join(t.TempDir(), "store")
	s := mustOpen(t, path, m)
	for i := range 50 {
		update(t, s, func(tx *Tx) error { return tx.Put("a", string(rune('a'+i%26)), record{N: i}) })
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	read := func(tx *Tx) error { _, err := tx.Get("a", "c", &record{}); return err }
	for name, do := range map[string]func() error{
		"view":   func() error { return s.View(read) },
		"update": func() error { return s.Update(read) },
		"batch":  func() error { return s.Batch(read) },
		"blob":   func() error { return s.View(func(tx *Tx) error { tx.Blob("b"); return nil }) },
		"check":  func() error { return s.Check(t.Context()) },
	} {
		if err := do(); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	dropCopy(t, path)
	if err := tryOpen(t, path, m); !errors.Is(err, ErrDamaged) {
		t.Errorf("open again: got %v", err)
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	checkInvariants(t, path, m) // it is not locked, although it is still mapped
}

func TestNoFileLeftOpen(t *testing.T) {
	s, m, path := newStore(t)
	s.Close()
	count := func() int {
		d, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip("needs /proc")
		}
		return len(d)
	}
	before := count()
	foreign := newModule(t)
	for range 10 {
		if err := tryOpen(t, path, m); err != nil {
			t.Fatal(err)
		}
		if err := tryOpen(t, path, foreign); !errors.Is(err, ErrForeign) {
			t.Fatal(err)
		}
	}
	if after := count(); after > before {
		t.Errorf("%d files open before, %d after", before, after)
	}
}

// dropCopy leaves a store without its second copy.
func dropCopy(t testing.TB, path string) {
	t.Helper()
	if err := os.Remove(path + copySuffix); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

// rawGet and rawPut go past the store.
func rawGet(t testing.TB, path string, bucket []byte, key string) (value []byte) {
	t.Helper()
	raw(t, path, func(tx *bbolt.Tx) error {
		value = append(value, tx.Bucket(bucket).Get([]byte(key))...)
		return nil
	})
	return value
}

func rawPut(t testing.TB, path string, bucket []byte, key string, value []byte) {
	t.Helper()
	raw(t, path, func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Put([]byte(key), value) })
}

func raw(t testing.TB, path string, fn func(*bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(fn), db.Close()); err != nil {
		t.Fatal(err)
	}
}
