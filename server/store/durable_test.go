package store

import (
	"path/filepath"
	"testing"
)

// What survives a power cut: kill -9 cannot show it, since the kernel keeps
// what was written. SQLite says itself how it runs.
func TestEveryConnectionIsDurable(t *testing.T) {
	s := testStore(t)
	check := func(who string, c *conn) {
		t.Helper()
		var journal string
		var synchronous, foreign int
		for pragma, into := range map[string]any{"journal_mode": &journal, "synchronous": &synchronous, "foreign_keys": &foreign} {
			if err := c.c.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(into); err != nil {
				t.Fatal(err)
			}
		}
		const full = 2 // in WAL: the log is synced in every commit
		if journal != "wal" || synchronous != full || foreign != 1 {
			t.Errorf("%s: journal_mode %s, synchronous %d, foreign_keys %d", who, journal, synchronous, foreign)
		}
	}
	check("writer", s.writer)
	var readers []*conn
	for range maxReaders { // all at once, so each is another one
		c, err := s.reader(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		readers = append(readers, c)
		check("reader", c)
	}
	for _, c := range readers {
		s.readers <- c
	}
	dir := filepath.Dir(s.lock.Name())
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(t.Context(), dir, testModule(t, dir), quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	check("writer after a restart", again.writer)
}
