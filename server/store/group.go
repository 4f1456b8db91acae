package store

import (
	"fmt"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
)

// A Group shares a security code; Epoch counts its codes from 1.
type Group struct {
	Name  transport.Name
	Epoch uint32
}

// AddGroup makes a group with the security code of its first epoch.
func (t *Tx) AddGroup(name transport.Name, code *hsm.Secret) error {
	if code.Len() != transport.SecurityCodeSize {
		return fmt.Errorf("security code of %d bytes, want %d", code.Len(), transport.SecurityCodeSize)
	}
	if _, err := t.exec(`INSERT INTO groups (name, epoch, actor, time) VALUES (?, 1, ?, ?)`, name, t.by.Actor, t.now()); err != nil {
		return err
	}
	_, err := t.exec(`INSERT INTO codes (group_name, epoch, code, actor, time) VALUES (?, 1, ?, ?, ?)`,
		name, t.store.seal("codes", "code", codeRow(name, 1), code), t.by.Actor, t.now())
	return err
}

// Group finds a group.
func (t *Tx) Group(name transport.Name) (g Group, err error) {
	g.Name = name
	err = t.row(`SELECT epoch FROM groups WHERE name = ?`, []any{name}, &g.Epoch)
	return g, err
}

// SecurityCode opens the code of a group's present epoch. Wipe it after use.
func (t *Tx) SecurityCode(g Group) (*hsm.Secret, error) {
	var sealed []byte
	if err := t.row(`SELECT code FROM codes WHERE group_name = ? AND epoch = ?`, []any{g.Name, g.Epoch}, &sealed); err != nil {
		return nil, err
	}
	return t.store.open("codes", "code", codeRow(g.Name, g.Epoch), sealed)
}

func codeRow(name transport.Name, epoch uint32) string { return fmt.Sprintf("%s/%d", name, epoch) }
