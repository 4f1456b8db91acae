package keycopy

// The last resorts: what a person, or time, makes of a transaction whose other
// end does not come back. Each gives the transaction to hand to
// Journal.Advance, with the phase of the one given.

import (
	"fmt"

	"github.com/kagimori/kagimori/transport"
)

// Reclaim takes back, at the Source, what moved: the Target is gone for good.
// Should it not be, both will use the keys; see Transaction.Conflict.
func Reclaim(t *Transaction) (*Transaction, error) {
	if t.Phase != transport.KeycopyCommitted {
		return nil, unfit("taken back", t)
	}
	after := t.in(transport.KeycopyReclaimed)
	after.Forced = true
	return after, nil
}

// Activate puts to use, at the Target, what is staged: the Source is gone for
// good. Should it not be, it gives its keys up when the two meet.
func Activate(t *Transaction) (*Transaction, error) {
	if t.Phase != transport.KeycopyStaged || !t.moves() {
		return nil, unfit("activated", t)
	}
	after := t.in(transport.KeycopyActive)
	after.Forced = true
	return after, nil
}

// Abandon ends what has not come to a receipt at the Source, and anything that
// is open at the Target. What is in use there stays in use; what is staged is
// destroyed, and then the Source has to take it back.
func Abandon(t *Transaction) (*Transaction, error) {
	switch t.Phase {
	case transport.KeycopyOffered:
		return t.in(transport.KeycopyAbandoned), nil
	case transport.KeycopyStarted, transport.KeycopyStaged, transport.KeycopyActive:
		return t.ended(), nil
	}
	return nil, unfit("abandoned", t)
}

// Forget deletes the resume key of a transaction that has ended: the other end
// has not come to ask for as long as anybody waits.
func Forget(t *Transaction) (*Transaction, error) {
	if t.Phase.Open() {
		return nil, unfit("forgotten", t)
	}
	after := *t
	after.Resume = nil
	return &after, nil
}

// conflicting is t once it is known that both ends use what moved.
func (t *Transaction) conflicting() *Transaction {
	if t.Conflict {
		return t
	}
	after := *t
	after.Conflict = true
	return &after
}

// ended is what a Target makes of a transaction that the Source has ended, or
// that is to end here: it keeps what it uses.
func (t *Transaction) ended() *Transaction {
	after := t.in(transport.KeycopyUnreceipted)
	after.Resume = nil
	switch t.Phase {
	case transport.KeycopyStarted:
		after.Phase = transport.KeycopyDropped
	case transport.KeycopyStaged:
		after.Status = append([]byte(nil), t.Status...)
		for n, e := range t.Items {
			if e.Transfer == transport.TransferMove && n/8 < len(after.Status) {
				after.Status[n/8] &^= 1 << (n % 8)
			}
		}
		if len(after.Taken()) == 0 {
			after.Phase = transport.KeycopyDropped
		}
	}
	return after
}

func unfit(what string, t *Transaction) error {
	return fmt.Errorf("%w: one that is %s at the %s cannot be %s", ErrOtherPhase, t.Phase, t.Side, what)
}
