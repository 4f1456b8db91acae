package store

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/kagimori/kagimori/hsm"
)

// What Open still does once it has the file: finish the last key change, and bring
// the store to where the program and the configuration want it. All of that is one
// key change, and usually there is none.

// A plan is what Open has to change.
type plan struct {
	steps   []migration // due from schema on
	schema  int
	counter *counter
	slot    *slotRecord
	keys    []string // buckets that become key buckets
	loss    string
}

func (p *plan) empty() bool {
	return p.steps == nil && p.counter == nil && p.slot == nil && p.keys == nil && p.loss == ""
}

func (s *Store) arrange(ctx context.Context) error {
	s.writer.Lock()
	defer s.writer.Unlock()
	if !s.todo.any() && s.schema != schemaFirst && !s.copyIsCurrent() {
		s.todo = todo{copy: true, scrub: s.counter.blob == nil, again: true}
	}
	p, err := s.plan(ctx)
	if err != nil {
		return err
	}
	err = s.settle(ctx, true)
	if !p.empty() {
		if err == nil && p.schema == schemaFirst {
			err = s.resealFirst(p.keys)
		}
		if err == nil {
			_, err = s.change(p.apply, nil)
		}
		if err != nil {
			if p.counter != nil {
				s.dropCounter(ctx, p.counter)
			}
			return err
		}
		if p.steps != nil {
			s.log.InfoContext(ctx, "store migrated", "path", s.path, "from", s.schema, "to", len(s.o.steps)+1)
		}
		err = s.settle(ctx, true)
	}
	if err != nil {
		s.log.ErrorContext(ctx, "key change is not finished", "path", s.path, "epoch", s.head.Epoch, "err", err)
	}
	return s.failure()
}

// copyIsCurrent says whether the second copy is of the last key change.
func (s *Store) copyIsCurrent() bool {
	h, err := s.copyHead()
	return err == nil && h.Epoch == s.head.Epoch && h.Incarnation == s.head.Incarnation && slices.Equal(h.Digest, s.head.Digest)
}

// plan finds out what to change. It uses key storage for that, and changes nothing
// in the file yet.
func (s *Store) plan(ctx context.Context) (*plan, error) {
	p := &plan{schema: s.schema}
	if s.schema <= len(s.o.steps) {
		p.steps = s.o.steps
	}
	for _, name := range s.o.cfg.Keys {
		if !s.keyed[name] {
			p.keys = append(p.keys, name)
		}
	}
	var err error
	if p.slot, err = s.bond(ctx); err != nil {
		return nil, err
	}
	if s.weaker != nil {
		s.log.WarnContext(ctx, "the store key is not bound as the configuration wants it", "err", s.weaker)
	}
	if s.counter.blob != nil {
		return p, nil
	}
	c, why, err := s.makeCounter(ctx)
	if err != nil { // the next start tries again
		why = err.Error()
	}
	if c == nil {
		s.log.WarnContext(ctx, "the store is not protected against being put back to an older state", "why", why)
		s.unprotected = why
	}
	p.counter = c
	if s.lostCounter {
		p.loss = "whether the file was the newest: the counter that knew is gone"
	}
	return p, nil
}

// apply makes the changes.
func (p *plan) apply(tx *Tx) error {
	tx.key = true
	tx.s.setKeyed(p.keys)
	if p.steps != nil {
		if err := tx.migrate(p.schema, p.steps); err != nil {
			return err
		}
	}
	if p.schema != schemaFirst { // whose migration has sealed everything as it should be
		for _, name := range p.keys {
			if _, err := tx.reseal(name, versionShared, nil, maxSize); err != nil {
				return err
			}
		}
	}
	if p.counter != nil {
		if err := tx.useNewCounter(p.counter); err != nil {
			return err
		}
	}
	if p.loss != "" {
		tx.head.Incarnation++
		tx.head.Loss = &loss{At: time.Now().Unix(), Lost: p.loss, Way: WayRecovered}
		if p.counter == nil { // what the old one says means nothing here
			if err := tx.delete(bucketBlobs, counterBlob); err != nil {
				return err
			}
		}
	}
	if p.slot == nil {
		return nil
	}
	list, err := tx.slots()
	if err != nil {
		return err
	}
	return tx.useSlot(p.slot, list)
}

// State says how the store stands.
func (s *Store) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := State{
		Epoch: s.head.Epoch, Incarnation: s.head.Incarnation, Fallback: s.head.Loss.public(),
		Bond: bondOf(s.o.module.Level(), s.slots), NotMeasured: errors.Is(s.weaker, hsm.ErrNotMeasured),
		CopyFresh: !s.todo.copy, Unprotected: s.unprotected,
	}
	if s.weaker != nil {
		st.Weaker = s.weaker.Error()
	}
	if s.counter.blob != nil {
		value := s.counter.value - s.head.Delta
		st.Counter, st.Unprotected = &value, ""
		st.RollbackProof = s.o.module.RollbackProof()
		if !st.RollbackProof {
			st.Unprotected = "whoever can write to the disk can turn the counter back, too"
		}
	}
	if s.todo.err != nil {
		st.Unfinished = s.todo.err.Error()
	}
	for _, r := range s.slots {
		st.Slots = append(st.Slots, r.public())
	}
	return st
}

// ClearFallback forgets State.Fallback, once everybody knows of the loss. The
// incarnation stays.
func (s *Store) ClearFallback() error {
	return s.Update(func(tx *Tx) error {
		if tx.head.Loss == nil {
			return nil
		}
		tx.key, tx.head.Loss = true, nil
		return nil
	})
}
