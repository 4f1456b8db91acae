package store

import (
	"errors"

	"github.com/kagimori/kagimori/transport"
)

// Items of key copies, as both ends speak of them.

const itemColumns = `credential, place, source_phase, target_phase, source_transfer, target_transfer, source_taken, target_taken`

func scanItem(r scanner) (i KeycopyItem, err error) {
	var source, target int
	err = r.Scan(&i.Credential, &i.Place, &i.Source.Phase, &i.Target.Phase, &i.Source.Transfer, &i.Target.Transfer, &source, &target)
	i.Source.Taken, i.Target.Taken = source != 0, target != 0
	return i, err
}

// KeycopyItem finds one; of one that nobody has spoken of it has no words.
func (t *Tx) KeycopyItem(seq int64, credential transport.Name) (KeycopyItem, error) {
	i, err := get(t, scanItem, `SELECT `+itemColumns+` FROM keycopy_items WHERE keycopy = ? AND credential = ?`, seq, credential)
	if errors.Is(err, ErrNotFound) {
		return KeycopyItem{Credential: credential, Place: -1}, nil
	}
	return i, err
}

// PutKeycopyItem writes one whole.
func (t *Tx) PutKeycopyItem(seq int64, i KeycopyItem) error {
	_, err := t.exec(`INSERT INTO keycopy_items (keycopy, `+itemColumns+`, actor, time) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (keycopy, credential) DO UPDATE SET place = excluded.place, source_phase = excluded.source_phase, target_phase = excluded.target_phase,
			source_transfer = excluded.source_transfer, target_transfer = excluded.target_transfer, source_taken = excluded.source_taken,
			target_taken = excluded.target_taken, actor = excluded.actor, time = excluded.time`,
		seq, i.Credential, i.Place, i.Source.Phase, i.Target.Phase, i.Source.Transfer, i.Target.Transfer, flag(i.Source.Taken), flag(i.Target.Taken), t.by.Actor, t.now())
	return err
}

// KeycopyItems lists up to limit of them that follow a name, by name.
func (t *Tx) KeycopyItems(seq int64, after transport.Name, limit int) ([]KeycopyItem, error) {
	return all(t, scanItem, `SELECT `+itemColumns+` FROM keycopy_items WHERE keycopy = ? AND credential > ? ORDER BY credential LIMIT ?`, seq, after, limit)
}

// A KeycopyTally counts what the judgement of a key copy needs to know of its
// items.
type KeycopyTally struct {
	Items          int
	Source, Target int    // of which an end has spoken
	Said           [2]int // of which Source and Target have spoken in their phase on record
	Moved          int    // taken, and to be given up, as one of the ends says
	Kept           int    // of which the Target says that it has them
	OtherTransfer  int    // of which the ends differ in what was to happen
	OtherTaken     int    // of which they differ in whether the Target has it
}

// Spoken is of how many an end has spoken.
func (n KeycopyTally) Spoken(side transport.KeycopySide) int {
	if side == transport.KeycopySource {
		return n.Source
	}
	return n.Target
}

// KeycopyTally counts a key copy's items.
func (t *Tx) KeycopyTally(k Keycopy) (n KeycopyTally, err error) {
	err = t.row(`SELECT COUNT(*), COUNT(*) FILTER (WHERE source_phase <> 0), COUNT(*) FILTER (WHERE target_phase <> 0),
			COUNT(*) FILTER (WHERE source_phase = ?), COUNT(*) FILTER (WHERE target_phase = ?),
			COUNT(*) FILTER (WHERE (source_transfer = 'move' AND source_taken = 1) OR (target_transfer = 'move' AND target_taken = 1)),
			COUNT(*) FILTER (WHERE target_transfer = 'move' AND target_taken = 1),
			COUNT(*) FILTER (WHERE source_phase <> 0 AND target_phase <> 0 AND source_transfer <> target_transfer),
			COUNT(*) FILTER (WHERE source_phase <> 0 AND target_phase <> 0 AND source_taken <> target_taken)
		FROM keycopy_items WHERE keycopy = ?`,
		[]any{k.Source.Phase, k.Target.Phase, k.Seq}, &n.Items, &n.Source, &n.Target, &n.Said[0], &n.Said[1], &n.Moved, &n.Kept, &n.OtherTransfer, &n.OtherTaken)
	return n, err
}

// KeycopyPlaces gives what the Source says was taken, by place; the places that
// it has not spoken of are missing.
func (t *Tx) KeycopyPlaces(seq int64) (map[int]bool, error) {
	type row struct {
		place int
		taken int
	}
	list, err := all(t, func(r scanner) (x row, err error) {
		err = r.Scan(&x.place, &x.taken)
		return x, err
	}, `SELECT place, source_taken FROM keycopy_items WHERE keycopy = ? AND place >= 0 AND source_phase <> 0`, seq)
	places := map[int]bool{}
	for _, x := range list {
		places[x.place] = x.taken != 0
	}
	return places, err
}

// MovedOn lists, at most limit, the devices that a device has moved a credential
// on to, as it says itself or they do.
func (t *Tx) MovedOn(credential transport.Name, from transport.DeviceID, limit int) ([]transport.DeviceID, error) {
	return all(t, func(r scanner) (d transport.DeviceID, err error) {
		var b []byte
		if err = r.Scan(&b); err != nil {
			return d, err
		}
		return deviceOf(b)
	}, `SELECT DISTINCT k.target FROM keycopies k JOIN keycopy_items i ON i.keycopy = k.seq
		WHERE i.credential = ? AND k.source = ? AND ((i.source_transfer = 'move' AND i.source_taken = 1) OR (i.target_transfer = 'move' AND i.target_taken = 1)) LIMIT ?`,
		credential, from[:], limit)
}
