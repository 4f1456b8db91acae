package store

import (
	"errors"
	"fmt"
	"time"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
)

// TerminalState is how far a terminal is.
type TerminalState string

// How far a terminal may be.
const (
	TerminalExpected TerminalState = "expected" // its bundle is made, its device not known
	TerminalEnrolled TerminalState = "enrolled" // one device is pinned to the name
	TerminalRemoved  TerminalState = "removed"  // refused everywhere
)

// TerminalKind says what stands behind the name.
type TerminalKind string

// What may stand behind a name.
const (
	KindTerminal TerminalKind = "terminal" // a device that holds credentials
	KindGate     TerminalKind = "gate"     // the door of a service
)

// A Terminal is a name that the server gave to a device, or will.
type Terminal struct {
	Name     transport.Name
	Kind     TerminalKind
	Group    transport.Name
	Service  transport.Name // of a gate
	State    TerminalState
	Device   transport.DeviceID // zero until enrolled
	Level    string             // of its key storage: as it said, or hsm.LevelAttested
	Attest   AttestPolicy       // what it must prove of that; empty is AttestNone
	Created  time.Time
	Enrolled time.Time
	Seen     time.Time // last connected
}

const terminalColumns = `name, kind, group_name, service, state, device, level, attest, created, enrolled, seen`

func scanTerminal(r scanner) (x Terminal, err error) {
	var device []byte
	var created, enrolled, seen int64
	if err = r.Scan(&x.Name, &x.Kind, &x.Group, &x.Service, &x.State, &device, &x.Level, &x.Attest, &created, &enrolled, &seen); err != nil {
		return x, err
	}
	x.Created, x.Enrolled, x.Seen = fromMillis(created), fromMillis(enrolled), fromMillis(seen)
	x.Device, err = deviceOf(device)
	return x, err
}

// AddTerminal adds an expected terminal with its common key.
func (t *Tx) AddTerminal(x Terminal, commonKey *hsm.Secret) error {
	if x.Attest == "" {
		x.Attest = AttestNone
	}
	_, err := t.exec(`INSERT INTO terminals (name, kind, group_name, service, state, level, attest, common_key, created, enrolled, seen, actor, time)
		VALUES (?, ?, ?, ?, ?, '', ?, ?, ?, 0, 0, ?, ?)`,
		x.Name, x.Kind, x.Group, x.Service, TerminalExpected, x.Attest, t.sealCommonKey(x.Name, commonKey), t.now(), t.by.Actor, t.now())
	return err
}

func (t *Tx) sealCommonKey(name transport.Name, key *hsm.Secret) []byte {
	return t.store.seal("terminals", "common_key", string(name), key)
}

// Terminal finds one by name, removed ones too.
func (t *Tx) Terminal(name transport.Name) (Terminal, error) {
	return get(t, scanTerminal, `SELECT `+terminalColumns+` FROM terminals WHERE name = ?`, name)
}

// EnrolledAs finds the terminal that a device is pinned to.
func (t *Tx) EnrolledAs(device transport.DeviceID) (Terminal, error) {
	return get(t, scanTerminal, `SELECT `+terminalColumns+` FROM terminals WHERE device = ? AND state = 'enrolled'`, device[:])
}

// CommonKey opens a terminal's common key; ErrNotFound when there is none or
// the terminal is removed, after the same work: who is not enrolled learns
// nothing from how long it takes. Wipe the key after use.
func (t *Tx) CommonKey(name transport.Name) (*hsm.Secret, error) {
	var sealed []byte
	err := t.row(`SELECT common_key FROM terminals WHERE name = ?`, []any{name}, &sealed)
	if err == nil && sealed == nil {
		err = ErrNotFound
	}
	if errors.Is(err, ErrNotFound) {
		if key, err := t.store.open("terminals", "common_key", "", t.store.decoy); err == nil {
			key.Wipe()
		}
	}
	if err != nil {
		return nil, err
	}
	return t.store.open("terminals", "common_key", string(name), sealed)
}

// Enroll pins a device to an expected terminal.
func (t *Tx) Enroll(name transport.Name, device transport.DeviceID, spki []byte, level string) error {
	if err := t.putDevice(device, spki, level); err != nil {
		return fmt.Errorf("add device: %w", err)
	}
	return mustChange(t.exec(`UPDATE terminals SET state = 'enrolled', device = ?, level = ?, enrolled = ?, actor = ?, time = ?
		WHERE name = ? AND state = 'expected'`, device[:], level, t.now(), t.by.Actor, t.now(), name))
}

// DeviceKey is a device's public identity key in DER; ErrNotFound: it has never
// been seen here, or its key has not.
func (t *Tx) DeviceKey(id transport.DeviceID) (spki []byte, err error) {
	if err = t.row(`SELECT spki FROM devices WHERE id = ?`, []any{id[:]}, &spki); err == nil && spki == nil {
		err = ErrNotFound
	}
	return spki, err
}

func (t *Tx) putDevice(id transport.DeviceID, spki []byte, level string) error {
	_, err := t.exec(`INSERT INTO devices (id, spki, level, actor, time) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET spki = excluded.spki, level = excluded.level, actor = excluded.actor, time = excluded.time`,
		id[:], spki, level, t.by.Actor, t.now())
	return err
}

// ExpectAgain unpins a terminal's device, if any, and replaces its common key.
// What is known of its security codes goes with the device.
func (t *Tx) ExpectAgain(name transport.Name, commonKey *hsm.Secret) error {
	if err := t.DropHolders(name); err != nil {
		return err
	}
	return mustChange(t.exec(`UPDATE terminals SET state = 'expected', device = NULL, level = '', common_key = ?, enrolled = 0, actor = ?, time = ?
		WHERE name = ?`, t.sealCommonKey(name, commonKey), t.by.Actor, t.now(), name))
}

// RemoveTerminal refuses the name from now on and forgets its common key. The
// device stays in the row: it says whose it was.
func (t *Tx) RemoveTerminal(name transport.Name) error {
	return mustChange(t.exec(`UPDATE terminals SET state = 'removed', common_key = NULL, actor = ?, time = ? WHERE name = ?`,
		t.by.Actor, t.now(), name))
}

// Seen notes that a terminal has connected. It is no change to the record, so
// actor and time stay.
func (t *Tx) Seen(name transport.Name) error {
	return mustChange(t.exec(`UPDATE terminals SET seen = ? WHERE name = ?`, t.now(), name))
}
