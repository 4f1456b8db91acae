package server

import (
	"errors"
	"fmt"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// What the inventory says about holders that key copies have left in doubt.

// holderInfo is a holding for people; both is set if another device has what
// this one was to give it, or to have given up.
func holderInfo(h store.Holding) HolderInfo {
	i := HolderInfo{Terminal: h.Terminal, Device: h.Device, Since: h.Since, Until: h.Until, Origin: h.Origin, Expires: h.Expires, Active: h.Active(), State: h.State,
		Txn: h.Txn, Taken: h.Taken}
	if h.Source != (transport.DeviceID{}) {
		i.Source = &h.Source
	}
	return i
}

// markHolders says of each present holder what is not as it should be. It fills
// in Note and To, and returns what makes the credential itself one to look at.
func markHolders(tx *store.Tx, held []store.Holding, infos []HolderInfo) (conflict string, err error) {
	for n, h := range held {
		switch {
		case h.State == store.HoldingTransit:
			if infos[n].To, err = destination(tx, h); err != nil {
				return "", err
			}
			infos[n].Note = "in transit to " + infos[n].To + ", which has not proven to have it yet"
		case h.Active() && h.Origin == store.OriginMove && h.Txn != nil:
			at, both, err := stillAt(tx, held, h)
			if err != nil {
				return "", err
			}
			if at < 0 {
				continue
			}
			if both {
				conflict = fmt.Sprintf("%s and %s both have it after a move", held[at].Terminal, h.Terminal)
				infos[at].Note, infos[n].Note = "has it although it was moved to "+string(h.Terminal), "has it although it is still on "+string(held[at].Terminal)
				continue
			}
			infos[at].Note = fmt.Sprintf("moved to %s, as that says; %s has not said so yet", h.Terminal, held[at].Terminal)
		}
	}
	return conflict, nil
}

// destination names the other end of the move that a holding is in.
func destination(tx *store.Tx, h store.Holding) (string, error) {
	if h.Taken == nil {
		return "an unknown device", nil
	}
	rows, err := tx.KeycopiesWith(*h.Taken, maxSameKeycopy)
	if err != nil {
		return "", err
	}
	for _, k := range rows {
		if k.Source.Device == h.Device {
			end, err := namedEnd(tx, k.Target)
			return nameOf(end), err
		}
	}
	return "an unknown device", nil
}

// namedEnd is an end with the name of its terminal, if only the device is known
// by its own word.
func namedEnd(tx *store.Tx, e store.KeycopyEnd) (store.KeycopyEnd, error) {
	if e.Terminal != "" {
		return e, nil
	}
	x, err := tx.EnrolledAs(e.Device)
	if errors.Is(err, store.ErrNotFound) {
		return e, nil
	}
	e.Terminal = x.Name
	return e, err
}

// stillAt finds the holding that a moved one should have ended, -1 if there is
// none: both is true if its device is past the point where it gives it up, or has
// taken it back; else its own word is only missing.
func stillAt(tx *store.Tx, held []store.Holding, moved store.Holding) (at int, both bool, err error) {
	for n, h := range held {
		if h.Device != moved.Source || !h.Active() {
			continue
		}
		if h.Since.After(moved.Since) && (h.Txn != nil || serialText(h.Serial) != serialText(moved.Serial)) {
			continue // it came back since, or was issued anew
		}
		k, err := tx.Keycopy(*moved.Txn, h.Device, moved.Device)
		if errors.Is(err, store.ErrNotFound) {
			return n, false, nil
		}
		return n, k.Source.Phase != 0 && k.Source.Phase != transport.KeycopyOffered, err
	}
	return -1, false, nil
}
