package store

import (
	"fmt"
	"time"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
)

// A Group shares security codes; epochs count them from 1. Epoch is the newest
// one in force.
type Group struct {
	Name  transport.Name
	Epoch uint32
}

// CodeState says whether the code of an epoch is in force.
type CodeState string

// What a code may be.
const (
	CodeActive  CodeState = "active"
	CodeRetired CodeState = "retired" // destroyed here, and terminals are told to forget it
)

// A Code is the security code of an epoch, without the code.
type Code struct {
	Epoch   uint32
	State   CodeState
	Changed time.Time // made, or retired
}

// AddGroup makes a group with the security code of its first epoch.
func (t *Tx) AddGroup(name transport.Name, code *hsm.Secret) error {
	if _, err := t.exec(`INSERT INTO groups (name, epoch, actor, time) VALUES (?, 1, ?, ?)`, name, t.by.Actor, t.now()); err != nil {
		return err
	}
	return t.addCode(name, 1, code)
}

func (t *Tx) addCode(name transport.Name, epoch uint32, code *hsm.Secret) error {
	if code.Len() != transport.SecurityCodeSize {
		return fmt.Errorf("security code of %d bytes, want %d", code.Len(), transport.SecurityCodeSize)
	}
	_, err := t.exec(`INSERT INTO codes (group_name, epoch, code, state, actor, time) VALUES (?, ?, ?, ?, ?, ?)`,
		name, epoch, t.store.seal("codes", "code", codeRow(name, epoch), code), CodeActive, t.by.Actor, t.now())
	return err
}

// Group finds a group.
func (t *Tx) Group(name transport.Name) (g Group, err error) {
	g.Name = name
	err = t.row(`SELECT epoch FROM groups WHERE name = ?`, []any{name}, &g.Epoch)
	return g, err
}

// Groups lists all groups by name.
func (t *Tx) Groups() ([]Group, error) {
	return all(t, func(r scanner) (g Group, err error) {
		err = r.Scan(&g.Name, &g.Epoch)
		return g, err
	}, `SELECT name, epoch FROM groups ORDER BY name`)
}

// Codes lists the codes of a group, newest first, retired ones too.
func (t *Tx) Codes(group transport.Name) ([]Code, error) {
	return all(t, func(r scanner) (c Code, err error) {
		var at int64
		err = r.Scan(&c.Epoch, &c.State, &at)
		c.Changed = fromMillis(at)
		return c, err
	}, `SELECT epoch, state, time FROM codes WHERE group_name = ? ORDER BY epoch DESC`, group)
}

// SecurityCode opens the code of a group's epoch; one that is retired is
// ErrNotFound. Wipe it after use.
func (t *Tx) SecurityCode(g Group) (*hsm.Secret, error) {
	var sealed []byte
	if err := t.row(`SELECT code FROM codes WHERE group_name = ? AND epoch = ? AND state = 'active'`, []any{g.Name, g.Epoch}, &sealed); err != nil {
		return nil, err
	}
	return t.store.open("codes", "code", codeRow(g.Name, g.Epoch), sealed)
}

// RotateCode adds a code with the next epoch, which becomes the group's.
func (t *Tx) RotateCode(group transport.Name, code *hsm.Secret) (epoch uint32, err error) {
	if err := t.row(`SELECT max(epoch) FROM codes WHERE group_name = ?`, []any{group}, &epoch); err != nil {
		return 0, err
	}
	epoch++
	if err := t.addCode(group, epoch, code); err != nil {
		return 0, err
	}
	return epoch, t.setEpoch(group)
}

// RetireCode destroys the code of an epoch; the newest one left becomes the
// group's. One that is not in force is ErrNotFound.
func (t *Tx) RetireCode(group transport.Name, epoch uint32) error {
	err := mustChange(t.exec(`UPDATE codes SET state = 'retired', code = ?, actor = ?, time = ? WHERE group_name = ? AND epoch = ? AND state = 'active'`,
		[]byte{}, t.by.Actor, t.now(), group, epoch))
	if err != nil {
		return err
	}
	return t.setEpoch(group)
}

// setEpoch makes the newest code in force the group's.
func (t *Tx) setEpoch(group transport.Name) error {
	return mustChange(t.exec(`UPDATE groups SET epoch = (SELECT max(epoch) FROM codes WHERE group_name = ? AND state = 'active'), actor = ?, time = ? WHERE name = ?`,
		group, t.by.Actor, t.now(), group))
}

func codeRow(name transport.Name, epoch uint32) string { return fmt.Sprintf("%s/%d", name, epoch) }
