package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A disk that is full while a store is made, or brought to a newer schema.

// roomFor is a disk with the store of e on it, and n pages free. Key storage is
// elsewhere.
func (k *tightDisk) roomFor(t *testing.T, e terminal, n int) (cfg Config) {
	t.Helper()
	k.pages = 64 << 20 / 4096
	k.resize(t)
	entries, err := os.ReadDir(k.dir)
	for _, f := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(k.dir, f.Name())))
	}
	if err != nil {
		t.Fatal(err)
	}
	cfg = e.configFirst()
	cfg.Path = filepath.Join(k.dir, "store")
	k.pages = 1
	if body, err := os.ReadFile(e.path()); err == nil {
		if err := os.WriteFile(cfg.Path, body, 0o600); err != nil {
			t.Fatal(err)
		}
		k.pages = (len(body) + 4095) / 4096
	}
	k.pages += n
	k.resize(t)
	return cfg
}

// migrateFull migrates e on a disk with no free page, one, two ..., until that
// is enough. What fails leaves a store that opens once there is room.
func migrateFull(t *testing.T, e terminal, step int) {
	disk := newTightDisk(t)
	full, unfinished := 0, 0
	for n := 0; ; n += step {
		fresh := e.copyOf(t)
		m := fresh.module(t)
		cfg := disk.roomFor(t, fresh, n)
		s, err := Open(t.Context(), cfg, m, quiet())
		enough := err == nil && s.State().Unfinished == ""
		switch {
		case err == nil && !enough:
			unfinished++
		case err != nil:
			if full++; !errors.Is(err, ErrFull) {
				t.Errorf("with %d free pages: %v", n, err)
			}
			if left := counters(t, fresh.dir); left != 0 {
				t.Fatalf("with %d free pages: %d counters are left behind", n, left)
			}
			disk.pages = 64 << 20 / 4096
			disk.resize(t)
			if s, err = Open(t.Context(), cfg, m, quiet()); err != nil {
				t.Fatalf("with room again, after %d free pages: %v", n, err)
			}
		}
		schema1Contents(t, s, m)
		disk.pages = 64 << 20 / 4096
		disk.resize(t)
		if err := errors.Join(s.Settle(t.Context()), settled(s), s.Check(t.Context())); err != nil || s.State().Incarnation != 0 {
			t.Errorf("after %d free pages: %v, %+v", n, err, s.State())
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if enough {
			break
		}
		if n > 1<<15 {
			t.Fatal("it never fits")
		}
	}
	t.Logf("full %d times, unfinished %d times", full, unfinished)
	if full == 0 || unfinished == 0 {
		t.Error("the disk was not full at every stage: the test proves little")
	}
}

func TestMigrateFullAtEveryPage(t *testing.T) { migrateFull(t, storedSchema1(t), 1) }

func TestSoakMigrateFullAtEveryPage(t *testing.T) {
	if os.Getenv("KAGIMORI_SOAK") == "" {
		t.Skip("takes minutes: make soak")
	}
	for _, size := range []int{40, 7 << 10} {
		t.Run(fmt.Sprint(size), func(t *testing.T) { migrateFull(t, fullSchema1(t, strings.Repeat("x", size)), 16) })
	}
}

// counters says how many there are in key storage.
func counters(t *testing.T, dir string) int {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*counter*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

// A store that cannot be made leaves no counter behind: a chip has few places.
func TestCreateFullAtEveryPage(t *testing.T) {
	disk := newTightDisk(t)
	e := newTerminal(t)
	m := e.module(t)
	for n := 0; ; n++ {
		s, err := Open(t.Context(), disk.roomFor(t, e, n), m, quiet())
		if err == nil {
			if n < 5 {
				t.Errorf("%d pages are enough: the test proves little", n)
			}
			if left := counters(t, e.dir); left != 1 {
				t.Errorf("%d counters for one store", left)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			return
		}
		if !errors.Is(err, ErrFull) {
			t.Errorf("with %d free pages: %v", n, err)
		}
		if left := counters(t, e.dir); left != 0 {
			t.Fatalf("with %d free pages: %d counters are left behind", n, left)
		}
	}
}
