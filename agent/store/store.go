// Package store keeps a daemon's records: one bbolt file, every value sealed
// under one store key that the hsm module unseals once per Open (DESIGN D6).
// START HERE; then
//
//   - config.go, open.go: what a daemon decides, and how a file is opened; create.go,
//     slot.go, boot.go, arrange.go, schema.go: what that takes
//   - tx.go, batch.go: what a transaction can do; record.go, seal.go: how a value is
//     sealed; head.go: the one record that speaks for all
//   - epoch.go: key changes and the counter, step by step; scrub.go, copy.go: steps
//     2 and 3; fallback.go: going on with the copy
//   - page.go, check.go: what is checked before bbolt may touch a file, and later
//
// # What is sealed and what is not
//
// A value is deterministic CBOR, sealed with XChaCha20-Poly1305 under a random
// nonce; its bucket, its key, the record version and the epoch in which it was
// written are associated data, so a value that is moved to another place does not
// open. Bucket names and keys are in clear, because queues need their order: never
// put anything secret or personal in a key. Whoever has a copy of the file learns
// how many records of each kind there are, under which ids, and when they changed,
// and nothing that is in them. Blobs (PutBlob) need no protection, by the contract
// of package hsm.
//
// # What somebody can do who writes to the file
//
// To the key buckets (Config.Keys), to blobs and to slots: nothing that Open does
// not notice. None of their records can be removed, added, changed or put back,
// since the head has a digest of them. To other records: delete one, or put back
// an older value of the same key. To the whole: damage or remove it, after which
// the second copy goes on, without what other buckets got since the last key
// change, and State says so; damage or remove both, after which nothing goes on.
// Putting back an older file, with its copy, is noticed by the counter, as far as
// the counter itself cannot be put back (hsm.Counters.RollbackProof); between two
// key changes it is not. Without a counter only the copy bears witness. A file of
// schema 1, or of a time when there was no counter, has no witness but the copy.
//
// # What is destroyed
//
// When a record of a key bucket, a blob or a slot is replaced or deleted, neither
// it nor its key can be found in the file, nor in the second copy, when Update
// returns. Deleted records of other buckets stay in the free pages, sealed. Broken
// files that were kept (PATH.broken-N) keep what was in them, and below the file
// system flash memory keeps what it likes, until it is erased.
//
// # Durability
//
// When Update returns nil, the change is on the disk: bbolt writes, syncs,
// writes its meta page and syncs again. A crash leaves the state after the last
// Update that returned, or after the one that was under way; so effects must be
// repeatable. An Update that changes nothing writes nothing.
//
// A change of one small record writes 20 KiB (bbolt writes whole pages), twenty in
// one transaction 35 KiB: use Batch, and put together what belongs together. A key
// change writes all that is in use once more, for the copy; one that replaces or
// deletes adds what it frees, and the old copy's own pages. With 400 KiB in use
// that is 330 and 480 KiB, some 12 syncs, and a step of the chip's counter.
// BenchmarkChange measures it.
//
// # Shape of records
//
// Records are decoded strictly: a field that the type does not know, or one
// that it has and the bytes lack, is an error. Add a field with omitempty, or
// with a migration (schema.go).
package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/kagimori/kagimori/hsm"
)

// Limits, in bytes.
const (
	// maxSize is as large as the file may become, maxFile what a migration may
	// make of one that was full: values grow, and it must open. That much is mapped
	// from the start, so that a writer never has to wait for readers to remap.
	maxSize = 32 << 20
	maxFile = maxSize + 8<<20
	// maxRecord bounds one encoded value.
	maxRecord = 1 << 20
	// maxKey bounds a key.
	maxKey = 255

	// reserve is room that only a transaction may use which makes the records
	// smaller in sum: a full store can still be emptied, although bbolt writes
	// new pages in order to delete.
	reserve = 1 << 20
	// growStep is by how much the file grows at a time.
	growStep = 256 << 10
	// foreignLock is how long bbolt waits for a program that opened the file
	// without taking our lock file first, such as the bbolt tool.
	foreignLock = time.Second
)

// A Store is an open file. Its methods may be called from several goroutines.
type Store struct {
	o    *opener
	path string
	log  *slog.Logger
	lock *os.File // nil while the store is being opened
	file *os.File // the one that bbolt holds
	db   *bbolt.DB
	key  *hsm.Secret
	// keyed are the key buckets; they do not change once the store is open.
	keyed map[string]bool
	// weaker and unprotected are what Open found: see State.
	weaker      error
	unprotected string
	schema      int  // of the file, before it was migrated
	lostCounter bool // OpenWith found none
	asFirst     bool // it is read as what it is, of schema 1: OpenAside migrates nothing

	writer sync.Mutex // held by the one write transaction there is, until the key change is finished

	mu       sync.Mutex // guards all below
	idle     *sync.Cond // on mu: open or readers changed
	open     int        // transactions and other users of db and key under way
	readers  map[int]int
	closed   bool
	broken   error // set once bbolt or the disk failed
	panicked bool  // bbolt may hold locks of its own for good
	head     head
	slots    []*slotRecord
	counter  counter
	todo     todo

	batchMu sync.Mutex
	batch   []*batched // waiting for the writer; guarded by batchMu
}

func emptyStore(o *opener, path string) *Store {
	s := &Store{o: o, path: path, log: o.log, keyed: map[string]bool{}, readers: map[int]int{}}
	s.idle = sync.NewCond(&s.mu)
	return s
}

