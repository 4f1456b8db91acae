package keycopy

// That the simulator can fail: each of these is one mistake that a programmer
// could make, put around the disk; a run is looked for in which the property
// that is there for it does not hold.

import (
	"slices"
	"testing"

	"github.com/kagimori/kagimori/transport"
)

// A mutant changes one thing; the zero value nothing.
type mutant struct {
	// late: the write is acknowledged, and done after the next frame is sent.
	late func(what string) bool
	// inTwo: the phase and what it does to the keys are two writes.
	inTwo func(t *Transaction) bool
	// entry changes what is written.
	entry func(e *simEnd, t *Transaction, entry *simEntry)
	// find looks transactions up; nil: as it should be.
	find func(e *simEnd, id transport.ID) *Transaction
	// anyPhase: Advance does not look at the phase on record.
	anyPhase bool
	// activeAtStaged: what moves is in use as soon as it is there.
	activeAtStaged bool
	// keepCode: the operator code is copied, and the copy is not wiped.
	keepCode bool
	// errs: somebody says that the other end is dead, and it is not.
	errs bool
}

// half takes the keys out of entry if t is to be written in two.
func (m *mutant) half(t *Transaction, entry *simEntry) (second []simKey) {
	if m.inTwo == nil || !m.inTwo(t) {
		return nil
	}
	second, entry.Keys = entry.Keys, nil
	return second
}

func lateWrite(phase transport.KeycopyPhase) mutant {
	return mutant{late: func(what string) bool { return what == phase.String() }}
}

func changedEntry(phase transport.KeycopyPhase, change func(e *simEnd, entry *simEntry)) mutant {
	return mutant{entry: func(e *simEnd, t *Transaction, entry *simEntry) {
		if t.Phase == phase {
			change(e, entry)
		}
	}}
}

func TestSimMistakesAreFound(t *testing.T) {
	keys := func(use keyUse) func(*simEnd, *simEntry) {
		return func(_ *simEnd, entry *simEntry) {
			for i := range entry.Keys {
				if entry.Keys[i].Use = use; use == useNone {
					entry.Keys[i].Record = nil
				}
			}
		}
	}
	for _, m := range []struct {
		name, items, property string
		mutant                mutant
	}{
		{"RECEIPT before STAGED", "move", "receipt_true", lateWrite(transport.KeycopyStaged)},
		{"RECEIPT before STAGED", "copy", "receipt_true", lateWrite(transport.KeycopyStaged)},
		{"COMMIT before COMMITTED", "move", "one_active", lateWrite(transport.KeycopyCommitted)},
		{"CLOSE before DONE", "copy", "closed_true", lateWrite(transport.KeycopyDone)},
		{"CLOSE before DONE", "move", "closed_true", lateWrite(transport.KeycopyDone)},
		{"ITEM before OFFERED", "move", "offer_first", lateWrite(transport.KeycopyOffered)},
		{"ACTIVATED before ACTIVE", "move", "never_lost", lateWrite(transport.KeycopyActive)},
		{"verdict before it is counted", "copy", "count_first", mutant{late: func(what string) bool { return what == "count" }}},
		{"active at STAGED", "move", "one_active", mutant{activeAtStaged: true}},
		{"not disabled at COMMITTED", "move", "one_active", changedEntry(transport.KeycopyCommitted, keys(useActive))},
		{"destroyed at COMMITTED", "move", "never_lost", changedEntry(transport.KeycopyCommitted, keys(useNone))},
		{"not destroyed at DONE", "move", "one_active", changedEntry(transport.KeycopyDone, keys(useDisabled))},
		{"not in use at ACTIVE", "move", "never_lost", changedEntry(transport.KeycopyActive, keys(useStaged))},
		{"COMMITTED in two writes", "move", "one_active", mutant{inTwo: func(t *Transaction) bool { return t.Phase == transport.KeycopyCommitted }}},
		{"STAGED in two writes", "copy", "receipt_true", mutant{inTwo: func(t *Transaction) bool { return t.Phase == transport.KeycopyStaged }}},
		{"DONE in two writes", "move", "one_active", mutant{inTwo: func(t *Transaction) bool { return t.Phase == transport.KeycopyDone }}},
		{"a receipt takes effect twice", "move", "one_effect", mutant{anyPhase: true, find: oldest}},
		{"resumes with any record", "move", "finishes", mutant{find: anyRecord}},
		{"the code is kept", "copy", "code_gone", mutant{keepCode: true}},
		{"no resume key on record", "move", "finishes", mutant{entry: func(_ *simEnd, _ *Transaction, entry *simEntry) { entry.Txns[0].Resume = nil }}},
		{"an abandoned transaction is forgotten", "move", "finishes", changedEntry(transport.KeycopyAbandoned, func(_ *simEnd, entry *simEntry) { entry.Txns[0].Resume = nil })},
		{"a last resort while the other end lives", "move", "one_active", mutant{errs: true}},
	} {
		t.Run(m.name+"/"+m.items, func(t *testing.T) {
			t.Parallel()
			runs := 0
			s := script{mode: transport.KeycopyPAKE, items: m.items, seed: 4}
			for f1 := range someFaults(s) {
				runs++
				s.faults = f1
				w := newWorld(s, m.mutant)
				w.play()
				if slices.ContainsFunc(w.violations, func(v violation) bool { return v.property == m.property }) {
					t.Logf("found in run %d: %s", runs, s)
					return
				}
			}
			t.Errorf("%s does not notice in %d runs", m.property, runs)
		})
	}
}

// someFaults yields no fault, and then, at each operation, those faults that a
// mistake needs to show.
func someFaults(s script) func(yield func([]fault) bool) {
	return func(yield func([]fault) bool) {
		clean := newWorld(s, mutant{})
		clean.play()
		if !yield(nil) {
			return
		}
		for _, f := range []fault{{0, cutSource, tearAll}, {0, cutTarget, tearAll}, {0, dropLink, 0}, {0, abandon, 0}} {
			for f.at = 1; f.at <= clean.n; f.at++ {
				if !yield([]fault{f}) {
					return
				}
			}
		}
	}
}

// oldest is the record of id as it was first written: a Source that reads what it
// wrote first.
func oldest(e *simEnd, id transport.ID) *Transaction {
	if e == e.w.target {
		return e.store.txns[id]
	}
	for _, entry := range e.disk.entries() {
		for i := range entry.Txns {
			if entry.Txns[i].ID == id {
				return &entry.Txns[i]
			}
		}
	}
	return nil
}

// anyRecord is the first record there is.
func anyRecord(e *simEnd, _ transport.ID) *Transaction {
	if len(e.store.order) == 0 {
		return nil
	}
	return e.store.txns[e.store.order[0]]
}
