package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

// The journal of key copies on this terminal's store (keycopy.Journal): each step
// is one transaction, with what it does to the keys, its entry in the audit log
// and its report to the server.
//
// A step is done when its key change is finished, and not before: as long as key
// storage has not counted it, the file of before would open again, with keys that
// the other end is about to believe gone. So nothing is found or given, and
// nothing said to the other end, while one is unfinished.

// journal keeps the transactions of this terminal.
type journal struct {
	vault *vault
	// remote, if set, is where the other end was found now; note says in the audit
	// log why a step is made that no message of the other end has brought.
	remote, note string
}

var _ keycopy.Journal = journal{}

// Find looks up what can be resumed. What is over has no resume key any more, and
// cannot be told from what never was.
func (j journal) Find(ctx context.Context, id transport.ID) (*keycopy.Transaction, error) {
	if err := j.finished(ctx); err != nil {
		return nil, err
	}
	var d *dealRecord
	err := j.vault.store.View(func(tx *store.Tx) (err error) {
		d, err = openDeal(tx, id)
		return err
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("find key copy %s: %w", short(id), err)
	case d == nil:
		return nil, fmt.Errorf("key copy %s: %w", short(id), keycopy.ErrUnknownTransaction)
	}
	return &d.Deal, nil
}

// Advance makes one step.
func (j journal) Advance(ctx context.Context, t *keycopy.Transaction, was transport.KeycopyPhase) error {
	if err := j.vault.update(func(tx *store.Tx) error { return j.step(tx, t, was, nil) }); err != nil {
		return fmt.Errorf("key copy %s, %s: %w", short(t.ID), t.Phase, err)
	}
	if t.Phase == transport.KeycopyCommitted && was != t.Phase {
		j.vault.relisted() // before the other terminal hears that it may use them
	}
	return j.finished(ctx)
}

// finished waits for what the last key change needs besides the file.
func (j journal) finished(ctx context.Context) error {
	if err := j.vault.store.Settle(ctx); err != nil {
		return fmt.Errorf("%w (%w)", store.ErrUnfinished, err)
	}
	return nil
}

// step is Advance in a transaction. refused is kept with KeycopyStaged.
func (j journal) step(tx *store.Tx, t *keycopy.Transaction, was transport.KeycopyPhase, refused []refusedItem) error {
	d, err := j.begin(tx, t, was)
	defer d.wipe()
	if err != nil {
		return err
	}
	clash := t.Conflict && !d.Deal.Conflict
	d.Deal = *t
	if j.remote != "" {
		d.Deal.Remote = j.remote
	}
	if was != t.Phase { // else only the resume key goes, or it is known that both use the keys
		d.Changed = j.vault.clock.Stamp()
		if d.Ended = 0; !t.Phase.Open() {
			d.Ended = j.vault.clock.Steady().Unix()
		}
		if refused != nil {
			d.Refused = refused
		}
		if err := errors.Join(j.keys(tx, d), j.others(tx, t), reportLater(tx, t), j.log(tx, d)); err != nil {
			return err
		}
	}
	if clash {
		if err := j.vault.audit(tx, audit.CopyConflict, peerText(t.Name, &t.Peer, t.Remote), "%s: %s", short(t.ID), listed(t.Moving())); err != nil {
			return err
		}
	}
	if len(t.Resume) == 0 || !resumable(t.Phase) {
		return retire(tx, d)
	}
	return tx.Put(bucketTransactions, dealKey(t.ID), d)
}

// begin finds what is to be changed, if it is in the phase that it should be in.
func (j journal) begin(tx *store.Tx, t *keycopy.Transaction, was transport.KeycopyPhase) (*dealRecord, error) {
	d, err := findDeal(tx, t.ID)
	switch {
	case err != nil:
		return d, err
	case was == 0 && d == nil:
		return &dealRecord{Opened: j.vault.clock.Steady().Unix()}, nil
	case d == nil:
		return nil, keycopy.ErrUnknownTransaction
	case was == 0 || d.Deal.Phase != was || d.Deal.Side != t.Side || len(d.Deal.Resume) == 0:
		return d, fmt.Errorf("%w (%s)", keycopy.ErrOtherPhase, d.Deal.Phase)
	}
	return d, nil
}

// resumable says whether the other end may still have to hear of a transaction in
// this phase. A Target's that is over is nobody's business but its own.
func resumable(p transport.KeycopyPhase) bool {
	switch p {
	case transport.KeycopyClosed, transport.KeycopyUnreceipted, transport.KeycopyDropped:
		return false
	}
	return true
}

// others ends what a new transaction takes the place of.
func (j journal) others(tx *store.Tx, t *keycopy.Transaction) error {
	var ended transport.KeycopyPhase
	switch t.Phase {
	case transport.KeycopyOffered:
		ended = transport.KeycopyAbandoned
	case transport.KeycopyStarted:
		ended = transport.KeycopyDropped
	default:
		return nil
	}
	var earlier []keycopy.Transaction
	err := eachOpen(tx, func(d *dealRecord) error {
		if d.Deal.Phase == t.Phase && d.Deal.ID != t.ID {
			over := d.Deal
			over.Phase, over.Resume = ended, append(transport.Sensitive(nil), d.Deal.Resume...)
			earlier = append(earlier, over)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i := range earlier {
		err = errors.Join(err, journal{vault: j.vault, note: "another took its place"}.step(tx, &earlier[i], t.Phase, nil))
		earlier[i].Resume.Wipe()
	}
	return err
}

// log writes what a step means into the audit log.
func (j journal) log(tx *store.Tx, d *dealRecord) error {
	t := &d.Deal
	kind, ids := audit.Kind(""), t.Taken()
	switch t.Phase {
	case transport.KeycopyOffered:
		kind, ids = audit.CopyGiven, offeredIDs(t)
	case transport.KeycopyCommitted:
		kind = audit.CopyCommitted
	case transport.KeycopyDone:
		if kind = audit.CopyDone; d.Deal.Side == transport.KeycopySource && !d.moves() {
			kind = audit.CopyDelivered
		}
	case transport.KeycopyReclaimed:
		kind, ids = audit.CopyReclaimed, t.Moving()
	case transport.KeycopyAbandoned:
		kind, ids = audit.CopyAbandoned, offeredIDs(t)
	case transport.KeycopyStaged:
		kind = audit.CopyReceived
	case transport.KeycopyActive:
		kind, ids = audit.CopyActivated, t.Moving()
	case transport.KeycopyClosed:
		kind = audit.CopyDone
	case transport.KeycopyUnreceipted:
		kind = audit.CopyAbandoned
	case transport.KeycopyDropped:
		if kind = audit.CopyDropped; len(ids) == 0 {
			ids = offeredIDs(t)
		}
	default: // STARTED: nothing has come yet
		return nil
	}
	detail := short(t.ID)
	if j.note != "" {
		detail += ", " + j.note
	}
	return j.vault.audit(tx, kind, peerText(t.Name, &t.Peer, t.Remote), "%s: %s", detail, listed(ids))
}

func offeredIDs(t *keycopy.Transaction) []transport.Name {
	ids := make([]transport.Name, len(t.Items))
	for i, e := range t.Items {
		ids[i] = e.ID
	}
	return ids
}
