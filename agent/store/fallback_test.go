package store

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.etcd.io/bbolt"
)

// twoEpochs is a terminal with some key changes, and its disk as it was before
// the last two.
func twoEpochs(t *testing.T) (now, old terminal) {
	t.Helper()
	now = newTerminal(t)
	s := now.mustOpen(t)
	for i, change := range changes {
		if i == 4 {
			old = now.copyOf(t)
		}
		if i < 6 {
			update(t, s, change)
		}
	}
	s.Close()
	return now, old
}

func accept(t *testing.T, e terminal) (*Store, error) {
	t.Helper()
	s, err := AcceptOlder(context.Background(), e.config(), e.module(t), quiet())
	if err == nil {
		t.Cleanup(func() { s.Close() })
	}
	return s, err
}

// An older file and an older copy: refused, until an administrator says that
// there is nothing newer. Then the newer files are the ones that are refused.
func TestOlderStore(t *testing.T) {
	now, old := twoEpochs(t)
	e := now.copyOf(t)
	e.take(t, old, "")
	e.take(t, old, copySuffix)
	before, _ := os.ReadFile(e.path())
	for range 2 {
		if _, err := e.open(t); !errors.Is(err, ErrOlder) || !strings.Contains(err.Error(), "it is of epoch 4, the last one was 6") {
			t.Fatalf("got %v", err)
		}
	}
	if after, _ := os.ReadFile(e.path()); !bytes.Equal(before, after) {
		t.Error("what was refused was changed")
	}
	s, err := accept(t, e)
	if err != nil {
		t.Fatal(err)
	}
	st := s.State()
	if st.Incarnation != 1 || st.Fallback == nil || st.Epoch <= 6 || !strings.Contains(st.Fallback.Kept, "store.broken-1") {
		t.Errorf("got %+v", st)
	}
	if err := settled(s); err != nil {
		t.Error(err)
	}
	if got := contents(t, s); got["credentials a"] != "second a" || got["credentials b"] != "" {
		t.Errorf("it holds %v", got)
	}
	update(t, s, changes[5])
	s.Close()
	last := contents(t, e.mustOpen(t))
	newer := e.copyOf(t) // whoever kept the newer file gets nowhere with it
	newer.take(t, now, "")
	s = newer.mustOpen(t)
	if got := contents(t, s); !maps.Equal(got, last) {
		t.Errorf("the file that was given up is taken: %v", got)
	}
	s.Close()
	newer.take(t, now, "")
	newer.take(t, now, copySuffix)
	if _, err := newer.open(t); !errors.Is(err, ErrOlder) {
		t.Errorf("file and copy that were given up: %v", err)
	}
}

// The file is broken and the copy is not the newest: both are said, and an
// administrator may take the copy.
func TestBrokenFileOlderCopy(t *testing.T) {
	now, old := twoEpochs(t)
	now.take(t, old, copySuffix)
	if err := os.Truncate(now.path(), 5000); err != nil {
		t.Fatal(err)
	}
	if _, err := now.open(t); !errors.Is(err, ErrOlder) || !errors.Is(err, ErrDamaged) {
		t.Errorf("got %v", err)
	}
	s, err := accept(t, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := settled(s); err != nil || contents(t, s)["credentials a"] != "second a" {
		t.Errorf("%v, %v", err, contents(t, s))
	}
}

// Broken files are kept under names of their own, but not for ever.
func TestBrokenFilesAreKept(t *testing.T) {
	e := newTerminal(t)
	e.mustOpen(t).Close()
	for i := range maxBroken + 2 {
		text := bytes.Repeat([]byte{byte('a' + i)}, 20_000)
		if err := os.WriteFile(e.path(), text, 0o600); err != nil {
			t.Fatal(err)
		}
		s := e.mustOpen(t)
		st := s.State()
		if st.Incarnation != uint32(i+1) {
			t.Errorf("incarnation %d after %d", st.Incarnation, i+1)
		}
		if kept, err := os.ReadFile(st.Fallback.Kept); err != nil || !bytes.Equal(kept, text) {
			t.Errorf("%d: kept %q: %v", i, st.Fallback.Kept, err)
		}
		s.Close()
	}
	if files := brokenFiles(e.path()); len(files) != maxBroken || files[maxBroken+2] == "" {
		t.Errorf("kept: %v", files)
	}
	s := e.mustOpen(t)
	if err := s.ClearFallback(); err != nil || s.State().Fallback != nil || s.State().Incarnation != maxBroken+2 {
		t.Errorf("cleared: %v, %+v", err, s.State())
	}
	before := s.Epoch()
	if err := s.ClearFallback(); err != nil || s.Epoch() != before {
		t.Errorf("cleared twice: %v, epoch %d then %d", err, before, s.Epoch())
	}
	s.Close()
	if st := e.mustOpen(t).State(); st.Fallback != nil {
		t.Errorf("it is back: %+v", st.Fallback)
	}
}

// What somebody may do with a writable file and no key, to records of key
// buckets, to blobs and to slots. Each must be noticed at Open; here there is no
// copy to go on with.
func TestEditedKeys(t *testing.T) {
	now, old := twoEpochs(t)
	get := func(e terminal, bucket []byte, key string) []byte { return rawGet(t, e.path(), bucket, key) }
	older := map[string][]byte{} // what "credentials a" was
	older["value"], older["key"] = get(old, []byte("credentials"), "a"), get(old, bucketKeys, keyName("credentials", "a"))
	for name, edit := range map[string]func(tx *bbolt.Tx) error{
		"record removed": func(tx *bbolt.Tx) error { return tx.Bucket([]byte("credentials")).Delete([]byte("b")) },
		"key removed":    func(tx *bbolt.Tx) error { return tx.Bucket(bucketKeys).Delete([]byte(keyName("credentials", "b"))) },
		"record and key removed": func(tx *bbolt.Tx) error {
			return errors.Join(tx.Bucket([]byte("credentials")).Delete([]byte("b")), tx.Bucket(bucketKeys).Delete([]byte(keyName("credentials", "b"))))
		},
		"record and key put back": func(tx *bbolt.Tx) error {
			return errors.Join(tx.Bucket([]byte("credentials")).Put([]byte("a"), older["value"]),
				tx.Bucket(bucketKeys).Put([]byte(keyName("credentials", "a")), older["key"]))
		},
		"record added":  func(tx *bbolt.Tx) error { return tx.Bucket([]byte("credentials")).Put([]byte("c"), older["value"]) },
		"blob changed":  func(tx *bbolt.Tx) error { return tx.Bucket(bucketBlobs).Put([]byte("identity"), []byte("mine")) },
		"blob added":    func(tx *bbolt.Tx) error { return tx.Bucket(bucketBlobs).Put([]byte("other"), []byte("mine")) },
		"counter gone":  func(tx *bbolt.Tx) error { return tx.Bucket(bucketBlobs).Delete([]byte(counterBlob)) },
		"all keys gone": func(tx *bbolt.Tx) error { return tx.DeleteBucket(bucketKeys) },
		"head removed":  func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Delete([]byte(headKey)) },
		"slot added": func(tx *bbolt.Tx) error {
			b := tx.Bucket(bucketSlots)
			return b.Put([]byte("00000000"), bytes.Clone(b.Get([]byte("00000001"))))
		},
	} {
		e := now.copyOf(t)
		dropCopy(t, e.path())
		raw(t, e.path(), edit)
		if s, err := e.open(t); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: got %v", name, err)
			s.Close()
		}
		e.take(t, now, copySuffix)
		if err := settled(e.mustOpen(t)); err != nil {
			t.Errorf("%s, with a copy: %v", name, err)
		}
	}
}

