package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/file"
)

// fickle is real key storage whose counter fails on command.
type fickle struct {
	hsm.Module
	noNew   error // NewCounter
	count   error // Count
	before  error // Increment, before it counts
	after   error // Increment, after it counted
	counted int
}

func (f *fickle) NewCounter(ctx context.Context, key *hsm.Secret) (hsm.Blob, error) {
	if f.noNew != nil {
		return nil, f.noNew
	}
	return f.Module.NewCounter(ctx, key)
}

func (f *fickle) Count(ctx context.Context, b hsm.Blob, key *hsm.Secret) (uint64, error) {
	if f.count != nil {
		return 0, f.count
	}
	return f.Module.Count(ctx, b, key)
}

func (f *fickle) Increment(ctx context.Context, b hsm.Blob, key *hsm.Secret) (uint64, error) {
	if f.before != nil {
		return 0, f.before
	}
	f.counted++
	n, err := f.Module.Increment(ctx, b, key)
	return n, errors.Join(err, f.after)
}

func (e terminal) openOn(t testing.TB, m hsm.Module) *Store {
	t.Helper()
	s, err := Open(t.Context(), e.config(), m, quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// A counter that cannot count now: the change is made, other changes go on, the
// next key change waits, and once it works again all is as it should be.
func TestUnfinishedKeyChange(t *testing.T) {
	for name, c := range map[string]struct{ before, after error }{
		"not counted":         {before: hsm.ErrAbsent},
		"counted, and failed": {after: hsm.ErrTimeout},
	} {
		e := newTerminal(t)
		f := &fickle{Module: e.module(t)}
		s := e.openOn(t, f)
		update(t, s, changes[0])
		f.before, f.after = c.before, c.after
		if c.after != nil {
			f.count = hsm.ErrTimeout
		}
		update(t, s, changes[2])
		st := s.State()
		if st.Epoch != 3 || *st.Counter != 2 || !st.CopyFresh || !strings.Contains(st.Unfinished, "counter: ") {
			t.Errorf("%s: %+v", name, st)
		}
		err := s.Update(changes[4])
		if !errors.Is(err, ErrUnfinished) || !errors.Is(err, errors.Join(c.before, c.after)) && !errors.Is(err, hsm.ErrTimeout) && !errors.Is(err, hsm.ErrAbsent) {
			t.Errorf("%s: the next key change: %v", name, err)
		}
		if got := contents(t, s); got["credentials a"] != "second a" || got["credentials b"] != "" || got["ledger 2"] != "" {
			t.Errorf("%s: it holds %v", name, got)
		}
		update(t, s, changes[1])
		lost := e.copyOf(t) // the daemon ends here
		f.before, f.after, f.count = nil, nil, nil
		if err := s.Settle(t.Context()); err != nil {
			t.Errorf("%s: settle: %v", name, err)
		}
		update(t, s, changes[4])
		if err := settled(s); err != nil || s.Epoch() != 4 {
			t.Errorf("%s: %v, epoch %d", name, err, s.Epoch())
		}
		before := f.counted
		if err := s.Settle(t.Context()); err != nil || f.counted != before {
			t.Errorf("%s: settled again: %v, %d increments", name, err, f.counted-before)
		}
		if err := settled(lost.mustOpen(t)); err != nil {
			t.Errorf("%s: after a restart: %v", name, err)
		}
	}
}

// A second copy that cannot be written, the same.
func TestUnwritableCopy(t *testing.T) {
	e := newTerminal(t)
	s := e.mustOpen(t)
	update(t, s, changes[0])
	block := filepath.Join(e.path()+copySuffix+newSuffix, "x")
	if err := os.MkdirAll(block, 0o700); err != nil {
		t.Fatal(err)
	}
	update(t, s, changes[2])
	if st := s.State(); st.CopyFresh || *st.Counter != 2 || st.Epoch != 3 || !strings.Contains(st.Unfinished, "second copy: ") {
		t.Errorf("%+v", st)
	}
	if err := s.Update(changes[4]); !errors.Is(err, ErrUnfinished) {
		t.Errorf("the next key change: %v", err)
	}
	update(t, s, changes[1])
	if err := os.RemoveAll(filepath.Dir(block)); err != nil {
		t.Fatal(err)
	}
	if err := s.Settle(t.Context()); err != nil {
		t.Error(err)
	}
	if err := settled(s); err != nil {
		t.Error(err)
	}
}

// Where no counter can be, the store works, says so, and gets one later.
func TestNoCounter(t *testing.T) {
	e := newTerminal(t)
	f := &fickle{Module: e.module(t), noNew: hsm.ErrOwnerAuth}
	s := e.openOn(t, f)
	update(t, s, changes[0])
	update(t, s, changes[2])
	st := s.State()
	if st.Counter != nil || st.RollbackProof || st.Unprotected != hsm.ErrOwnerAuth.Error() || !st.CopyFresh || st.Epoch != 3 {
		t.Errorf("%+v", st)
	}
	if err := s.Check(t.Context()); err != nil {
		t.Error(err)
	}
	s.Close()
	if err := os.Remove(e.path()); err != nil { // the copy is taken at its word
		t.Fatal(err)
	}
	s = e.openOn(t, f)
	if st := s.State(); st.Incarnation != 1 || contents(t, s)["credentials a"] != "second a" {
		t.Errorf("%+v, %v", st, contents(t, s))
	}
	s.Close()
	f.noNew = nil
	s = e.openOn(t, f)
	if err := settled(s); err != nil {
		t.Error(err)
	}
}

// The counter was removed, or turned back: an error of its own, until an
// administrator takes the file as it is.
func TestLostCounter(t *testing.T) {
	now, old := twoEpochs(t)
	counters, err := filepath.Glob(filepath.Join(now.dir, "device-secret.counter-*"))
	if err != nil || len(counters) != 1 {
		t.Fatalf("counters: %v, %v", counters, err)
	}
	name := filepath.Base(counters[0])
	for what, lose := range map[string]func(e terminal) error{
		"removed": func(e terminal) error { return os.Remove(filepath.Join(e.dir, name)) },
		"turned back": func(e terminal) error {
			body, err := os.ReadFile(filepath.Join(old.dir, name))
			return errors.Join(err, os.WriteFile(filepath.Join(e.dir, name), body, 0o600))
		},
	} {
		e := now.copyOf(t)
		want := contents(t, now.copyOf(t).mustOpen(t))
		if err := lose(e); err != nil {
			t.Fatal(err)
		}
		if _, err := e.open(t); !errors.Is(err, hsm.ErrCounter) || errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", what, err)
		}
		s, err := accept(t, e)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if got := contents(t, s); len(got) != len(want) || s.State().Incarnation != 1 {
			t.Errorf("%s: it holds %v, %+v", what, got, s.State())
		}
		if err := settled(s); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		s.Close()
		if err := settled(e.mustOpen(t)); err != nil {
			t.Errorf("%s, opened again: %v", what, err)
		}
	}
}

// A store key that was kept elsewhere opens the store when key storage cannot,
// and from then on key storage can.
func TestOpenWith(t *testing.T) {
	now, _ := twoEpochs(t)
	s := now.mustOpen(t)
	want := contents(t, s)
	var kept *hsm.Secret
	if err := s.WithKey(func(key *hsm.Secret) error { kept = key.Clone(); return nil }); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := s.WithKey(func(*hsm.Secret) error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("the key of a closed store: %v", err)
	}
	other, err := file.Open(filepath.Join(t.TempDir(), "device-secret"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := Open(t.Context(), now.config(), other, quiet()); !errors.Is(err, ErrForeign) {
		t.Errorf("without the key: %v", err)
	}
	if _, err := OpenWith(t.Context(), now.config(), other, hsm.RandomSecret(keySize), quiet()); !errors.Is(err, ErrKey) {
		t.Errorf("another key: %v", err)
	}
	if _, err := OpenWith(t.Context(), Config{Path: filepath.Join(t.TempDir(), "none")}, other, kept, quiet()); !errors.Is(err, ErrDamaged) {
		t.Errorf("no store: %v", err)
	}
	s, err = OpenWith(t.Context(), now.config(), other, kept, quiet())
	if err != nil {
		t.Fatal(err)
	}
	st := s.State()
	if len(contents(t, s)) != len(want) || len(st.Slots) != 1 || st.Incarnation != 1 || st.Fallback == nil {
		t.Errorf("%v, %+v", contents(t, s), st)
	}
	if err := settled(s); err != nil {
		t.Error(err)
	}
	s.Close()
	if kept.Len() != keySize {
		t.Error("the key that was lent is wiped")
	}
	s = now.openOn(t, other)
	if err := settled(s); err != nil {
		t.Error(err)
	}
	s.Close()
	if _, err := now.open(t); !errors.Is(err, ErrForeign) {
		t.Errorf("the module from before: %v", err)
	}
}

// The right chip, a key from elsewhere, and an older file: refused all the same,
// but for Accept.
func TestOpenWithOlder(t *testing.T) {
	now, old := twoEpochs(t)
	s := now.mustOpen(t)
	var kept *hsm.Secret
	_ = s.WithKey(func(key *hsm.Secret) error { kept = key.Clone(); return nil })
	s.Close()
	now.take(t, old, "")
	now.take(t, old, copySuffix)
	cfg := now.config()
	if _, err := OpenWith(t.Context(), cfg, now.module(t), kept, quiet()); !errors.Is(err, ErrOlder) {
		t.Errorf("got %v", err)
	}
	cfg.Accept = true
	s, err := OpenWith(t.Context(), cfg, now.module(t), kept, quiet())
	if err != nil {
		t.Fatal(err)
	}
	if err := settled(s); err != nil || s.State().Incarnation != 1 {
		t.Errorf("%v, %+v", err, s.State())
	}
	s.Close()
	if err := settled(now.mustOpen(t)); err != nil {
		t.Error(err)
	}
}
