package keycopy

// One simulated terminal: its disk, and on it what the protocol asks of a
// terminal, as a Stager and as Attempts. What is in simEnd but not on the disk
// is lost with the power.

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/kagimori/kagimori/transport"
)

type simEnd struct {
	w    *world
	name string
	disk simDisk
	safe *simStore // what the disk says for certain
	dead bool      // for good

	// RAM.
	up      bool
	boots   int
	store   *simStore // what the program takes for written
	late    []*simEntry
	writing bool // between write and sync; what others want to write is waiting
	waiting []func()
	source  *Source
	target  *Target
	code    *simCode // in force here
}

// simCode is an operator code in the RAM of an end. excused: there is a good
// reason for it to be gone.
type simCode struct {
	digits  []byte
	excused bool
	of      int // the how-manieth code of the run
}

func (c *simCode) gone() bool { return bytes.Equal(c.digits, make([]byte, len(c.digits))) }

var (
	_ Stager   = (*simEnd)(nil)
	_ Attempts = (*simEnd)(nil)
)

// commit is one durable step: two operations, before each of which the power
// may fail. What make sees is what is on record when it is written.
func (e *simEnd) commit(what string, make func() (*simEntry, error)) error {
	if err := e.w.op(e, "write "+what); err != nil {
		return err
	}
	entry, err := make()
	if err != nil {
		return err
	}
	encoded := encodeEntry(entry)
	back, _, err := decodeEntry(encoded) // nothing in RAM is shared with the disk
	if err != nil {
		return err
	}
	if e.w.mutant.late != nil && e.w.mutant.late(what) {
		e.store.apply(back)
		e.late = append(e.late, back)
		return nil
	}
	return e.sync(what, encoded, back)
}

func (e *simEnd) sync(what string, encoded []byte, entry *simEntry) error {
	e.disk.append(encoded)
	e.writing = true
	err := e.w.op(e, "sync "+what)
	e.writing = false
	if err != nil {
		return err
	}
	e.disk.sync()
	e.store.apply(entry)
	e.safe.apply(entry)
	e.w.check("after " + e.name + " " + what)
	for len(e.waiting) > 0 {
		next := e.waiting[0]
		e.waiting = e.waiting[1:]
		next()
	}
	return nil
}

// flush writes what a mutant held back.
func (e *simEnd) flush() {
	for len(e.late) > 0 {
		entry := e.late[0]
		e.late = e.late[1:]
		if e.w.op(e, "write late") != nil || e.sync("late", encodeEntry(entry), entry) != nil {
			return
		}
	}
}

func (e *simEnd) Find(_ context.Context, id transport.ID) (*Transaction, error) {
	t := e.store.txns[id]
	if e.w.mutant.find != nil {
		t = e.w.mutant.find(e, id)
	}
	if t == nil {
		return nil, ErrUnknownTransaction
	}
	c := *t
	c.Resume = slices.Clone(t.Resume)
	return &c, nil
}

func (e *simEnd) Advance(_ context.Context, t *Transaction, was transport.KeycopyPhase) error {
	second := []simKey{}
	err := e.commit(t.Phase.String(), func() (*simEntry, error) {
		var now transport.KeycopyPhase
		if on := e.store.txns[t.ID]; on != nil {
			now = on.Phase
		}
		if now != was && !e.w.mutant.anyPhase {
			return nil, ErrOtherPhase
		}
		entry := e.step(t)
		if e.w.mutant.entry != nil {
			e.w.mutant.entry(e, t, entry)
		}
		second = e.w.mutant.half(t, entry)
		return entry, nil
	})
	return e.secondHalf(second, err)
}

// secondHalf is what a mutant writes apart from the rest.
func (e *simEnd) secondHalf(keys []simKey, err error) error {
	if err != nil || len(keys) == 0 {
		return err
	}
	return e.commit("second half", func() (*simEntry, error) { return &simEntry{Keys: keys}, nil })
}

// step is what t's phase means for other transactions and for the keys.
func (e *simEnd) step(t *Transaction) *simEntry {
	entry := &simEntry{Txns: []Transaction{*t}}
	if on := e.store.txns[t.ID]; on != nil && on.Phase == t.Phase {
		return entry
	}
	switch t.Phase {
	case transport.KeycopyOffered:
		e.endOthers(entry, t, transport.KeycopyAbandoned)
	case transport.KeycopyStarted:
		e.endOthers(entry, t, transport.KeycopyDropped)
	case transport.KeycopyCommitted:
		e.turn(entry, t.Moving(), useDisabled)
	case transport.KeycopyReclaimed:
		e.turn(entry, t.Moving(), useActive)
	case transport.KeycopyDone:
		e.turn(entry, t.Moving(), useNone)
	case transport.KeycopyActive:
		e.turn(entry, e.stagedBy(t), useActive)
	case transport.KeycopyDropped, transport.KeycopyUnreceipted:
		e.turn(entry, e.stagedBy(t), useNone)
	}
	return entry
}

