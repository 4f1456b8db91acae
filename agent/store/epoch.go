package store

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kagimori/kagimori/hsm"
)

// Key changes and the counter. A key change is made in this order, and each step
// is durable before the next begins:
//
//	1  commit the change with the head of epoch n+1
//	2  destroy what it replaced or deleted, when it did (scrub.go)
//	3  write and verify the second copy, of epoch n+1 (copy.go)
//	4  count the module's counter up to n+1
//
// A power cut after 1 leaves a file that is one epoch ahead of the counter: the
// next Open takes up at 2. A file that is behind the counter, or two ahead of it,
// is none that this order leaves behind. So before the next key change, all four
// steps of the last one must be done.

// counterBlob is the counter's blob in bucketBlobs.
const counterBlob = "store-counter"

// counterLabel derives what the counter is used with from the store key.
const counterLabel = "kagimori store counter/1"

const (
	// counterTime bounds one use of the counter. A chip takes some 10 ms.
	counterTime = 30 * time.Second
	// settleEvery is how often ordinary changes try again to finish a key change,
	// when it was not only room that was missing. They wait for it, and a chip may
	// take long to fail: after a try comes a rest of settleRest times what it took.
	settleEvery = 10 * time.Second
	settleRest  = 9
)

// counter is what is known of the module's counter.
type counter struct {
	blob   hsm.Blob // nil: there is none
	value  uint64
	unsure bool // the last use failed: it may have counted
}

// todo are the steps of a key change that are left.
type todo struct {
	scrub, copy, count bool
	// again: an earlier try got no further. What it wrote may be in the kernel's
	// memory and, after an error of the disk, never have come further.
	again bool
	next  time.Time // when ordinary changes may try again
	err   error     // why the last try failed
}

func (t todo) any() bool { return t.scrub || t.copy || t.count }

// committed takes note of step 1.
func (s *Store) committed(tx *Tx) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.head = tx.head
	if tx.recount != nil {
		s.counter = *tx.recount
	}
	s.todo = todo{scrub: s.todo.scrub || tx.destroys, copy: true, count: s.counter.blob != nil}
	if tx.reslot != nil {
		s.slots = tx.reslot
	}
}

// Epoch counts the key changes.
func (s *Store) Epoch() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.head.Epoch
}

// Settle finishes what the last key change left unfinished. It is free when
// nothing was.
func (s *Store) Settle(ctx context.Context) error {
	s.writer.Lock()
	defer s.writer.Unlock()
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	return s.settle(ctx, true)
}

// settle does the steps that are left. Unless force is set it does not try again
// too soon after it failed, and returns that error. It needs writer.
func (s *Store) settle(ctx context.Context, force bool) error {
	s.mu.Lock()
	t := s.todo
	s.mu.Unlock()
	if !t.any() {
		return nil
	}
	if !force && t.err != nil && !errors.Is(t.err, ErrFull) && time.Now().Before(t.next) {
		return t.err
	}
	began := time.Now()
	t.err = s.steps(ctx, &t)
	now := time.Now()
	t.again, t.next = t.err != nil, now.Add(max(settleEvery, settleRest*now.Sub(began)))
	s.mu.Lock()
	s.todo = t
	s.mu.Unlock()
	return t.err
}

// steps does steps 2 to 4, and takes from t what is done.
func (s *Store) steps(ctx context.Context, t *todo) error {
	if t.scrub {
		if err := s.scrub(t.again); err != nil {
			return fmt.Errorf("destroy what was deleted: %w", err)
		}
		s.step("scrubbed")
	}
	if t.copy {
		if err := s.writeCopy(ctx, t.scrub); err != nil {
			return fmt.Errorf("second copy: %w", err)
		}
	}
	t.scrub, t.copy = false, false
	if t.count {
		if err := s.increment(ctx); err != nil {
			return fmt.Errorf("counter: %w", err)
		}
		s.step("counted")
	}
	t.count = false
	return nil
}

// behind says how far a counter that shows value is ahead of a file: 0 when its
// last key change is finished, -1 when only the counting is left.
func (h head) behind(value uint64) int64 { return int64(value - h.Epoch - h.Delta) }

// useCounter runs fn with the counter and what it is used with.
func (s *Store) useCounter(ctx context.Context, fn func(ctx context.Context, c hsm.Counters, key *hsm.Secret) error) error {
	derived, err := hkdf.Key(sha256.New, s.key.Bytes(), nil, counterLabel, hsm.CounterKeySize)
	if err != nil {
		return err
	}
	key := hsm.NewSecret(derived)
	defer key.Wipe()
	ctx, cancel := context.WithTimeout(ctx, counterTime)
	defer cancel()
	return fn(ctx, s.o.module, key)
}

// readCounter asks the counter.
func (s *Store) readCounter(ctx context.Context) (value uint64, err error) {
	s.mu.Lock()
	blob := s.counter.blob
	s.mu.Unlock()
	err = s.useCounter(ctx, func(ctx context.Context, c hsm.Counters, key *hsm.Secret) error {
		value, err = c.Count(ctx, blob, key)
		return err
	})
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counter.value, s.counter.unsure = value, false
	return value, nil
}

// increment counts up to the store's epoch. When an earlier try failed, it asks
// first whether that one counted.
func (s *Store) increment(ctx context.Context) error {
	s.mu.Lock()
	c, h := s.counter, s.head
	s.mu.Unlock()
	if c.unsure {
		value, err := s.readCounter(ctx)
		if err != nil {
			return err
		}
		if h.behind(value) == 0 {
			return nil
		}
		c.value = value
	}
	if n := h.behind(c.value); n != -1 {
		return fmt.Errorf("%w: it is %+d from this store", hsm.ErrCounter, n)
	}
	value := uint64(0)
	err := s.useCounter(ctx, func(ctx context.Context, m hsm.Counters, key *hsm.Secret) (err error) {
		value, err = m.Increment(ctx, c.blob, key)
		return err
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.counter.unsure = true
		return err
	}
	s.counter.value = value
	if n := h.behind(value); n != 0 {
		return fmt.Errorf("%w: it is %+d from this store", hsm.ErrCounter, n)
	}
	return nil
}

// makeCounter makes a counter. That there cannot be one is no error: then why
// says so in plain words.
func (s *Store) makeCounter(ctx context.Context) (c *counter, why string, err error) {
	err = s.useCounter(ctx, func(ctx context.Context, m hsm.Counters, key *hsm.Secret) (err error) {
		c = &counter{}
		if c.blob, err = m.NewCounter(ctx, key); err == nil {
			c.value, err = m.Count(ctx, c.blob, key)
		}
		return err
	})
	switch {
	case err == nil:
		return c, "", nil
	case errors.Is(err, hsm.ErrNoCounter), errors.Is(err, hsm.ErrOwnerAuth):
		return nil, err.Error(), nil
	}
	return nil, "", fmt.Errorf("make a counter: %w", err)
}

// useNewCounter has the transaction, a key change, begin with a new counter, or
// with none.
func (tx *Tx) useNewCounter(c *counter) error {
	if c.blob == nil {
		return tx.delete(bucketBlobs, counterBlob)
	}
	tx.head.Delta = c.value - tx.head.Epoch // it is one behind until the change is finished
	tx.recount = c
	return tx.putRaw(bucketBlobs, counterBlob, c.blob)
}

// keyBuckets are the names in keyed, sorted.
func (s *Store) keyBuckets() []string {
	names := make([]string, 0, len(s.keyed))
	for name := range s.keyed {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// step tells a test that a step is done.
func (s *Store) step(name string) {
	if s.o.cfg.step != nil {
		s.o.cfg.step(name)
	}
}
