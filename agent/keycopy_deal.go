package agent

import (
	"errors"
	"fmt"

	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

// What this terminal has on record of key copies: the transactions that are open,
// or that the other end may still ask for, and the last of those that are over.
// keycopy_journal.go writes it.

const (
	// bucketTransactions has what can still be resumed, with its resume key. It is
	// a key bucket: who owns a key must not go back to what it was by putting an
	// older file in place, and a resume key is gone once it is deleted.
	bucketTransactions = "transactions"        // transaction id → dealRecord
	bucketClosed       = "transactions-closed" // queue of dealRecord, without keys
	bucketStaged       = "staged"              // transaction id, "/", credential id → holdingRecord
	bucketReports      = "reports"             // transaction id → reportRecord

	// bucketCopies is what there was before there were transactions.
	bucketCopies = "copies" // queue of copyRecord
)

// Bounds of what is remembered.
const (
	// dealsKept is how many transactions that are over are remembered; of all but
	// the newest largeKept, and of those that the server knows, at most itemsKept
	// items and reasons.
	dealsKept = 64
	largeKept = 8
	itemsKept = 256
	// maxReason bounds why an item was refused, in bytes.
	maxReason = 160
)

// dealRecord is one transaction, and what this terminal knows of it besides.
type dealRecord struct {
	Deal    keycopy.Transaction `cbor:"1,keyasint"`
	Changed int64               `cbor:"2,keyasint"` // when it came to its phase, Unix seconds by Clock.Stamp
	// Opened is when it was opened here, and Ended when it came to a phase that is
	// not open: Unix seconds by Clock.Steady; 0: not yet.
	Opened int64 `cbor:"3,keyasint"`
	Ended  int64 `cbor:"4,keyasint"`
	// Refused says why items were not taken; of the first itemsKept of these.
	Refused []refusedItem `cbor:"5,keyasint"`
	// Counts are of the whole transaction, once Deal has only some of its items.
	Counts *dealCounts `cbor:"6,keyasint,omitempty"`
}

type refusedItem struct {
	ID  transport.Name `cbor:"1,keyasint"`
	Why string         `cbor:"2,keyasint"`
}

type dealCounts struct {
	Items uint32 `cbor:"1,keyasint"`
	Taken uint32 `cbor:"2,keyasint"`
	Moved uint32 `cbor:"3,keyasint"` // of Taken
}

func (d *dealRecord) wipe() {
	if d != nil {
		d.Deal.Resume.Wipe()
	}
}

// counts is how many keys it is about.
func (d *dealRecord) counts() dealCounts {
	if d.Counts != nil {
		return *d.Counts
	}
	t := &d.Deal
	return dealCounts{Items: uint32(len(t.Items)), Taken: uint32(len(t.Taken())), Moved: uint32(len(t.Moving()))}
}

// moves says whether it is about taking keys away from the Source, as far as is
// known in its phase.
func (d *dealRecord) moves() bool {
	if d.Counts != nil {
		return d.Counts.Moved > 0
	}
	t := &d.Deal
	if len(t.Taken()) > 0 {
		return len(t.Moving()) > 0
	}
	for _, e := range t.Items {
		if e.Transfer == transport.TransferMove {
			return true
		}
	}
	return false
}

// trim drops all items but the first, which is what people and the server still
// want to see.
func (d *dealRecord) trim() (changed bool) {
	t := &d.Deal
	if len(t.Items) <= itemsKept {
		return false
	}
	c := d.counts()
	d.Counts = &c
	t.Items = t.Items[:itemsKept]
	t.Status = t.Status[:min(len(t.Status), itemsKept/8)]
	return true
}

// dealKey is where a transaction is.
func dealKey(id transport.ID) string { return id.String() }

// openDeal looks up a transaction that can be resumed; nil if there is none. The
// caller wipes it.
func openDeal(tx *store.Tx, id transport.ID) (*dealRecord, error) {
	var d dealRecord
	found, err := tx.Get(bucketTransactions, dealKey(id), &d)
	if err != nil || !found {
		return nil, err
	}
	return &d, nil
}

// eachOpen calls fn for all that can be resumed, and wipes them afterwards.
func eachOpen(tx *store.Tx, fn func(*dealRecord) error) error {
	return eachIn(tx, bucketTransactions, func(_ string, d *dealRecord) error { return fn(d) })
}

// eachDeal calls fn for all that is on record: first those that are over, the
// oldest first.
func eachDeal(tx *store.Tx, fn func(*dealRecord) error) error {
	one := func(_ string, d *dealRecord) error { return fn(d) }
	if err := eachIn(tx, bucketClosed, one); err != nil {
		return err
	}
	return eachIn(tx, bucketTransactions, one)
}

func eachIn(tx *store.Tx, bucket string, fn func(key string, d *dealRecord) error) error {
	return tx.Each(bucket, func(key string, decode func(any) error) error {
		var d dealRecord
		defer d.wipe()
		if err := decode(&d); err != nil {
			return err
		}
		return fn(key, &d)
	})
}

// findDeal looks a transaction up wherever it is; nil if it is nowhere.
func findDeal(tx *store.Tx, id transport.ID) (found *dealRecord, err error) {
	if found, err = openDeal(tx, id); found != nil || err != nil {
		return found, err
	}
	err = eachIn(tx, bucketClosed, func(_ string, d *dealRecord) error {
		if d.Deal.ID != id {
			return nil
		}
		held := *d
		found = &held
		return store.ErrStop
	})
	return found, err
}

// retire puts a transaction that nobody resumes any more to those that are over.
func retire(tx *store.Tx, d *dealRecord) error {
	over := *d
	over.Deal.Resume, over.Deal.Parent = nil, nil
	if err := tx.Delete(bucketTransactions, dealKey(d.Deal.ID)); err != nil {
		return err
	}
	if _, err := tx.Append(bucketClosed, &over); err != nil {
		return err
	}
	return prune(tx)
}

// prune keeps the bounds of what is remembered.
func prune(tx *store.Tx) error {
	type closed struct {
		key   string
		id    transport.ID
		large bool
	}
	var list []closed
	err := eachIn(tx, bucketClosed, func(key string, d *dealRecord) error {
		list = append(list, closed{key, d.Deal.ID, len(d.Deal.Items) > itemsKept})
		return nil
	})
	if err != nil {
		return err
	}
	for ; len(list) > dealsKept; list = list[1:] {
		if err := errors.Join(tx.Delete(bucketClosed, list[0].key), tx.Delete(bucketReports, dealKey(list[0].id))); err != nil {
			return err
		}
	}
	for n, c := range list {
		if !c.large {
			continue
		}
		reported, err := isReported(tx, c.id)
		if err != nil {
			return err
		}
		if n >= len(list)-largeKept && !reported {
			continue
		}
		var d dealRecord
		if _, err := tx.Get(bucketClosed, c.key, &d); err != nil {
			return err
		}
		if d.trim() {
			if err := tx.Put(bucketClosed, c.key, &d); err != nil {
				return err
			}
		}
	}
	return nil
}

// copyRecord is a copy as it was kept before there were transactions.
type copyRecord struct {
	Role   role               `cbor:"1,keyasint"`
	Txn    transport.ID       `cbor:"2,keyasint"`
	Peer   transport.DeviceID `cbor:"3,keyasint"`
	Name   transport.Name     `cbor:"4,keyasint"`
	Remote string             `cbor:"5,keyasint"`
	Time   int64              `cbor:"6,keyasint"`
	Items  []transport.Name   `cbor:"7,keyasint"` // offered
	Taken  []transport.Name   `cbor:"8,keyasint"` // installed at the Target, durably
}

// deal is the transaction that it would be today. The server knows what came of
// it by the claims.
func (c *copyRecord) deal() *dealRecord {
	d := &dealRecord{Changed: c.Time, Deal: keycopy.Transaction{
		ID: c.Txn, Side: transport.KeycopySource, Phase: transport.KeycopyAbandoned, Mode: transport.KeycopyPAKE,
		Peer: c.Peer, Name: c.Name, Remote: c.Remote, At: c.Time,
	}}
	t := &d.Deal
	switch {
	case c.Role == roleTarget:
		t.Side, t.Phase = transport.KeycopyTarget, transport.KeycopyClosed
	case len(c.Taken) > 0:
		t.Phase = transport.KeycopyDone
	}
	t.Status = make([]byte, (len(c.Items)+7)/8)
	taken := make(map[transport.Name]bool, len(c.Taken))
	for _, id := range c.Taken {
		taken[id] = true
	}
	for n, id := range c.Items {
		t.Items = append(t.Items, transport.KeycopyEntry{ID: id, Kind: transport.KindCertificate, Transfer: transport.TransferCopy, Usage: transport.UsageClient})
		if taken[id] {
			t.Status[n/8] |= 1 << (n % 8)
		}
	}
	return d
}

// takeCopies takes in what earlier releases remember of copies. It is done when
// the store is opened, and finds nothing the next time.
func takeCopies(tx *store.Tx) error {
	err := tx.Each(bucketCopies, func(key string, decode func(any) error) error {
		var c copyRecord
		if err := decode(&c); err != nil {
			return err
		}
		d := c.deal()
		d.trim()
		if _, err := tx.Append(bucketClosed, d); err != nil {
			return err
		}
		return tx.Delete(bucketCopies, key)
	})
	if err != nil {
		return fmt.Errorf("take in earlier key copies: %w", err)
	}
	return prune(tx)
}

// short is a transaction's id for people: enough to tell it from the others.
func short(id transport.ID) string { return id.String()[:shortID] }

// shortID is how many hex digits of a transaction's id people see.
const shortID = 8