// endOthers ends the transactions in t's phase that are not t.
func (e *simEnd) endOthers(entry *simEntry, t *Transaction, as transport.KeycopyPhase) {
	for _, id := range e.store.order {
		if o := e.store.txns[id]; o.Phase == t.Phase && id != t.ID {
			o = o.in(as)
			if as == transport.KeycopyDropped {
				o.Resume = nil
			}
			entry.Txns = append(entry.Txns, *o)
		}
	}
}

func (e *simEnd) turn(entry *simEntry, ids []transport.Name, to keyUse) {
	for _, id := range ids {
		k := e.store.keys[id]
		k.ID, k.Use = id, to
		if to == useNone {
			k.Record = nil
		}
		entry.Keys = append(entry.Keys, k)
	}
}

func (e *simEnd) stagedBy(t *Transaction) (ids []transport.Name) {
	for _, entry := range t.Items {
		if k := e.store.keys[entry.ID]; k.Use == useStaged && k.Txn == t.ID {
			ids = append(ids, entry.ID)
		}
	}
	return ids
}

// refusedKind is a kind that simulated Targets have no use for.
const refusedKind = transport.KindLogin

func (e *simEnd) Stage(_ context.Context, t *Transaction, records []transport.CredentialRecord) (*Transaction, map[transport.Name]string, error) {
	staged := t.in(transport.KeycopyStaged)
	staged.Status = make([]byte, (len(t.Items)+7)/8)
	refused := map[transport.Name]string{}
	var keys, second []simKey
	for n := range records {
		r := &records[n]
		if r.ID != t.Items[n].ID {
			e.w.violate("Stage got %s for %s", r.ID, t.Items[n].ID)
		}
		if r.Kind == refusedKind {
			refused[r.ID] = "this terminal has no use for it"
			continue
		}
		record, err := transport.Marshal(r)
		if err != nil {
			return nil, nil, fmt.Errorf("encode record: %w", err)
		}
		staged.Status[n/8] |= 1 << (n % 8)
		use := useActive
		if t.Items[n].Transfer == transport.TransferMove && !e.w.mutant.activeAtStaged {
			use = useStaged
		}
		keys = append(keys, simKey{r.ID, use, t.ID, record})
	}
	WipeRecords(records)
	err := e.commit("staged", func() (*simEntry, error) {
		if on := e.store.txns[t.ID]; on == nil || on.Phase != transport.KeycopyStarted {
			return nil, ErrOtherPhase
		}
		entry := &simEntry{Txns: []Transaction{*staged}, Keys: keys}
		second = e.w.mutant.half(staged, entry)
		return entry, nil
	})
	if err = e.secondHalf(second, err); err != nil {
		return nil, nil, err
	}
	return staged, refused, nil
}

func (e *simEnd) Count(_ context.Context, typed *OperatorCode) error {
	return e.commit("count", func() (entry *simEntry, err error) {
		log := cloneLog(e.store.log)
		if now := e.w.now.Wall; typed != nil {
			err = log.CountTyped(now, typed, e.w.rng)
		} else {
			err = log.Count(now)
		}
		return &simEntry{Attempts: &log, Counted: e.store.counted + 1}, err
	})
}

func (e *simEnd) Succeed(context.Context) error {
	return e.commit("succeed", func() (*simEntry, error) {
		log := cloneLog(e.store.log)
		log.Succeed()
		return &simEntry{Attempts: &log, Counted: e.store.counted}, nil
	})
}

// records are the credentials that this end may use.
func (e *simEnd) records() (all []transport.CredentialRecord) {
	for _, id := range e.w.items {
		k, ok := e.store.keys[id]
		if !ok || k.Use == useNone || k.Use == useStaged {
			continue
		}
		var r transport.CredentialRecord
		if err := transport.Unmarshal(k.Record, &r, transport.MaxKeycopyRecord); err != nil {
			e.w.violate("%s: record of %s: %v", e.name, id, err)
			continue
		}
		if k.Use != useActive {
			r.State = transport.CredentialInvalid
		}
		all = append(all, r)
	}
	return all
}

// boot starts the program on what the disk has.
func (e *simEnd) boot() {
	store, err := e.disk.open()
	if err != nil {
		e.w.violate("%s: %v", e.name, err)
		store = newStore()
	}
	e.store, e.safe = store, store.clone()
	e.up, e.late = true, nil
	e.boots++
	e.w.check("after the boot of " + e.name)
}

// cut takes the power away.
func (e *simEnd) cut(keep tear) {
	e.disk.cut(keep)
	e.up, e.late, e.writing, e.waiting = false, nil, false, nil
	e.forget()
	e.source, e.target = nil, nil
	e.w.unplug(e)
	if store, err := e.disk.open(); err == nil {
		e.safe = store
	}
}

// forget is what happens to a code in RAM when the power fails.
func (e *simEnd) forget() {
	if e.code != nil {
		e.code.excused = true
		clear(e.code.digits)
	}
}
