package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kagimori/kagimori/hsm"
)

// A remnant is what must not be anywhere once a record is gone.
type remnant struct {
	name    string
	wrapped []byte      // the record's key, as it stood in the file
	own     *hsm.Secret // the record's key
	sealed  []byte      // the record, as it stood in the file
}

func remnantOf(t *testing.T, s *Store, name string) (r remnant) {
	t.Helper()
	r.name = name
	view(t, s, func(tx *Tx) (err error) {
		r.wrapped, r.sealed = tx.raw(bucketKeys, keyName("credentials", name)), tx.raw([]byte("credentials"), name)
		r.own, err = tx.ownKey("credentials", name)
		return err
	})
	if r.wrapped == nil || r.sealed == nil {
		t.Fatalf("there is no %s", name)
	}
	return r
}

// traces looks for r in a file, at every offset, with the store key and with the
// record's own in hand: its key in any sealing, and its value.
func (r remnant) traces(t *testing.T, s *Store, path string) (found []string) {
	t.Helper()
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	keyAt := place{string(bucketKeys), keyName("credentials", r.name), versionShared}
	valueAt := place{"credentials", r.name, versionKeyed}
	for i := range body {
		if end := i + len(r.wrapped); end <= len(body) && body[i] == versionShared {
			if plain, err := openValue(s.key, keyAt, anyEpoch, body[i:end]); err == nil && bytes.Equal(plain, r.own.Bytes()) {
				found = append(found, fmt.Sprintf("its key at %d", i))
			}
		}
		if end := i + len(r.sealed); end <= len(body) && body[i] == versionKeyed {
			if _, err := openValue(r.own, valueAt, anyEpoch, body[i:end]); err == nil {
				found = append(found, fmt.Sprintf("the value at %d", i))
			}
		}
	}
	if bytes.Contains(body, r.wrapped[:40]) || bytes.Contains(body, r.sealed[:40]) {
		found = append(found, "the beginning of one of them")
	}
	return found
}

// Deletion destroys: with the store key in hand, neither a deleted or replaced
// record nor its key is anywhere in the file or in the copy.
func TestDeletedIsDestroyed(t *testing.T) {
	e := newTerminal(t)
	s := e.mustOpen(t)
	for i := range 40 { // several pages of keys and of records
		update(t, s, func(tx *Tx) error {
			return errors.Join(
				tx.Put("credentials", fmt.Sprint("c", i), record{Name: strings.Repeat(string(rune('a'+i%26)), 100+i*20), N: i}),
				tx.Put("ledger", fmt.Sprint(i), record{Name: strings.Repeat("l", 200)}))
		})
	}
	update(t, s, func(tx *Tx) error { return tx.PutBlob("identity", hsm.Blob("an identity blob, the first one")) })
	deleted, replaced, kept := remnantOf(t, s, "c7"), remnantOf(t, s, "c23"), remnantOf(t, s, "c8")
	for i := range 5 { // copies of their pages spread
		update(t, s, func(tx *Tx) error { return tx.Put("ledger", fmt.Sprint(i), record{N: 1000 + i}) })
	}
	files := []string{e.path(), e.path() + copySuffix}
	for _, path := range files {
		for _, r := range []remnant{deleted, replaced, kept} { // the search finds what is there
			if len(r.traces(t, s, path)) == 0 {
				t.Errorf("%s: %s is not found while it is there", filepath.Base(path), r.name)
			}
		}
	}
	update(t, s, func(tx *Tx) error {
		return errors.Join(tx.Delete("credentials", "c7"), tx.Put("credentials", "c23", record{Name: "new", N: 23}),
			tx.PutBlob("identity", hsm.Blob("another one")))
	})
	for _, path := range files {
		for _, r := range []remnant{deleted, replaced} {
			if found := r.traces(t, s, path); found != nil {
				t.Errorf("%s: %s: %v", filepath.Base(path), r.name, found)
			}
		}
		if len(kept.traces(t, s, path)) == 0 {
			t.Errorf("%s: what was not deleted is gone", filepath.Base(path))
		}
		if body, _ := os.ReadFile(path); bytes.Contains(body, []byte("the first one")) {
			t.Errorf("%s: the blob that was replaced is there", filepath.Base(path))
		}
	}
	if err := settled(s); err != nil {
		t.Error(err)
	}
	s.Close()
	if err := settled(e.mustOpen(t)); err != nil {
		t.Error(err)
	}
}

