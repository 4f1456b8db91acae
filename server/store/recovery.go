package store

import (
	"fmt"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// A Recovery is a terminal's request for the key of its earlier store.
type Recovery struct {
	ID        transport.ID
	Terminal  transport.Name
	Device    transport.DeviceID // that asks
	Origin    transport.DeviceID // that made the wrap
	Wrap      []byte             // encoded transport.RecoveryWrap
	Recipient []byte             // public key that the answer is sealed to
	State     transport.RecoveryProgress
	Asked     time.Time
	Decided   time.Time // zero before
	Actor     string    // who changed it last
	Address   string    // that it was asked from; empty: not known
}

// RecoveryGivenUp is a request that its terminal has given up before a key was
// sent. It is a state of the list only: the terminal is told that it is denied.
const RecoveryGivenUp transport.RecoveryProgress = "given-up"

const recoveryColumns = `id, terminal, device, origin, wrap, recipient, state, asked, decided, actor, address`

func scanRecovery(r scanner) (x Recovery, err error) {
	var id string
	var device, origin []byte
	var asked, decided int64
	if err = r.Scan(&id, &x.Terminal, &device, &origin, &x.Wrap, &x.Recipient, &x.State, &asked, &decided, &x.Actor, &x.Address); err != nil {
		return x, err
	}
	x.Asked, x.Decided = fromMillis(asked), fromMillis(decided)
	if x.ID, err = transport.ParseID(id); err != nil {
		return x, fmt.Errorf("recovery in the database: %w", err)
	}
	if x.Device, err = deviceOf(device); err != nil {
		return x, err
	}
	x.Origin, err = deviceOf(origin)
	return x, err
}

// AddRecovery adds a request that nobody has decided yet.
func (t *Tx) AddRecovery(x Recovery) error {
	_, err := t.exec(`INSERT INTO recoveries (id, terminal, device, origin, wrap, recipient, state, asked, decided, address, actor, time)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?)`,
		x.ID.String(), x.Terminal, x.Device[:], x.Origin[:], x.Wrap, x.Recipient, transport.RecoveryAsked, t.now(), x.Address, t.by.Actor, t.now())
	return err
}

// Recovery finds one by id.
func (t *Tx) Recovery(id transport.ID) (Recovery, error) {
	return get(t, scanRecovery, `SELECT `+recoveryColumns+` FROM recoveries WHERE id = ?`, id.String())
}

// RecoveriesOf lists a terminal's, oldest first.
func (t *Tx) RecoveriesOf(terminal transport.Name) ([]Recovery, error) {
	return all(t, scanRecovery, `SELECT `+recoveryColumns+` FROM recoveries WHERE terminal = ? ORDER BY asked, id`, terminal)
}

// MoveRecovery takes a request from one state to the next; ErrNotFound when it
// is not there, or in another state.
func (t *Tx) MoveRecovery(id transport.ID, from, to transport.RecoveryProgress) error {
	return mustChange(t.exec(`UPDATE recoveries SET state = ?, actor = ?, time = ? WHERE id = ? AND state = ?`,
		to, t.by.Actor, t.now(), id.String(), from))
}

// DecideRecovery is MoveRecovery for an administrator's decision.
func (t *Tx) DecideRecovery(id transport.ID, from, to transport.RecoveryProgress) error {
	return mustChange(t.exec(`UPDATE recoveries SET state = ?, decided = ?, actor = ?, time = ? WHERE id = ? AND state = ?`,
		to, t.now(), t.by.Actor, t.now(), id.String(), from))
}

// DropRecovery forgets a request; the audit log remembers it.
func (t *Tx) DropRecovery(id transport.ID) error {
	return mustChange(t.exec(`DELETE FROM recoveries WHERE id = ?`, id.String()))
}

// Recovered says whether a device was given the key of another one's store.
func (t *Tx) Recovered(device, origin transport.DeviceID) (bool, error) {
	var n int
	err := t.row(`SELECT COUNT(*) FROM recoveries WHERE device = ? AND origin = ? AND state IN ('released', 'taken')`, []any{device[:], origin[:]}, &n)
	return n > 0, err
}

// HadIdentity says whether a device ever had an identity certificate of a
// terminal, revoked ones too.
func (t *Tx) HadIdentity(terminal transport.Name, device transport.DeviceID) (bool, error) {
	var n int
	err := t.row(`SELECT COUNT(*) FROM certificates WHERE terminal = ? AND device = ?`, []any{terminal, device[:]}, &n)
	return n > 0, err
}

// NoteIncarnation keeps what a device says of its store, and returns what it
// had said before; known is false the first time.
func (t *Tx) NoteIncarnation(device transport.DeviceID, incarnation uint32) (before uint32, known bool, err error) {
	var old *int64
	if err := t.row(`SELECT incarnation FROM devices WHERE id = ?`, []any{device[:]}, &old); err != nil {
		return 0, false, err
	}
	if old != nil && *old == int64(incarnation) {
		return incarnation, true, nil
	}
	err = mustChange(t.exec(`UPDATE devices SET incarnation = ?, actor = ?, time = ? WHERE id = ?`, incarnation, t.by.Actor, t.now(), device[:]))
	if old != nil {
		before, known = uint32(*old), true
	}
	return before, known, err
}

// Recoveries lists requests; the key is the id.
func (t *Tx) Recoveries(q Query) (list []Recovery, next string, err error) {
	return page(t, listing{
		table: "recoveries", columns: recoveryColumns, key: "id",
		sort:   map[string]string{"id": "id", "terminal": "terminal", "state": "state", "asked": "asked", "decided": "decided"},
		filter: map[string]string{"terminal": "terminal = ?"},
		words: map[string]map[string]string{"state": column("state", transport.RecoveryAsked, transport.RecoveryApproved, transport.RecoveryDenied,
			transport.RecoveryReleased, transport.RecoveryDone, RecoveryGivenUp)},
	}, q, scanRecovery)
}
