package store

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// A disk that does not keep what it was given: the copy is read back, compared,
// and not used; the one before stays, and nothing was counted.
func TestBadCopyIsNotUsed(t *testing.T) {
	e := newTerminal(t)
	cfg := e.config()
	spoil := func([]byte) []byte { return nil }
	cfg.step = func(name string) {
		path := e.path() + copySuffix + newSuffix
		if name != "copied" {
			return
		}
		body, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
		}
		if body = spoil(body); body != nil {
			if err := os.WriteFile(path, body, 0o600); err != nil {
				t.Error(err)
			}
		}
	}
	s, err := Open(t.Context(), cfg, e.module(t), quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	update(t, s, func(tx *Tx) error { return tx.Put("ledger", "1", record{Name: strings.Repeat("x", 500)}) })
	update(t, s, changes[0])
	good, err := os.ReadFile(e.path() + copySuffix)
	if err != nil {
		t.Fatal(err)
	}
	row := rawSealed(t, s, "ledger", "1")
	for name, how := range map[string]func([]byte) []byte{
		"a bit of a value": func(b []byte) []byte { b[bytes.Index(b, row)+100] ^= 1; return b },
		"a bit of each page": func(b []byte) []byte {
			for at := 2 * os.Getpagesize(); at < len(b); at += os.Getpagesize() {
				b[at+8] ^= 0x40
			}
			return b
		},
		"its end":    func(b []byte) []byte { return b[:2*os.Getpagesize()] },
		"everything": func(b []byte) []byte { return make([]byte, len(b)) },
	} {
		spoil = how
		before := s.Epoch()
		update(t, s, func(tx *Tx) error { return tx.Put("credentials", "new", record{Name: name}) })
		st := s.State()
		if st.CopyFresh || !strings.Contains(st.Unfinished, "second copy: ") || *st.Counter != before {
			t.Errorf("%s: it is taken: %+v", name, st)
		}
		if now, err := os.ReadFile(e.path() + copySuffix); err != nil || !bytes.Equal(now, good) {
			t.Errorf("%s: the copy before is not there any more (%v)", name, err)
		}
		spoil = func([]byte) []byte { return nil }
		if err := s.Settle(t.Context()); err != nil {
			t.Errorf("%s: settle: %v", name, err)
		}
		if err := settled(s); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if good, err = os.ReadFile(e.path() + copySuffix); err != nil {
			t.Fatal(err)
		}
	}
}

func rawSealed(t *testing.T, s *Store, bucket, key string) (sealed []byte) {
	t.Helper()
	view(t, s, func(tx *Tx) error { sealed = tx.raw([]byte(bucket), key); return nil })
	return sealed
}
