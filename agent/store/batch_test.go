package store

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
)

func TestBatch(t *testing.T) {
	s, _, _ := newStore(t)
	boom := errors.New("boom")
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 20 {
				fails := i%5 == w%5
				err := s.Batch(func(tx *Tx) error {
					err := tx.Put("a", fmt.Sprintf("%d-%d", w, i), record{N: i})
					if fails {
						return boom
					}
					return err
				})
				if fails != errors.Is(err, boom) || !fails && err != nil {
					t.Errorf("%d-%d: got %v", w, i, err)
				}
				_, found := get(t, s, "a", fmt.Sprintf("%d-%d", w, i))
				if found == fails {
					t.Errorf("%d-%d: fails %v, found %v", w, i, fails, found)
				}
			}
		})
	}
	wg.Wait()
}

// Those who wait while a transaction is under way share the next commit.
func TestBatchShares(t *testing.T) {
	s, _, _ := newStore(t)
	inside, leave := make(chan struct{}), make(chan struct{})
	var first sync.WaitGroup
	first.Go(func() {
		_ = s.Update(func(tx *Tx) error { close(inside); <-leave; return nil })
	})
	<-inside
	var commits sync.Map
	var waiting atomic.Int32
	var wg sync.WaitGroup
	for w := range 10 {
		wg.Go(func() {
			waiting.Add(1)
			err := s.Batch(func(tx *Tx) error {
				commits.Store(tx.b.ID(), true)
				return tx.Put("a", fmt.Sprint(w), w)
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	for { // until all have queued up
		s.batchMu.Lock()
		n := len(s.batch)
		s.batchMu.Unlock()
		if n == 10 {
			break
		}
	}
	close(leave)
	wg.Wait()
	first.Wait()
	n := 0
	commits.Range(func(any, any) bool { n++; return true })
	if n != 1 {
		t.Errorf("%d commits for 10 changes that waited together", n)
	}
}

func TestBatchSurvivesPanic(t *testing.T) {
	s, _, _ := newStore(t)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic is swallowed")
			}
		}()
		_ = s.Batch(func(*Tx) error { panic("mine") })
	}()
	if err := s.Batch(func(tx *Tx) error { return tx.Put("a", "k", 1) }); err != nil {
		t.Errorf("after a panic: %v", err)
	}
}

// One change that finds no room takes no other one with it.
func TestBatchOneTooLarge(t *testing.T) {
	s, _, _ := newStore(t)
	large := &batched{fn: func(tx *Tx) error {
		for n := range maxSize/maxRecord + 1 {
			if err := tx.Put("a", fmt.Sprint("large-", n), make([]byte, maxRecord-16)); err != nil {
				return err
			}
		}
		return nil
	}}
	small := &batched{fn: func(tx *Tx) error { return tx.Put("a", "small", record{N: 1}) }}
	func() {
		s.writer.Lock()
		defer s.writer.Unlock()
		s.commitGroup([]*batched{large, small})
	}()
	if !errors.Is(large.err, ErrFull) || small.err != nil {
		t.Errorf("%v and %v", large.err, small.err)
	}
	if _, found := get(t, s, "a", "small"); !found {
		t.Error("what had room is not there")
	}
}
