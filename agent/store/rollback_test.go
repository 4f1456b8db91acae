package store

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"

	"github.com/kagimori/kagimori/hsm"
)

// What somebody, or a broken disk, may put in the place of the files: older ones,
// torn ones, none; with the counter in a file and in a chip.

// A past is the two files as they were once.
type past struct{ file, copy []byte }

func (d crashDaemon) past(t *testing.T) (p past) {
	t.Helper()
	var err, err2 error
	p.file, err = os.ReadFile(d.path())
	p.copy, err2 = os.ReadFile(d.path() + copySuffix)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	return p
}

// puts makes the files what is given; nil removes one.
func (d crashDaemon) puts(t *testing.T, p past) {
	t.Helper()
	for path, body := range map[string][]byte{d.path(): p.file, d.path() + copySuffix: p.copy} {
		err := os.Remove(path)
		if body != nil {
			err = os.WriteFile(path, body, 0o600)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

func (d crashDaemon) path() string { return crashConfig(d.dir).Path }

// lived has a store obey commands and returns what the files were after each.
func (d crashDaemon) lived(t *testing.T, commands int) (pasts []past) {
	t.Helper()
	s, m, err := d.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= commands; n++ {
		update(t, s, func(tx *Tx) error { return command(tx, 0, n) })
		pasts = append(pasts, d.past(t))
	}
	if err := errors.Join(s.Close(), m.Close()); err != nil {
		t.Fatal(err)
	}
	return append(pasts, d.past(t))
}

func torn(b []byte) []byte {
	b = bytes.Clone(b)
	clear(b[:3*4096])
	return b
}

// In lived(12), commands 5 and 10 are key changes: the second copy is of 10.
const lastKeyChange = 10

func TestReplacedFiles(t *testing.T) {
	for _, c := range []struct {
		name string
		put  func(now past, then past) past
		want error // nil: it opens
		done int   // how many commands are there then
		fell bool  // and it says that it fell back
	}{
		{"as they are", func(now, then past) past { return now }, nil, 12, false},
		{"an older file", func(now, then past) past { return past{then.file, now.copy} }, nil, lastKeyChange, true},
		{"an older copy", func(now, then past) past { return past{now.file, then.copy} }, nil, 12, false},
		{"both older", func(now, then past) past { return then }, ErrOlder, 0, false},
		{"an older file, no copy", func(now, then past) past { return past{then.file, nil} }, ErrOlder, 0, false},
		{"an older copy, no file", func(now, then past) past { return past{nil, then.copy} }, ErrOlder, 0, false},
		{"an older copy, a torn file", func(now, then past) past { return past{torn(now.file), then.copy} }, ErrOlder, 0, false},
		{"a torn file", func(now, then past) past { return past{torn(now.file), now.copy} }, nil, lastKeyChange, true},
		{"a cut file", func(now, then past) past { return past{now.file[:5*4096], now.copy} }, nil, lastKeyChange, true},
		{"an empty file", func(now, then past) past { return past{[]byte{}, now.copy} }, nil, lastKeyChange, true},
		{"no file", func(now, then past) past { return past{nil, now.copy} }, nil, lastKeyChange, true},
		{"a torn copy", func(now, then past) past { return past{now.file, torn(now.copy)} }, nil, 12, false},
		{"no copy", func(now, then past) past { return past{now.file, nil} }, nil, 12, false},
		{"both torn", func(now, then past) past { return past{torn(now.file), torn(now.copy)} }, ErrDamaged, 0, false},
	} {
		for where, fresh := range map[string]func() crashDaemon{"file": onFile(t, "single"), "chip": onChip(t, "single")} {
			t.Run(c.name+", "+where, func(t *testing.T) {
				d := fresh()
				pasts := d.lived(t, 12)
				given := c.put(pasts[12], pasts[6])
				d.puts(t, given)
				s, m, err := d.open(t.Context())
				if !errors.Is(err, c.want) {
					t.Fatalf("got %v, want %v", err, c.want)
				}
				if err != nil {
					d.refused(t, given, c.want)
					return
				}
				defer m.Close()
				defer s.Close()
				done, err := judge(s)
				if st := s.State(); err != nil || done[0] != c.done || (st.Fallback != nil) != c.fell || (st.Incarnation == 1) != c.fell {
					t.Errorf("%v commands (%v), %+v", done, err, st)
				}
				if st := s.State(); !st.CopyFresh || st.Unfinished != "" || *st.Counter != st.Epoch || st.RollbackProof != (where == "chip") {
					t.Errorf("%+v", st)
				}
			})
		}
	}
}

// refused says that what was refused was left alone, and that an administrator
// can have an older file all the same.
func (d crashDaemon) refused(t *testing.T, given past, why error) {
	t.Helper()
	for path, body := range map[string][]byte{d.path(): given.file, d.path() + copySuffix: given.copy} {
		if now, err := os.ReadFile(path); body != nil && (err != nil || !bytes.Equal(now, body)) {
			t.Errorf("%s was changed (%v)", path, err)
		}
	}
	if !errors.Is(why, ErrOlder) {
		return
	}
	m, err := d.module(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	s, err := AcceptOlder(t.Context(), crashConfig(d.dir), m, quiet())
	if err != nil {
		t.Fatalf("accept: %v", err)
	}
	done, err := judge(s)
	if st := s.State(); err != nil || done[0] == 0 || done[0] > 7 || st.Incarnation != 1 || st.Fallback == nil || *st.Counter != st.Epoch {
		t.Errorf("accepted: %v commands (%v), %+v", done, err, st)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	later := d.past(t)
	d.puts(t, given) // the word was for that once
	if _, err := Open(t.Context(), crashConfig(d.dir), m, quiet()); !errors.Is(err, ErrOlder) {
		t.Errorf("the same older files again: %v", err)
	}
	d.puts(t, later)
	s, err = Open(t.Context(), crashConfig(d.dir), m, quiet())
	if err != nil {
		t.Fatalf("after it was accepted: %v", err)
	}
	s.Close()
}

// Every older state of the files is refused, not only one of long ago.
func TestEveryOlderPairIsRefused(t *testing.T) {
	for where, fresh := range map[string]func() crashDaemon{"file": onFile(t, "single"), "chip": onChip(t, "single")} {
		t.Run(where, func(t *testing.T) {
			d := fresh()
			pasts := d.lived(t, 16)
			for n, p := range pasts {
				d.puts(t, p)
				s, m, err := d.open(t.Context())
				if older := n < 14; older != errors.Is(err, ErrOlder) { // command 15 is the last key change
					t.Errorf("the files after command %d: %v", n+1, err)
				}
				if err == nil {
					s.Close()
					m.Close()
				}
			}
		})
	}
}

// A counter that is ahead of every file is one of a change that was lost: the
// order of a key change never leaves that behind.
func TestCounterAheadIsNoticed(t *testing.T) {
	for where, fresh := range map[string]func() crashDaemon{"file": onFile(t, "single"), "chip": onChip(t, "single")} {
		t.Run(where, func(t *testing.T) {
			d := fresh()
			d.lived(t, 10)
			s, m, err := d.open(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			err = s.useCounter(t.Context(), func(ctx context.Context, c hsm.Counters, key *hsm.Secret) error {
				_, err := c.Increment(ctx, s.counter.blob, key)
				return err
			})
			if err := errors.Join(err, s.Close(), m.Close()); err != nil {
				t.Fatal(err)
			}
			if _, _, err := d.open(t.Context()); !errors.Is(err, ErrOlder) {
				t.Errorf("got %v", err)
			}
		})
	}
}