// openDB opens a file that checkPages found sound. The file that bbolt uses is
// handed out, because a database that panicked cannot be closed.
func openDB(path string, file **os.File, readOnly bool) (db *bbolt.DB, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			db, err = nil, fmt.Errorf("%w (%v)", ErrDamaged, p)
		}
	}()
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout:         foreignLock,
		ReadOnly:        readOnly,
		PreLoadFreelist: !readOnly,
		MaxSize:         maxFile,
		InitialMmapSize: maxFile,
		NoStatistics:    true,
		// The list of free pages is written with every commit, although that
		// costs a page: without it, bbolt walks the whole file at each start in
		// a goroutine of its own, where a panic cannot be caught.
		NoFreelistSync: false,
		OpenFile: func(name string, flag int, perm os.FileMode) (*os.File, error) {
			f, err := os.OpenFile(name, flag, perm)
			*file = f
			return f, err
		},
	})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, fmt.Errorf("%w (a program that is not ours holds the file)", ErrLocked)
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return nil, fmt.Errorf("%w (%w)", ErrDamaged, err)
	case err != nil:
		return nil, err
	}
	db.AllocSize = growStep
	return db, nil
}

// Close waits for the transactions under way, closes the file and wipes the
// store key. Closing twice is fine.
func (s *Store) Close() error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	for s.open > 0 {
		s.idle.Wait()
	}
	var errs []error
	switch {
	case s.db != nil && s.broken == nil:
		errs = append(errs, s.db.Close())
	case s.db != nil && !s.panicked:
		_ = s.db.Close() // what is wrong was said before
	case s.file != nil:
		// The mapping stays until the process ends, and would keep the lock.
		_ = syscall.Flock(int(s.file.Fd()), syscall.LOCK_UN)
		_ = s.file.Close()
	}
	s.key.Wipe()
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// View runs fn in a read transaction. It sees the state as it was when it
// began. Do not nest transactions.
func (s *Store) View(fn func(*Tx) error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	tx, err := s.begin(false)
	if err != nil {
		return err
	}
	defer s.end(tx)
	return errors.Join(fn(tx), s.failure())
}

// Update runs fn in the one write transaction there is at a time and commits
// what it did, durably, unless it returns an error. It fails with ErrFull when
// there is no room: then nothing was changed and the store goes on. It fails
// with ErrFailed when the disk did: then every later call does too, and only a
// new Open finds out what is on the disk.
//
// A key change (Config.Keys) is finished before Update returns: see epoch.go.
// When that is not possible, the change is made and durable all the same, State
// says what is missing, and a further key change fails with ErrUnfinished.
func (s *Store) Update(fn func(*Tx) error) error {
	s.writer.Lock()
	defer s.writer.Unlock()
	return s.update(fn)
}

// update needs writer.
func (s *Store) update(fn func(*Tx) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	unfinished := s.settle(context.Background(), false)
	isKey, err := s.change(fn, unfinished)
	if err != nil || !isKey {
		return err
	}
	if err := s.settle(context.Background(), true); err != nil {
		s.log.Error("key change is not finished", "path", s.path, "epoch", s.Epoch(), "err", err)
	}
	return s.failure() // the change is there, but the store can no longer say so
}

// change makes a change and commits it. It does not finish a key change; with
// unfinished set there must not be another. It needs writer.
func (s *Store) change(fn func(*Tx) error, unfinished error) (isKey bool, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	tx, err := s.begin(true)
	if err != nil {
		return false, err
	}
	defer s.end(tx)
	if err := errors.Join(fn(tx), s.failure()); err != nil {
		return false, err
	}
	if tx.key && unfinished != nil {
		return false, fmt.Errorf("%w (%w)", ErrUnfinished, unfinished)
	}
	if err := tx.commit(); err != nil {
		return false, err
	}
	if tx.key {
		s.committed(tx)
		s.step("committed")
	}
	return tx.key, nil
}

// WithKey lends the store key to fn, for a wrap of it that is kept elsewhere. fn
// must neither keep nor wipe it.
func (s *Store) WithKey(fn func(key *hsm.Secret) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	return fn(s.key)
}

// enter and leave keep Close from closing what is in use.
func (s *Store) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	if s.broken != nil {
		return s.broken
	}
	s.open++
	return nil
}

func (s *Store) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open--
	s.idle.Broadcast()
}

// begin and end call bbolt under mu, because a panic in there may leave its own
// locks taken: nobody may be waiting for one of them, nor try again.
func (s *Store) begin(writable bool) (tx *Tx, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	if s.broken != nil {
		return nil, s.broken
	}
	defer func() {
		if p := recover(); p != nil {
			err = s.gaveUp(p)
		}
	}()
	b, err := s.db.Begin(writable)
	if err != nil {
		return nil, fmt.Errorf("begin transaction: %w", err)
	}
	s.open++
	tx = &Tx{s: s, b: b, id: b.ID(), writable: writable, head: s.head}
	if !writable {
		s.readers[tx.id]++
	}
	return tx, nil
}

func (s *Store) end(tx *Tx) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() {
		if p := recover(); p != nil {
			_ = s.gaveUp(p)
		}
		if s.open--; !tx.writable {
			if s.readers[tx.id]--; s.readers[tx.id] == 0 {
				delete(s.readers, tx.id)
			}
		}
		s.idle.Broadcast()
	}()
	if !tx.done && s.broken == nil {
		_ = tx.b.Rollback()
	}
	tx.done = true
}

func (s *Store) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken
}

// fail makes err the answer to every later call. It needs mu.
func (s *Store) fail(err error) error {
	if s.broken == nil {
		s.broken = err
		s.log.Error("store failed", "path", s.path, "err", err)
	}
	return err
}

// gaveUp takes note of a panic of bbolt's, or of a fault in the mapped file. It
// needs mu.
func (s *Store) gaveUp(p any) error {
	s.panicked = true
	return s.fail(fmt.Errorf("%w (%v)", ErrDamaged, p))
}
