package agent

import (
	"crypto/subtle"
	"errors"
	"strings"

	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

// What a step of a key copy does to the keys of this terminal.

// keys does what d's new phase means.
func (j journal) keys(tx *store.Tx, d *dealRecord) error {
	t := &d.Deal
	switch t.Phase {
	case transport.KeycopyCommitted:
		return j.giveUp(tx, t)
	case transport.KeycopyReclaimed:
		return takeBack(tx, t, j.vault.device)
	case transport.KeycopyDone:
		return destroy(tx, t)
	case transport.KeycopyActive:
		return j.useStaged(tx, t)
	case transport.KeycopyDropped, transport.KeycopyUnreceipted:
		return dropStaged(tx, t.ID)
	}
	return nil
}

// giveUp disables what moves: it is there still, and nobody here may use it.
func (j journal) giveUp(tx *store.Tx, t *keycopy.Transaction) error {
	return eachMoving(tx, t, func(h *holdingRecord) error {
		if h.Away != nil {
			return nil
		}
		h.Away = &awayRecord{Txn: t.ID, Peer: t.Peer, Name: t.Name}
		return errors.Join(tx.Put(bucketCredentials, string(h.Record.ID), h), claimLater(tx, h, h.Source))
	})
}

// takeBack puts what was given up to use again, and has it reported with proof.
func takeBack(tx *store.Tx, t *keycopy.Transaction, self transport.DeviceID) error {
	return eachMoving(tx, t, func(h *holdingRecord) error {
		if h.Away == nil || h.Away.Txn != t.ID {
			return nil
		}
		source := h.Source
		if h.Origin == OriginIssue {
			source = self // from nowhere else
		}
		h.Away = nil
		return errors.Join(tx.Put(bucketCredentials, string(h.Record.ID), h), claimLater(tx, h, source))
	})
}

// destroy removes what was given up, and its key with it.
func destroy(tx *store.Tx, t *keycopy.Transaction) error {
	return eachMoving(tx, t, func(h *holdingRecord) error {
		if h.Away == nil || h.Away.Txn != t.ID {
			return nil
		}
		id := string(h.Record.ID)
		return errors.Join(tx.Delete(bucketCredentials, id), tx.Delete(bucketClaims, id))
	})
}

// eachMoving calls fn for what t moves and is here, and wipes it afterwards.
func eachMoving(tx *store.Tx, t *keycopy.Transaction, fn func(*holdingRecord) error) error {
	for _, id := range t.Moving() {
		h, err := holding(tx, id)
		if err == nil && h != nil {
			err = fn(h)
		}
		h.wipe()
		if err != nil {
			return err
		}
	}
	return nil
}

// stagedKey is where what moves waits: used by nothing.
func stagedKey(txn transport.ID, id transport.Name) string { return dealKey(txn) + "/" + string(id) }

// eachStaged calls fn for everything that waits, and wipes it afterwards.
func eachStaged(tx *store.Tx, fn func(key string, txn transport.ID, h *holdingRecord) error) error {
	return tx.Each(bucketStaged, func(key string, decode func(any) error) error {
		hex, _, _ := strings.Cut(key, "/")
		txn, err := transport.ParseID(hex)
		if err != nil {
			return err
		}
		var h holdingRecord
		defer h.wipe()
		if err := decode(&h); err != nil {
			return err
		}
		return fn(key, txn, &h)
	})
}

// useStaged puts what waits to use.
func (j journal) useStaged(tx *store.Tx, t *keycopy.Transaction) error {
	return eachStaged(tx, func(key string, txn transport.ID, h *holdingRecord) error {
		if txn != t.ID {
			return nil
		}
		h.Since = j.vault.clock.Stamp()
		return errors.Join(holdCopy(tx, h, j.vault.clock), tx.Delete(bucketStaged, key))
	})
}

// dropStaged destroys what waits.
func dropStaged(tx *store.Tx, id transport.ID) error {
	return eachStaged(tx, func(key string, txn transport.ID, _ *holdingRecord) error {
		if txn != id {
			return nil
		}
		return tx.Delete(bucketStaged, key)
	})
}

// holdCopy stores a credential that came from another terminal, unless the one
// that is here lasts as long (that is the same one, or a renewed one), or was
// issued to this very device and is good.
func holdCopy(tx *store.Tx, h *holdingRecord, clock *Clock) error {
	old, err := holding(tx, h.Record.ID)
	defer old.wipe()
	switch {
	case err != nil:
		return err
	case old == nil || !old.keeps(h, clock):
		return hold(tx, h)
	case h.Origin == OriginMove && sameSecret(old, h):
		return old.arrived(tx, h)
	}
	return nil
}

// arrived notes that what is here already has moved here now: the server waits for
// the proof of that very key copy, and shows it as on its way until then.
func (h *holdingRecord) arrived(tx *store.Tx, next *holdingRecord) error {
	moved := *h
	moved.Origin, moved.Since, moved.Source, moved.SourceName, moved.Txn = next.Origin, next.Since, next.Source, next.SourceName, next.Txn
	if h.Origin != OriginIssue {
		if err := tx.Put(bucketCredentials, string(h.Record.ID), &moved); err != nil {
			return err
		}
	}
	return claimLater(tx, &moved, next.Source)
}

// keeps says whether h stays when next comes.
func (h *holdingRecord) keeps(next *holdingRecord, clock *Clock) bool {
	if h.Away == nil && h.Record.State == transport.CredentialActive && lasts(&h.Record, &next.Record) {
		return true
	}
	return h.Origin == OriginIssue && h.unusable(clock) == ""
}

// movingBy says by which key copy a credential of this terminal's moves, or is
// about to; "" if by none. held may be nil.
func movingBy(tx *store.Tx, held *holdingRecord, id transport.Name) (moving string, err error) {
	if held == nil || held.Away != nil {
		if held != nil {
			moving = held.Away.String()
		}
		return moving, nil
	}
	err = eachOpen(tx, func(d *dealRecord) error {
		t := &d.Deal
		if t.Phase != transport.KeycopyOffered {
			return nil
		}
		for _, e := range t.Items {
			if e.ID == id && e.Transfer == transport.TransferMove {
				moving = (&awayRecord{Txn: t.ID, Peer: t.Peer, Name: t.Name}).String()
				return store.ErrStop
			}
		}
		return nil
	})
	return moving, err
}

// unwanted says why a credential must not come here now, "" if it may: taking it
// would cost one of the two terminals a key that it needs.
func unwanted(tx *store.Tx, next *holdingRecord, clock *Clock) (string, error) {
	here, err := holding(tx, next.Record.ID)
	defer here.wipe()
	switch {
	case err != nil || here == nil:
		return "", err
	case here.Away != nil:
		return "it is " + here.Away.String() + "; settle that first", nil
	case here.Record.Kind != next.Record.Kind:
		return "this terminal has a credential of another kind under this id", nil
	case next.Record.Kind != transport.KindCertificate && !sameSecret(here, next) && here.unusable(clock) == "":
		return "this terminal has another secret under this id, and nobody knows which is newer: remove it there (credential remove), or import it there anew", nil
	case next.Origin == OriginMove && here.keeps(next, clock) && !sameSecret(here, next):
		return "this terminal has one of its own that is as good", nil
	}
	return "", nil
}

func sameSecret(a, b *holdingRecord) bool {
	return sameChipKey(&a.Record, &b.Record) || a.Record.Secret.Form == b.Record.Secret.Form && subtle.ConstantTimeCompare(a.Record.Secret.Bytes, b.Record.Secret.Bytes) == 1
}
