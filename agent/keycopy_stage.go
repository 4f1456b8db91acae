package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

// What a Target does with the records that have come (keycopy.Stager).

// A stager is the journal of the new terminal's end.
type stager struct {
	journal
	party *party
}

var _ keycopy.Stager = stager{}

// Stage checks the records and takes those that this terminal can use, in one
// transaction: what is copied for use at once, what moves for when the old
// terminal has given it up.
func (s stager) Stage(ctx context.Context, t *keycopy.Transaction, records []transport.CredentialRecord) (*keycopy.Transaction, map[transport.Name]string, error) {
	defer keycopy.WipeRecords(records)
	reasons := map[transport.Name]string{}
	for i := range records {
		switch err := s.party.check(ctx, &records[i]); {
		case err == nil:
		case isUnsuited(err):
			reasons[records[i].ID] = err.Error()
		default: // it is not what it says
			return nil, nil, fmt.Errorf("%w: credential %s: %w", transport.KeycopyManifestRejected, records[i].ID, err)
		}
	}
	var staged *keycopy.Transaction
	err := s.vault.update(func(tx *store.Tx) (err error) {
		staged, err = s.take(tx, t, records, reasons)
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("key copy %s, stage: %w", short(t.ID), err)
	}
	return staged, reasons, s.finished(ctx)
}

// take is Stage in a transaction.
func (s stager) take(tx *store.Tx, t *keycopy.Transaction, records []transport.CredentialRecord, reasons map[transport.Name]string) (*keycopy.Transaction, error) {
	place := make(map[transport.Name]int, len(t.Items))
	for n, e := range t.Items {
		place[e.ID] = n
	}
	staged := *t
	staged.Phase, staged.Status = transport.KeycopyStaged, make([]byte, (len(t.Items)+7)/8)
	for i := range records {
		n, announced := place[records[i].ID]
		switch {
		case !announced:
			return nil, fmt.Errorf("%w: credential %s was not announced", transport.KeycopyManifestRejected, records[i].ID)
		case reasons[records[i].ID] != "":
			continue
		}
		h := s.holding(t, &records[i], t.Items[n].Transfer)
		why, err := unwanted(tx, h, s.vault.clock)
		switch {
		case err != nil:
			return nil, err
		case why != "":
			reasons[h.Record.ID] = why
			continue
		case h.Origin == OriginMove:
			err = tx.Put(bucketStaged, stagedKey(t.ID, h.Record.ID), h)
		default:
			err = holdCopy(tx, h, s.vault.clock)
		}
		if err != nil {
			return nil, err
		}
		staged.Status[n/8] |= 1 << (n % 8)
	}
	if len(staged.Taken()) == 0 {
		return nil, errNothingTaken(reasons)
	}
	return &staged, s.step(tx, &staged, t.Phase, refusedItems(t, reasons))
}

// holding is a record that came, as this terminal holds it.
func (s stager) holding(t *keycopy.Transaction, r *transport.CredentialRecord, transfer transport.Transfer) *holdingRecord {
	txn := t.ID
	h := &holdingRecord{Record: *r, Origin: OriginCopy, Since: s.vault.clock.Stamp(), Source: t.Peer, SourceName: t.Name, Txn: &txn}
	if transfer == transport.TransferMove {
		h.Origin = OriginMove
	}
	return h
}

// refusedItems lists reasons in the order of the items, as they are kept.
func refusedItems(t *keycopy.Transaction, reasons map[transport.Name]string) []refusedItem {
	list := []refusedItem{}
	for _, e := range t.Items {
		if why := reasons[e.ID]; why != "" && len(list) < itemsKept {
			list = append(list, refusedItem{ID: e.ID, Why: shorten(why, maxReason)})
		}
	}
	return list
}

// unsuited is a record that is in order, and of no use on this terminal.
type unsuited string

func (u unsuited) Error() string { return string(u) }

func isUnsuited(err error) bool {
	_, ok := errors.AsType[unsuited](err)
	return ok
}

// maxTold is how many reasons an error names.
const maxTold = 8

func errNothingTaken(reasons map[transport.Name]string) error {
	var list []string
	for id, why := range reasons {
		if len(list) == maxTold {
			list = append(list, "and more")
			break
		}
		list = append(list, fmt.Sprintf("%s: %s", id, why))
	}
	return fmt.Errorf("%w: %s", transport.KeycopyManifestRejected, strings.Join(list, "; "))
}
