package keycopy

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"sync"

	"github.com/kagimori/kagimori/transport"
)

// ledger is the durable part of one end: attempts by the real rules, and the
// journal with the credentials. Each write can be made to fail: an attempt by
// its call, a phase by its name.
type ledger struct {
	mu      sync.Mutex
	log     AttemptLog
	counted int // calls of Count that were allowed
	typed   bool
	clock   Clock
	writes  []string
	failOn  string
	onWrite func(what string)
	refuse  map[transport.Name]string // items that Stage does not take
	reject  error                     // what Stage says to all

	deals    []*Transaction // each that was written, in order
	journal  map[transport.ID]*Transaction
	lent     []transport.Sensitive        // resume keys that Find gave out
	received []transport.CredentialRecord // stored by Stage, in use or not
	disabled map[transport.Name]bool      // held and not to be used
	gone     map[transport.Name]bool      // of the Source: destroyed
}

var _ Stager = (*ledger)(nil)

var errDisk = errors.New("disk is full")

func newLedger(clock Clock, typed bool) *ledger {
	return &ledger{clock: clock, typed: typed, journal: map[transport.ID]*Transaction{}, disabled: map[transport.Name]bool{}, gone: map[transport.Name]bool{}}
}

func (l *ledger) write(what string) error {
	l.mu.Lock()
	l.writes = append(l.writes, what)
	fail, hook := l.failOn == what, l.onWrite
	l.mu.Unlock()
	if hook != nil {
		hook(what)
	}
	if fail {
		return errDisk
	}
	return nil
}

func (l *ledger) Count(_ context.Context, code *OperatorCode) error {
	if err := l.write("count"); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var err error
	if l.typed {
		err = l.log.CountTyped(l.clock().Wall, code, rand.Reader)
	} else {
		err = l.log.Count(l.clock().Wall)
	}
	if err == nil {
		l.counted++
	}
	return err
}

func (l *ledger) Succeed(context.Context) error {
	if err := l.write("succeed"); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.log.Succeed()
	return nil
}

func (l *ledger) Find(_ context.Context, id transport.ID) (*Transaction, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	held, ok := l.journal[id]
	if !ok {
		return nil, ErrUnknownTransaction
	}
	t := deepCopy(held)
	l.lent = append(l.lent, t.Resume)
	return t, nil
}

// deepCopy is t as it comes back from a disk.
func deepCopy(t *Transaction) *Transaction {
	data, err := transport.Marshal(t)
	if err != nil {
		panic(err)
	}
	var out Transaction
	if err := transport.Unmarshal(data, &out, transport.MaxKeycopyGrant); err != nil {
		panic(err)
	}
	return &out
}

func (l *ledger) Advance(_ context.Context, t *Transaction, was transport.KeycopyPhase) error {
	if err := l.write(t.Phase.String()); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.advance(t, was)
}

func (l *ledger) advance(t *Transaction, was transport.KeycopyPhase) error {
	before := transport.KeycopyPhase(0)
	if held := l.journal[t.ID]; held != nil {
		before = held.Phase
	}
	if before != was {
		return ErrOtherPhase
	}
	l.journal[t.ID] = deepCopy(t)
	l.deals = append(l.deals, deepCopy(t).shown())
	if before == t.Phase {
		return nil
	}
	for id, other := range l.journal {
		if id != t.ID && other.Phase == t.Phase && (t.Phase == transport.KeycopyOffered || t.Phase == transport.KeycopyStarted) {
			ended, err := Abandon(other)
			if err != nil {
				return err
			}
			l.journal[id] = ended
		}
	}
	for _, id := range t.Moving() {
		switch t.Phase {
		case transport.KeycopyCommitted:
			l.disabled[id] = true
		case transport.KeycopyReclaimed, transport.KeycopyActive:
			delete(l.disabled, id)
		case transport.KeycopyDone:
			delete(l.disabled, id)
			l.gone[id] = true
		}
	}
	if t.Phase == transport.KeycopyDropped || t.Phase == transport.KeycopyUnreceipted {
		l.received = slices.DeleteFunc(l.received, func(r transport.CredentialRecord) bool {
			return l.disabled[r.ID] && slices.ContainsFunc(t.Items, func(e transport.KeycopyEntry) bool { return e.ID == r.ID })
		})
	}
	return nil
}

// Stage keeps copies, as a store does.
func (l *ledger) Stage(_ context.Context, t *Transaction, records []transport.CredentialRecord) (*Transaction, map[transport.Name]string, error) {
	if err := l.write("staged"); err != nil {
		return nil, nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reject != nil {
		return nil, nil, l.reject
	}
	staged := t.in(transport.KeycopyStaged)
	staged.Status = make([]byte, (len(t.Items)+7)/8)
	refused := map[transport.Name]string{}
	for n, r := range records {
		if why, no := l.refuse[r.ID]; no {
			refused[r.ID] = why
			continue
		}
		staged.Status[n/8] |= 1 << (n % 8)
	}
	if err := l.advance(staged, transport.KeycopyStarted); err != nil {
		return nil, nil, err
	}
	for n, r := range records {
		if _, no := refused[r.ID]; no {
			continue
		}
		r.Secret.Bytes = slices.Clone(r.Secret.Bytes)
		l.received = append(l.received, r)
		l.disabled[r.ID] = t.Items[n].Transfer == transport.TransferMove
	}
	return staged, refused, nil
}

// uses says whether the end with this ledger would use a credential that the
// Source of the copy held from the start.
func (l *ledger) uses(id transport.Name) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.typed {
		return !l.disabled[id] && slices.ContainsFunc(l.received, func(r transport.CredentialRecord) bool { return r.ID == id })
	}
	return !l.disabled[id] && !l.gone[id]
}

// last is the transaction that was written last.
func (l *ledger) last() *Transaction {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.deals[len(l.deals)-1]
}

// failures is how many attempts stand against this end.
func (l *ledger) failures() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.log.Failures)
}
