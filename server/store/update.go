package store

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"
)

// Group commit. A durable commit costs one fsync, whatever is in it: one row at
// a time would end at some hundred per second. So whoever comes while a commit
// is under way queues; whoever comes first after it leads, and writes all that
// wait in one SQL transaction, each under a savepoint of its own, so that one
// that fails takes nobody with it. No goroutine stands by for this.

// maxBatch bounds how many transactions share a commit.
const maxBatch = 256

// By says who changes something, and when. Both go into every row.
type By struct {
	Actor string
	At    time.Time
}

// request is one transaction that waits or is being written.
type request struct {
	by    By
	fn    func(*Tx) error
	err   error
	panic any
	done  chan struct{}
}

func (r *request) finish(err error) {
	if r.err == nil {
		r.err = err
	}
	close(r.done)
}

// Update runs fn in a write transaction. When Update returns nil the effect is
// on the disk; when it returns an error there is no effect, except that after
// a failed commit (ErrWrite) the disk alone knows. fn runs once, perhaps in
// another caller's goroutine, with all other writers standing still: it only
// reads and writes rows, and effects outside the transaction wait until Update
// has returned. Once fn may have started, the end of ctx stops nothing.
func (s *Store) Update(ctx context.Context, by By, fn func(*Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r := &request{by: by, fn: fn, done: make(chan struct{})}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	s.queue = append(s.queue, r)
	s.mu.Unlock()
	ended := ctx.Done()
	for {
		select {
		case <-r.done:
			if r.panic != nil {
				panic(r.panic)
			}
			return r.err
		case s.lead <- struct{}{}:
			s.commit()
			<-s.lead
		case <-ended:
			if s.withdraw(r) {
				return ctx.Err()
			}
			ended = nil
		}
	}
}

// withdraw takes r out of the queue, if it is still there.
func (s *Store) withdraw(r *request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.queue, r)
	if i < 0 {
		return false
	}
	s.queue = slices.Delete(s.queue, i, i+1)
	return true
}

// commit writes one batch. The caller holds lead.
func (s *Store) commit() {
	s.mu.Lock()
	n := min(len(s.queue), maxBatch)
	batch := slices.Clone(s.queue[:n])
	s.queue = slices.Delete(s.queue, 0, n)
	s.mu.Unlock()
	if n == 0 {
		return
	}
	err := s.write(batch)
	if err != nil {
		s.log.Error("commit failed", "err", err, "transactions", n)
	}
	for _, r := range batch {
		r.finish(err)
	}
}

// errBroken is an SQL transaction that SQLite gave up as a whole, as it does
// when the disk is full.
var errBroken = errors.New("transaction given up")

func (s *Store) write(batch []*request) error {
	if err := s.writer.exec("BEGIN IMMEDIATE"); err != nil {
		return fmt.Errorf("%w: begin: %w", ErrWrite, err)
	}
	for _, r := range batch {
		if err := s.one(r); errors.Is(err, errBroken) {
			s.writer.exec("ROLLBACK") // fails when SQLite has done so itself
			return fmt.Errorf("%w: %w", ErrWrite, err)
		}
	}
	if err := s.writer.exec("COMMIT"); err != nil {
		s.writer.exec("ROLLBACK")
		return fmt.Errorf("%w: commit: %w", ErrWrite, err)
	}
	return nil
}

// one runs a transaction under its savepoint. Its own failure goes to r; only
// errBroken is returned.
func (s *Store) one(r *request) error {
	if err := s.writer.exec("SAVEPOINT one"); err != nil {
		return fmt.Errorf("%w: %w", errBroken, err)
	}
	r.err = s.call(r)
	if r.err != nil {
		if err := s.writer.exec("ROLLBACK TO one"); err != nil {
			return fmt.Errorf("%w: %w (after: %w)", errBroken, err, r.err)
		}
	}
	if err := s.writer.exec("RELEASE one"); err != nil {
		return fmt.Errorf("%w: %w", errBroken, err)
	}
	return nil
}

func (s *Store) call(r *request) (err error) {
	defer func() {
		if p := recover(); p != nil {
			r.panic = fmt.Sprintf("%v\n%s", p, debug.Stack())
			err = errors.New("panic in a transaction")
		}
	}()
	// The caller's context stays outside: SQLite answers an interrupted
	// statement by giving up the transaction, everybody's.
	return r.fn(&Tx{ctx: context.Background(), by: r.by, store: s, conn: s.writer})
}
