package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/file"
)

// A terminal is a directory with all that is on its disk: the store, its copy,
// the device secret and the counters.
type terminal struct{ dir string }

func newTerminal(t testing.TB) terminal {
	t.Helper()
	return terminal{quickDir(t)}
}

func (e terminal) path() string { return filepath.Join(e.dir, "store") }

// config has one key bucket, "credentials".
func (e terminal) config() Config { return Config{Path: e.path(), Keys: []string{"credentials"}} }

func (e terminal) module(t testing.TB) hsm.Module {
	t.Helper()
	m, err := file.Open(filepath.Join(e.dir, "device-secret"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func (e terminal) open(t testing.TB) (*Store, error) {
	t.Helper()
	s, err := Open(context.Background(), e.config(), e.module(t), quiet())
	if err == nil {
		t.Cleanup(func() { s.Close() })
	}
	return s, err
}

func (e terminal) mustOpen(t testing.TB) *Store {
	t.Helper()
	s, err := e.open(t)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// copyOf is what another terminal would be that had the same disk.
func (e terminal) copyOf(t testing.TB) terminal {
	t.Helper()
	to := newTerminal(t)
	if err := os.CopyFS(to.dir, os.DirFS(e.dir)); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(to.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range entries {
		if err := os.Chmod(filepath.Join(to.dir, f.Name()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// take replaces a file by the one of another terminal.
func (e terminal) take(t testing.TB, from terminal, suffix string) {
	t.Helper()
	body, err := os.ReadFile(from.path() + suffix)
	if err == nil {
		err = os.WriteFile(e.path()+suffix, body, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// contents gives all records of a store by "bucket key", and the blobs.
func contents(t testing.TB, s *Store) map[string]string {
	t.Helper()
	all := map[string]string{}
	view(t, s, func(tx *Tx) error {
		for _, bucket := range []string{"credentials", "ledger"} {
			err := tx.Each(bucket, func(key string, decode func(any) error) error {
				var r record
				err := decode(&r)
				all[bucket+" "+key] = r.Name
				return err
			})
			if err != nil {
				return err
			}
		}
		if b := tx.Blob("identity"); b != nil {
			all["blob identity"] = string(b)
		}
		return nil
	})
	return all
}

// keysOf leaves out what is in no key bucket.
func keysOf(all map[string]string) map[string]string {
	keys := maps.Clone(all)
	maps.DeleteFunc(keys, func(name, _ string) bool { return strings.HasPrefix(name, "ledger") })
	return keys
}

// settled says what is wrong with a store whose key changes should be finished.
func settled(s *Store) error {
	st := s.State()
	if st.Counter == nil || *st.Counter != st.Epoch || !st.CopyFresh || st.Unfinished != "" {
		return fmt.Errorf("not settled: %+v", st)
	}
	return s.Check(context.Background())
}

// changes are one of each kind.
var changes = []func(tx *Tx) error{
	func(tx *Tx) error { return tx.Put("credentials", "a", record{Name: "first a"}) },
	func(tx *Tx) error { return tx.Put("ledger", "1", record{Name: "row"}) },
	func(tx *Tx) error { return tx.Put("credentials", "a", record{Name: "second a"}) },
	func(tx *Tx) error { return tx.PutBlob("identity", hsm.Blob("first key")) },
	func(tx *Tx) error {
		return errors.Join(tx.Put("credentials", "b", record{Name: "b"}), tx.Put("ledger", "2", record{Name: "row"}))
	},
	func(tx *Tx) error { return tx.Delete("credentials", "a") },
	func(tx *Tx) error { return tx.PutBlob("identity", hsm.Blob("second key")) },
	func(tx *Tx) error { return tx.DeleteBlob("identity") },
	func(tx *Tx) error { return tx.Put("ledger", "3", record{Name: "row"}) },
}

// A moment is a disk after one step, and what was there before and is there
// after the change that the step belongs to.
type moment struct {
	terminal
	name          string
	before, after map[string]string
}

// moments makes all changes and keeps the disk after every step.
func moments(t *testing.T) (all []moment) {
	t.Helper()
	e := newTerminal(t)
	first := 0
	cfg := e.config()
	cfg.step = func(name string) { all = append(all, moment{e.copyOf(t), name, nil, nil}) }
	s, err := Open(t.Context(), cfg, e.module(t), quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	state := contents(t, s)
	closeUp := func(name string) {
		now := contents(t, s)
		cfg.step("after " + name)
		for i := range all[first:] {
			m := &all[first+i]
			m.name, m.before, m.after = name+": "+m.name, state, now
		}
		state, first = now, len(all)
	}
	closeUp("create")
	for i, change := range changes {
		update(t, s, change)
		closeUp(fmt.Sprint("change ", i))
	}
	return all
}

func (m moment) has(t testing.TB, s *Store, part func(map[string]string) map[string]string) error {
	t.Helper()
	got := part(contents(t, s))
	if !maps.Equal(got, part(m.before)) && !maps.Equal(got, part(m.after)) {
		return fmt.Errorf("it holds %v, neither %v nor %v", got, m.before, m.after)
	}
	return nil
}

// Power cut between every two operations, then restart: what is there is what
// was there before or after the change, the counter is right, the copy is fresh.
func TestPowerCutBetweenSteps(t *testing.T) {
	all := moments(t)
	names := map[string]bool{}
	for _, m := range all {
		names[m.name[strings.LastIndex(m.name, ": ")+2:]] = true
		s, err := m.open(t)
		if err != nil {
			t.Errorf("%s: %v", m.name, err)
			continue
		}
		whole := func(all map[string]string) map[string]string { return all }
		if err := errors.Join(m.has(t, s, whole), settled(s)); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
		if st := s.State(); st.Incarnation != 0 || st.Fallback != nil {
			t.Errorf("%s: something was lost: %+v", m.name, st)
		}
		s.Close()
	}
	t.Logf("%d moments, %d steps: %v", len(all), len(names), slices.Sorted(maps.Keys(names)))
	for _, step := range []string{"written", "created", "committed", "touched", "scrubbed", "copied", "renamed", "placed", "counted"} {
		if !names[step] {
			t.Errorf("the step %q was never reached", step)
		}
	}
}

// The same, and the file does not survive: the copy goes on, with all keys.
func TestFileLostBetweenSteps(t *testing.T) {
	fell := 0
	for _, m := range moments(t) {
		if _, err := os.Stat(m.path() + copySuffix); err != nil {
			continue
		}
		for name, lose := range map[string]func(path string) error{
			"gone": os.Remove,
			"cut":  func(path string) error { return os.Truncate(path, 5000) },
			"text": func(path string) error { return os.WriteFile(path, []byte(strings.Repeat("text", 5000)), 0o600) },
		} {
			e := m.copyOf(t)
			if err := lose(e.path()); err != nil {
				t.Fatal(err)
			}
			s, err := e.open(t)
			if err != nil {
				t.Errorf("%s, %s: %v", m.name, name, err)
				continue
			}
			if err := errors.Join(m.has(t, s, keysOf), settled(s)); err != nil {
				t.Errorf("%s, %s: %v", m.name, name, err)
			}
			fell++
			st := s.State()
			if st.Incarnation != 1 || st.Fallback == nil || st.Fallback.Lost == "" || (st.Fallback.Kept == "") != (name == "gone") {
				t.Errorf("%s, %s: it does not say so: %+v", m.name, name, st)
			}
			s.Close()
		}
	}
	t.Logf("%d times", fell)
}

// The same, and the file is replaced by an older one: it is never taken.
func TestOlderFileBetweenSteps(t *testing.T) {
	all := moments(t)
	refused, fell := 0, 0
	for i, m := range all {
		for _, old := range all[:i] {
			if !strings.Contains(old.name, ": after ") { // whole changes are enough
				continue
			}
			if maps.Equal(keysOf(old.after), keysOf(m.before)) || maps.Equal(keysOf(old.before), keysOf(m.before)) {
				continue
			}
			if _, err := os.Stat(old.path()); err != nil {
				continue // it was not made yet
			}
			e := m.copyOf(t)
			e.take(t, old.terminal, "")
			s, err := e.open(t)
			switch {
			case errors.Is(err, ErrOlder):
				refused++
				continue
			case err != nil:
				t.Errorf("%s, file of %s: %v", m.name, old.name, err)
				continue
			}
			fell++
			if err := errors.Join(m.has(t, s, keysOf), settled(s)); err != nil || s.State().Incarnation != 1 {
				t.Errorf("%s, file of %s: %v, %+v", m.name, old.name, err, s.State())
			}
			s.Close()
		}
	}
	t.Logf("%d refused, %d went on with the copy", refused, fell)
	if fell < 50 {
		t.Error("the test proves little")
	}
}
