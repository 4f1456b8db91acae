package store

import (
	"errors"
	"slices"
)

// batched is one caller of Batch.
type batched struct {
	fn   func(*Tx) error
	done chan struct{} // closed when err is set
	err  error
}

// Batch is Update for many small changes from several goroutines: those that
// arrive while a commit is under way share the next one, which is one sync of
// the disk and a fraction of the pages. An fn that fails fails alone; a commit
// that fails, fails for all who share it. fn may run more than once, so its
// effects outside the transaction must bear that.
func (s *Store) Batch(fn func(*Tx) error) error {
	b := &batched{fn: fn, done: make(chan struct{})}
	s.batchMu.Lock()
	s.batch = append(s.batch, b)
	leader := len(s.batch) == 1
	s.batchMu.Unlock()
	if leader {
		s.lead()
	}
	<-b.done
	return b.err
}

// lead waits for the writer and commits all that came meanwhile.
func (s *Store) lead() {
	s.writer.Lock()
	defer s.writer.Unlock()
	s.batchMu.Lock()
	group := s.batch
	s.batch = nil
	s.batchMu.Unlock()
	for _, b := range group {
		b.err = errPanicked // unless commitGroup ends and knows better
	}
	defer func() { // also when an fn panics, which ends the leader's goroutine
		for _, b := range group {
			close(b.done)
		}
	}()
	s.commitGroup(slices.Clone(group))
}

// commitGroup runs all in one transaction. When one fails it is taken out with
// its own error, and the others run again.
func (s *Store) commitGroup(group []*batched) {
	for len(group) > 0 {
		failed := -1
		err := s.update(func(tx *Tx) error {
			for i, b := range group {
				if err := b.fn(tx); err != nil {
					failed = i
					return err
				}
			}
			return nil
		})
		if failed < 0 && len(group) > 1 && (errors.Is(err, ErrFull) || errors.Is(err, ErrUnfinished)) {
			for _, b := range group { // it may be only one that is too large, or a key change
				b.err = s.update(b.fn)
			}
			return
		}
		if failed < 0 {
			for _, b := range group {
				b.err = err
			}
			return
		}
		group[failed].err = err
		group = slices.Delete(group, failed, failed+1)
	}
}

var errPanicked = errors.New("the change was not made: another one in the same batch panicked")
