package store

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/file"
)

// What earlier lives of a store, and earlier and later releases, have left.

// The store and its copy are gone and a broken file is there: nobody decided to
// begin anew, so no empty store takes the place.
func TestOnlyABrokenFileIsLeft(t *testing.T) {
	e := newTerminal(t)
	for _, name := range []string{".broken-2", ".broken-10"} {
		if err := os.WriteFile(e.path()+name, []byte("broken"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		_, err := e.open(t)
		if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), e.path()+".broken-10") || !strings.Contains(err.Error(), "recovery start") {
			t.Fatalf("got %v", err)
		}
		if _, err := os.Stat(e.path()); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("there is a store: %v", err)
		}
	}
	for _, name := range []string{".broken-2", ".broken-10"} { // recovery start moves them away
		if err := os.Remove(e.path() + name); err != nil {
			t.Fatal(err)
		}
	}
	if err := settled(e.mustOpen(t)); err != nil {
		t.Error(err)
	}
}

// A later release has put a slot of its own beside ours: ours opens. Alone it is
// what only that release can open, and no reason to take the second copy.
func TestSlotOfUnknownKind(t *testing.T) {
	e := newTerminal(t)
	s := e.mustOpen(t)
	update(t, s, func(tx *Tx) error { return tx.Put("credentials", "a", record{Name: "a"}) })
	strange := &slotRecord{Kind: 77, Blob: hsm.Blob("of a later release")}
	update(t, s, func(tx *Tx) error {
		tx.key, tx.reslot = true, append([]*slotRecord{strange}, s.slotList()...)
		return tx.addSlot(strange)
	})
	if st := s.State(); len(st.Slots) != 2 || st.Slots[0].Name != "unknown" {
		t.Errorf("%+v", st.Slots)
	}
	s.Close()
	alone := e.copyOf(t)
	if got := contents(t, e.mustOpen(t)); got["credentials a"] != "a" {
		t.Errorf("it holds %v", got)
	}

	s = alone.mustOpen(t)
	update(t, s, func(tx *Tx) error {
		strange.name = ""
		tx.key, tx.reslot = true, []*slotRecord{strange}
		return errors.Join(tx.dropSlots(s.slotList()), tx.addSlot(strange))
	})
	s.Close()
	if _, err := alone.open(t); !errors.Is(err, ErrNewer) {
		t.Errorf("got %v", err)
	}
}

// The disk is full of broken files: the oldest gives way to the store.
func TestBrokenFileGivesWay(t *testing.T) {
	disk := newTightDisk(t)
	disk.pages = 1000
	disk.grow(t)
	m, err := file.Open(filepath.Join(t.TempDir(), "device-secret"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	s, err := openTight(disk.dir, m)
	if err != nil {
		t.Fatal(err)
	}
	update(t, s, func(tx *Tx) error { return tx.Put("credential", "a", record{Name: "a"}) })
	s.Close()
	path := filepath.Join(disk.dir, "store")
	text := bytes.Repeat([]byte{'x'}, 20_000)
	if err := errors.Join(os.WriteFile(path, text, 0o600), os.WriteFile(path+".broken-4", make([]byte, 64<<10), 0o600)); err != nil {
		t.Fatal(err)
	}
	filler, err := os.Create(filepath.Join(disk.dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = filler.Write(make([]byte, 4096))
	}
	filler.Close()
	if s, err = openTight(disk.dir, m); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got, _ := get(t, s, "credential", "a"); got.Name != "a" {
		t.Errorf("it holds %v", got)
	}
	kept := s.State().Fallback.Kept
	if body, err := os.ReadFile(kept); err != nil || !bytes.Equal(body, text) || kept != path+".broken-5" {
		t.Errorf("kept %s: %v", kept, err)
	}
	if files := brokenFiles(path); len(files) != 1 {
		t.Errorf("kept: %v", files)
	}
}

// A store of release 0.1 that is set aside is read as it is.
func TestAsideOfSchema1(t *testing.T) {
	e := storedSchema1(t)
	s, m := e.copyOf(t).openFirst(t, nil)
	before, err := os.ReadFile(e.path())
	if err != nil {
		t.Fatal(err)
	}
	err = s.WithKey(func(key *hsm.Secret) error {
		old, err := OpenAside(t.Context(), e.path(), key, quiet())
		if err != nil {
			return err
		}
		defer old.Close()
		schema1Contents(t, old.s, m)
		return old.DropCounter(t.Context(), m)
	})
	if err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile(e.path()); err != nil || !bytes.Equal(before, after) {
		t.Errorf("what is set aside was changed: %v", err)
	}
}
