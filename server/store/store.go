// Package store keeps the management server's durable state in one SQL
// database: who is who, what was issued, what was ordered, who did it and when.
// It is the truth (DESIGN D1, D3); the broker may lose everything.
//
// START HERE: update.go (one writer, group commit) and tx.go (what a
// transaction offers); migrations/*.sql is the schema; then one file a noun.
// seal.go keeps secrets unreadable in the file.
package store

import (
	"context"
	"crypto/cipher"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"

	_ "modernc.org/sqlite" // registers the driver "sqlite"

	"github.com/kagimori/kagimori/hsm"
)

const (
	fileName = "server.db"
	lockName = "lock"

	// maxReaders is how many connections read at once, beside the one that writes.
	maxReaders = 4
	// busyWait is how long SQLite waits for a foreign program, a backup for
	// instance, that holds the file, in milliseconds.
	busyWait = 2000
)

// Store is the open database of one state directory.
type Store struct {
	log    *slog.Logger
	lock   *os.File
	column cipher.AEAD
	decoy  []byte // a sealed key that no terminal has

	writer *conn         // owned by whoever holds lead
	lead   chan struct{} // holds one token while a batch is written

	readSource string
	readers    chan *conn    // those that nobody reads with now
	ended      chan struct{} // closed with the store

	mu     sync.Mutex
	queue  []*request // guarded by mu: transactions that wait for the writer
	opened int        // guarded by mu: readers there are
	closed bool       // guarded by mu
}

// Create makes the database in dir, which must not have one, under a fresh
// column key that the module seals. Close it when done.
func Create(ctx context.Context, dir string, module hsm.Sealer, by By, log *slog.Logger) (*Store, error) {
	path := filepath.Join(dir, fileName)
	// SQLite gives the mode of the database to its side files too.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create database: %w", err)
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("create database: %w", err)
	}
	s, err := connect(ctx, dir, log)
	if err != nil {
		return nil, err
	}
	if err := s.start(ctx, module, &by); err != nil {
		s.Close()
		return nil, unusable(dir, err)
	}
	return s, nil
}

// Open opens the database in dir, which Create made, and brings its schema up
// to date. One process at a time may have it open.
func Open(ctx context.Context, dir string, module hsm.Sealer, log *slog.Logger) (*Store, error) {
	if err := Present(dir); err != nil {
		return nil, err
	}
	s, err := connect(ctx, dir, log)
	if err != nil {
		return nil, err
	}
	if err := s.start(ctx, module, nil); err != nil {
		s.Close()
		return nil, unusable(dir, err)
	}
	return s, nil
}

// Present says why there is no database in dir to open. Ask before key storage
// is opened, which would make a device secret in the wrong place.
func Present(dir string) error {
	_, err := os.Stat(filepath.Join(dir, fileName))
	if errors.Is(err, fs.ErrNotExist) {
		return &Problem{Kind: "storage", Next: "make a server there with: kagimori-server init --deployment NAME --address HOST:PORT --dir " + dir,
			Err: fmt.Errorf("%s holds no server: %w", dir, err)}
	}
	if err != nil {
		return unusable(dir, err)
	}
	return nil
}

func connect(ctx context.Context, dir string, log *slog.Logger) (_ *Store, err error) {
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	s := &Store{log: log, lock: lock, lead: make(chan struct{}, 1), readers: make(chan *conn, maxReaders), ended: make(chan struct{})}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	path, err := filepath.Abs(filepath.Join(dir, fileName))
	if err != nil {
		return nil, err
	}
	if s.writer, err = newConn(ctx, source(path, "synchronous(FULL)")); err != nil {
		return nil, unusable(dir, err)
	}
	s.readSource = source(path, "query_only(1)")
	return s, nil
}

// source is the driver's name for the file with everything that a connection
// needs before its first statement.
func source(path string, pragmas ...string) string {
	q := url.Values{"_dqs": {"0"}, "_pragma": append([]string{
		fmt.Sprintf("busy_timeout(%d)", busyWait), "journal_mode(WAL)", "foreign_keys(1)", "trusted_schema(0)",
	}, pragmas...)}
	return (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: q.Encode()}).String()
}

// start migrates and gets the column key; a new database gets a fresh one.
func (s *Store) start(ctx context.Context, module hsm.Sealer, create *By) error {
	if err := s.migrate(ctx); err != nil {
		return err
	}
	if create != nil {
		return s.createColumnKey(ctx, module, *create)
	}
	return s.openColumnKey(ctx, module)
}

// Close waits for the transactions that run and closes the database. Those that
// wait fail with ErrClosed.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	waiting, opened := s.queue, s.opened
	s.queue = nil
	s.mu.Unlock()
	close(s.ended)
	for _, r := range waiting {
		r.finish(ErrClosed)
	}
	s.lead <- struct{}{} // never given back: nothing is written from here on
	var errs []error
	for range opened {
		errs = append(errs, (<-s.readers).close())
	}
	if s.writer != nil {
		errs = append(errs, s.writer.close())
	}
	return errors.Join(append(errs, s.lock.Close())...)
}
