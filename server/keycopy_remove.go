package server

import (
	"errors"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// endHolding ends what a removed terminal holds. What it has given up in a move
// goes on to be in transit if it is sure that the Target is another terminal that
// has it: otherwise a stolen box could say that it has moved a key away, and so
// keep it from being revoked. to names that terminal.
func endHolding(tx *store.Tx, h store.Holding) (to transport.Name, err error) {
	if h.State == store.HoldingTransit && h.Taken != nil {
		if to, err = arriving(tx, h); err != nil || to != "" {
			return to, err
		}
	}
	return "", tx.EndHolding(h, tx.By().At)
}

// arriving names the enrolled terminal that has what is in transit, as its signed
// receipt or its own report says; empty if neither does.
func arriving(tx *store.Tx, h store.Holding) (to transport.Name, err error) {
	rows, err := tx.KeycopiesWith(*h.Taken, maxSameKeycopy)
	if err != nil {
		return "", err
	}
	for _, k := range rows {
		if k.Source.Device != h.Device {
			continue
		}
		item, err := tx.KeycopyItem(k.Seq, h.Credential)
		if err != nil {
			return "", err
		}
		if k.Proof != store.ProofGood && !(item.Target.Taken && took(item.Target.Phase)) {
			continue
		}
		x, err := tx.EnrolledAs(k.Target.Device)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		return x.Name, err
	}
	return "", nil
}
