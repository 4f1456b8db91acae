package server

import (
	"errors"
	"fmt"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// What a key copy does to holdings. That a device has a credential only its claim
// says, with proof. That it has one no more is its own word: nobody gains by
// holding less. Between the two a moved credential is in transit, so that it is
// never shown as held by nobody while its key exists.

// gaveUp says whether the Source says that it uses an item no more.
func gaveUp(k store.Keycopy, i store.KeycopyItem) bool {
	return i.Source.Transfer == transport.TransferMove && i.Source.Taken &&
		(i.Source.Phase == transport.KeycopyCommitted || i.Source.Phase == transport.KeycopyDone)
}

// sourceSays does to the Source's holding what the Source says of an item.
func sourceSays(tx *store.Tx, k store.Keycopy, i store.KeycopyItem) error {
	if i.Source.Phase == transport.KeycopyReclaimed || i.Source.Phase == transport.KeycopyAbandoned {
		err := tx.TakeBack(i.Credential, k.Source.Device, k.Txn)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		return errors.Join(err, tx.Audit("credential.reclaim", string(i.Credential),
			fmt.Sprintf("terminal %s device %s has taken it back in key copy %s", k.Source.Terminal, k.Source.Device, k.Txn)))
	}
	if !gaveUp(k, i) {
		return nil
	}
	h, err := tx.HoldingOf(i.Credential, k.Source.Device)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	later := !k.Source.Changed.IsZero() && h.Since.Unix() > k.Source.Changed.Unix() || h.Txn != nil && *h.Txn == k.Txn
	if later || h.State == store.HoldingTransit {
		return nil // it has it again since then, or has said so
	}
	return errors.Join(tx.GiveUp(h, k.Txn), auditAway(tx, k, i.Credential, "on its way to"))
}

func auditAway(tx *store.Tx, k store.Keycopy, credential transport.Name, way string) error {
	return tx.Audit("credential.away", string(credential),
		fmt.Sprintf("terminal %s device %s has given it up %s device %s in key copy %s", k.Source.Terminal, k.Source.Device, way, k.Target.Device, k.Txn))
}

// maxMoves is how many moves, one after the other, are followed, and
// maxMovesEach how many devices one may have moved a credential to.
const (
	maxMoves     = 16
	maxMovesEach = 8
)

// movedOn says whether somebody has proven to have a credential that went on
// from a device, which may never have been here itself.
func movedOn(tx *store.Tx, credential transport.Name, from transport.DeviceID) (bool, error) {
	seen, todo := map[transport.DeviceID]bool{from: true}, []transport.DeviceID{from}
	for n := 0; len(todo) > 0 && n < maxMoves; n++ {
		next, err := tx.MovedOn(credential, todo[0], maxMovesEach)
		if err != nil {
			return false, err
		}
		todo = todo[1:]
		for _, device := range next {
			if seen[device] {
				continue
			}
			seen[device] = true
			h, err := tx.LastHolding(credential, device)
			if err == nil && h.Origin == store.OriginMove {
				return true, nil
			}
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return false, err
			}
			todo = append(todo, device)
		}
	}
	return false, nil
}

// resolve ends what is in transit of a credential and has arrived: at the Target,
// or at whom that has moved it on to.
func resolve(tx *store.Tx, credential transport.Name) error {
	list, err := tx.Holdings(credential)
	if err != nil {
		return err
	}
	for _, h := range list {
		if h.State != store.HoldingTransit || h.Taken == nil {
			continue
		}
		rows, err := tx.KeycopiesWith(*h.Taken, maxSameKeycopy)
		if err != nil {
			return err
		}
		for _, k := range rows {
			if k.Source.Device != h.Device {
				continue
			}
			arrived, err := tx.CameBy(credential, k.Target.Device, k.Txn)
			if err == nil && !arrived {
				arrived, err = movedOn(tx, credential, k.Target.Device)
			}
			if err != nil {
				return err
			}
			if arrived {
				if err := errors.Join(tx.TakenAway(h, k.Txn, k.Source.Changed), auditAway(tx, k, credential, "to")); err != nil {
					return err
				}
				break
			}
		}
	}
	return nil
}

// revived says of which key copy a claim shows that its Source has what it said
// it had destroyed: its store was set back. In the phase before that it still had
// the key, disabled, and the claim says nothing new.
func revived(tx *store.Tx, ses *session, credential transport.Name, txn *transport.ID) (k store.Keycopy, found, disabled bool, err error) {
	last, err := tx.LastHolding(credential, ses.device)
	if errors.Is(err, store.ErrNotFound) {
		return k, false, false, nil
	}
	if err != nil || last.Taken == nil || last.Active() || txn != nil && *txn != *last.Taken {
		return k, false, false, err
	}
	rows, err := tx.KeycopiesWith(*last.Taken, maxSameKeycopy)
	for _, k := range rows {
		if k.Source.Device == ses.device {
			return k, k.Source.Phase == transport.KeycopyDone, k.Source.Phase == transport.KeycopyCommitted, err
		}
	}
	return k, false, false, err
}
