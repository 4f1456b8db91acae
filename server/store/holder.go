package store

import (
	"errors"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// HolderState is how far a terminal is with the security code of an epoch.
type HolderState string

// How far a terminal may be. No row: it was never ordered to take the code, or
// has forgotten it.
const (
	HolderOrdered  HolderState = "ordered"
	HolderHeld     HolderState = "held"
	HolderRefused  HolderState = "refused"  // it said why in its command's result
	HolderRetiring HolderState = "retiring" // it is to forget the code
)

// members are the terminals that share the codes of a group.
const members = `kind = 'terminal' AND state = 'enrolled' AND group_name = ?`

// SetHolder notes how far a terminal is with an epoch.
func (t *Tx) SetHolder(terminal transport.Name, epoch uint32, state HolderState) error {
	_, err := t.exec(`INSERT INTO code_holders (terminal, epoch, state, actor, time) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (terminal, epoch) DO UPDATE SET state = excluded.state, actor = excluded.actor, time = excluded.time`,
		terminal, epoch, state, t.by.Actor, t.now())
	return err
}

// DropHolder forgets an epoch of a terminal.
func (t *Tx) DropHolder(terminal transport.Name, epoch uint32) error {
	_, err := t.exec(`DELETE FROM code_holders WHERE terminal = ? AND epoch = ?`, terminal, epoch)
	return err
}

// DropHolders forgets all epochs of a terminal, and takes back what it was
// ordered to do about them: another device will answer to the name.
func (t *Tx) DropHolders(terminal transport.Name) error {
	_, err := t.exec(`UPDATE commands SET state = 'withdrawn', detail = 'the terminal is to enroll anew', settled = ?, actor = ?, time = ?
		WHERE terminal = ? AND state = 'pending' AND kind IN (?, ?)`,
		t.now(), t.by.Actor, t.now(), terminal, transport.CommandCodeInstall, transport.CommandCodeRetire)
	_, err2 := t.exec(`DELETE FROM code_holders WHERE terminal = ?`, terminal)
	return errors.Join(err, err2)
}

// Holders gives the epochs of a terminal with how far it is.
func (t *Tx) Holders(terminal transport.Name) (map[uint32]HolderState, error) {
	type row struct {
		epoch uint32
		state HolderState
	}
	list, err := all(t, func(r scanner) (h row, err error) {
		err = r.Scan(&h.epoch, &h.state)
		return h, err
	}, `SELECT epoch, state FROM code_holders WHERE terminal = ?`, terminal)
	held := map[uint32]HolderState{}
	for _, h := range list {
		held[h.epoch] = h.state
	}
	return held, err
}

// Members counts the enrolled terminals of a group.
func (t *Tx) Members(group transport.Name) (n int, err error) {
	err = t.row(`SELECT count(*) FROM terminals WHERE `+members, []any{group}, &n)
	return n, err
}

// MembersWithout lists, by name, enrolled terminals of a group that are in none
// of the states with an epoch.
func (t *Tx) MembersWithout(group transport.Name, epoch uint32, states ...HolderState) ([]transport.Name, error) {
	args := []any{group, epoch}
	marks := "''"
	for _, s := range states {
		marks += ", ?"
		args = append(args, s)
	}
	return all(t, scanName, `SELECT name FROM terminals WHERE `+members+
		` AND name NOT IN (SELECT terminal FROM code_holders WHERE epoch = ? AND state IN (`+marks+`)) ORDER BY name`, args...)
}

// KeepingRetired lists, by name, enrolled terminals of a group that refused to
// give up a code that is retired.
func (t *Tx) KeepingRetired(group transport.Name) ([]transport.Name, error) {
	return all(t, scanName, `SELECT name FROM terminals WHERE `+members+`
		AND name IN (SELECT terminal FROM code_holders WHERE state = 'refused' AND epoch IN
			(SELECT epoch FROM codes WHERE group_name = ? AND state = 'retired')) ORDER BY name`, group, group)
}

// Stranded lists, by name, enrolled terminals of a group that would have no
// code in force if that of epoch was not.
func (t *Tx) Stranded(group transport.Name, epoch uint32) ([]transport.Name, error) {
	return all(t, scanName, `SELECT name FROM terminals WHERE `+members+`
		AND name NOT IN (SELECT terminal FROM code_holders WHERE state = 'held' AND epoch IN
			(SELECT epoch FROM codes WHERE group_name = ? AND state = 'active' AND epoch <> ?)) ORDER BY name`, group, group, epoch)
}

func scanName(r scanner) (n transport.Name, err error) {
	err = r.Scan(&n)
	return n, err
}

// A HolderCount is how many enrolled terminals of a group are how far.
type HolderCount struct {
	Epoch uint32
	State HolderState
	Count int
}

// CountHolders counts a group's terminals by epoch and state.
func (t *Tx) CountHolders(group transport.Name) ([]HolderCount, error) {
	return all(t, func(r scanner) (c HolderCount, err error) {
		err = r.Scan(&c.Epoch, &c.State, &c.Count)
		return c, err
	}, `SELECT epoch, state, count(*) FROM code_holders WHERE terminal IN (SELECT name FROM terminals WHERE `+members+`) GROUP BY epoch, state`, group)
}

// A Laggard is a terminal that lacks a code, with why.
type Laggard struct {
	Terminal transport.Name
	State    HolderState // empty: it was not ordered to take it
	Seen     time.Time
}

// Laggards lists the first enrolled terminals of a group, by name, that do not
// hold the code of an epoch.
func (t *Tx) Laggards(group transport.Name, epoch uint32, limit int) ([]Laggard, error) {
	return all(t, func(r scanner) (l Laggard, err error) {
		var seen int64
		err = r.Scan(&l.Terminal, &l.State, &seen)
		l.Seen = fromMillis(seen)
		return l, err
	}, `SELECT name, coalesce(h.state, ''), seen FROM terminals LEFT JOIN
			(SELECT terminal, state FROM code_holders WHERE epoch = ?) h ON h.terminal = name
		WHERE kind = 'terminal' AND terminals.state = 'enrolled' AND group_name = ? AND coalesce(h.state, '') <> 'held' ORDER BY name LIMIT ?`, epoch, group, limit)
}

// WithdrawInstalls takes back the orders to install the code of an epoch: bodies
// of that order are all the same.
func (t *Tx) WithdrawInstalls(body []byte) error {
	_, err := t.exec(`UPDATE commands SET state = 'withdrawn', detail = 'the code was retired', settled = ?, actor = ?, time = ?
		WHERE state = 'pending' AND kind = ? AND body = ?`, t.now(), t.by.Actor, t.now(), transport.CommandCodeInstall, body)
	return err
}

// BundleEpoch is the epoch of the newest bundle that was made for a terminal.
func (t *Tx) BundleEpoch(terminal transport.Name) (epoch uint32, err error) {
	err = t.row(`SELECT epoch FROM bundles WHERE terminal = ? ORDER BY issued DESC, epoch DESC LIMIT 1`, []any{terminal}, &epoch)
	return epoch, err
}

// SpareBundles counts the bundles for replacement boxes by the epoch of their code.
func (t *Tx) SpareBundles(group transport.Name) (map[uint32]int, error) {
	type row struct {
		epoch uint32
		count int
	}
	list, err := all(t, func(r scanner) (x row, err error) {
		err = r.Scan(&x.epoch, &x.count)
		return x, err
	}, `SELECT epoch, count(*) FROM bundles WHERE group_name = ? AND kind = ? GROUP BY epoch`, group, transport.BundleSpare)
	by := map[uint32]int{}
	for _, x := range list {
		by[x.epoch] = x.count
	}
	return by, err
}