// Power cut at any step of a deletion: after the restart nothing is left either.
func TestDestroyedAfterPowerCut(t *testing.T) {
	e := newTerminal(t)
	var cuts []terminal
	var steps []string
	cfg := e.config()
	cutting := false
	cfg.step = func(name string) {
		if cutting {
			cuts, steps = append(cuts, e.copyOf(t)), append(steps, name)
		}
	}
	s, err := Open(t.Context(), cfg, e.module(t), quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	update(t, s, func(tx *Tx) error { return tx.Put("credentials", "c", record{Name: "gone soon"}) })
	r := remnantOf(t, s, "c")
	cutting = true
	update(t, s, func(tx *Tx) error { return tx.Delete("credentials", "c") })
	cutting = false
	for i, cut := range cuts {
		again := cut.mustOpen(t)
		for _, suffix := range []string{"", copySuffix} {
			if found := r.traces(t, again, cut.path()+suffix); found != nil {
				t.Errorf("cut after %s: store%s: %v", steps[i], suffix, found)
			}
		}
	}
	if !slices.Equal(steps, []string{"committed", "touched", "scrubbed", "copied", "renamed", "placed", "counted"}) {
		t.Errorf("steps: %v", steps)
	}
}

// Readers of an older state are waited for: their pages are not overwritten
// under them.
func TestScrubWaitsForReaders(t *testing.T) {
	e := newTerminal(t)
	s := e.mustOpen(t)
	for i := range 50 {
		update(t, s, func(tx *Tx) error {
			return tx.Put("credentials", fmt.Sprint(i), record{Name: strings.Repeat("x", 300), N: i})
		})
	}
	for range 3 { // the page cache alone decides nothing
		reading, deleting := make(chan struct{}), make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			err := s.View(func(tx *Tx) error {
				close(reading)
				<-deleting
				n := 0
				err := tx.Each("credentials", func(key string, decode func(any) error) error {
					var r record
					n++
					return decode(&r)
				})
				if n == 0 {
					t.Error("the reader sees nothing")
				}
				return err
			})
			if err != nil {
				t.Errorf("reader: %v", err)
			}
		})
		<-reading
		timer := time.AfterFunc(20*time.Millisecond, func() { close(deleting) })
		update(t, s, func(tx *Tx) error {
			left := 10
			return tx.Each("credentials", func(key string, _ func(any) error) error {
				if left--; left < 0 {
					return ErrStop
				}
				return tx.Delete("credentials", key)
			})
		})
		timer.Stop()
		wg.Wait()
	}
	if err := settled(s); err != nil {
		t.Error(err)
	}
}

// The second copy that is replaced has lost its name, but its blocks are there
// until something else takes them: they hold no key either.
func TestReplacedCopyIsDestroyed(t *testing.T) {
	e := newTerminal(t)
	s := e.mustOpen(t)
	for i := range 60 {
		update(t, s, func(tx *Tx) error {
			return tx.Put("credentials", fmt.Sprint("c", i), record{Name: strings.Repeat("x", 400), N: i})
		})
	}
	old := e.path() + ".held"
	if err := os.Link(e.path()+copySuffix, old); err != nil {
		t.Fatal(err)
	}
	r := remnantOf(t, s, "c7")
	if len(r.traces(t, s, old)) == 0 {
		t.Error("nothing is found while it is there")
	}
	slot := s.slotList()[0].Blob
	update(t, s, func(tx *Tx) error { return tx.Delete("credentials", "c7") })
	body, err := os.ReadFile(old)
	if err != nil {
		t.Fatal(err)
	}
	found := slices.DeleteFunc(r.traces(t, s, old), func(what string) bool { return !strings.HasPrefix(what, "its key") })
	if len(found) > 0 || bytes.Contains(body, r.wrapped[:40]) || bytes.Contains(body, slot) {
		t.Errorf("found: %v", found)
	}
}

// Zeros that stand in a file already are written once more when an earlier try
// may have lost them: a file that takes no room yet then takes some.
func TestZerosAreWrittenAgain(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size, pageSize = 1 << 20, 4096
	for _, again := range []bool{false, true} {
		if err := errors.Join(f.Truncate(size), zero(f, size, pageSize, make([]bool, size/pageSize), again)); err != nil {
			t.Fatal(err)
		}
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if wrote := info.Sys().(*syscall.Stat_t).Blocks > 0; wrote != again {
			t.Errorf("again %v: wrote %v", again, wrote)
		}
	}
	cut := newTerminal(t)
	cfg := cut.config()
	var dead terminal
	cfg.step = func(name string) {
		if name == "committed" {
			dead = cut.copyOf(t)
		}
	}
	s, err := Open(t.Context(), cfg, cut.module(t), quiet())
	if err != nil {
		t.Fatal(err)
	}
	update(t, s, changes[0])
	update(t, s, changes[1])
	s.Close()
	o := &opener{cfg: dead.config(), module: dead.module(t), log: quiet(), steps: migrations}
	left, err := o.current(t.Context(), dead.path())
	if err != nil {
		t.Fatal(err)
	}
	defer left.Close()
	if !left.todo.scrub || !left.todo.again {
		t.Errorf("what a power cut left is to be done: %+v", left.todo)
	}
}