// A fall back that the power cuts, between every two of its steps.
func TestPowerCutInFallback(t *testing.T) {
	now, old := twoEpochs(t)
	keys := keysOf(contents(t, now.copyOf(t).mustOpen(t)))
	for name, lose := range map[string]func(e terminal){
		"broken": func(e terminal) { _ = os.Truncate(e.path(), 5000) },
		"older":  func(e terminal) { e.take(t, old, "") },
		"gone":   func(e terminal) { _ = os.Remove(e.path()) },
	} {
		e := now.copyOf(t)
		lose(e)
		var cuts []terminal
		var steps []string
		cfg := e.config()
		cfg.step = func(name string) { cuts, steps = append(cuts, e.copyOf(t)), append(steps, name) }
		s, err := Open(t.Context(), cfg, e.module(t), quiet())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		s.Close()
		for i, cut := range cuts {
			s, err := cut.open(t)
			if err != nil {
				t.Errorf("%s, after %s: %v", name, steps[i], err)
				continue
			}
			st := s.State()
			if err := settled(s); err != nil || !maps.Equal(keysOf(contents(t, s)), keys) || st.Incarnation == 0 || st.Fallback == nil {
				t.Errorf("%s, after %s: %v, %+v, %v", name, steps[i], err, st, contents(t, s))
			}
			want := 1
			switch {
			case name == "gone":
				want = 0
			case steps[i] == "kept":
				want = 2 // the copied disk has two files where there was one with two names
			}
			if n := len(brokenFiles(cut.path())); n != want {
				t.Errorf("%s, after %s: %d broken files are kept", name, steps[i], n)
			}
		}
		t.Logf("%s: %v", name, steps)
	}
}

// A file system without links, and a store that lost its second copy: its file is
// all there is, and must be there at every moment of a step that keeps it.
func TestKeepWithoutLinks(t *testing.T) {
	now, old := twoEpochs(t)
	e := now.copyOf(t)
	e.take(t, old, "")
	dropCopy(t, e.path())
	var cuts []terminal
	var steps []string
	cfg := e.config()
	cfg.step = func(name string) { cuts, steps = append(cuts, e.copyOf(t)), append(steps, name) }
	cfg.link = func(string, string) error { return syscall.EPERM }
	s, err := AcceptOlder(t.Context(), cfg, e.module(t), quiet())
	if err != nil {
		t.Fatal(err)
	}
	kept, err := os.ReadFile(s.State().Fallback.Kept)
	s.Close()
	if was, _ := os.ReadFile(old.path()); err != nil || !bytes.Equal(kept, was) {
		t.Errorf("the file that was given up is not kept: %v", err)
	}
	for i, cut := range cuts {
		s, err := cut.open(t)
		if errors.Is(err, ErrOlder) {
			s, err = accept(t, cut)
		}
		if err != nil {
			t.Errorf("after %s: %v", steps[i], err)
		} else if got := contents(t, s); got["credentials a"] != "second a" {
			t.Errorf("after %s it holds %v", steps[i], got)
		}
	}
	if !slices.Contains(steps, "kept") {
		t.Errorf("only %v", steps)
	}
}

// Leftovers of another program's making are left alone.
func TestBrokenNames(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "store")
	for _, name := range []string{"store", "store.broken-7", "store.broken-x", "store.broken--1", "store.broken-"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if name, err := brokenName(path); err != nil || name != path+".broken-8" {
		t.Errorf("%q, %v", name, err)
	}
}
