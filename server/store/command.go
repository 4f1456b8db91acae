package store

import (
	"math/big"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// States of a command; all others are transport.CommandState.
const (
	CommandPending   transport.CommandState = "pending"
	CommandWithdrawn transport.CommandState = "withdrawn" // taken back before it was obeyed
)

// A Command is an order to a terminal (DESIGN D1). It stays pending until the
// terminal's own result is committed.
type Command struct {
	ID         transport.ID
	Terminal   transport.Name
	Kind       string
	Credential transport.Name // what it is about
	Body       []byte         // encoded message of the kind
	Serial     *big.Int       // certificate made for it; nil before
	State      transport.CommandState
	Detail     string
	Created    time.Time
	Settled    time.Time
}

const commandColumns = `id, terminal, kind, credential, body, serial, state, detail, created, settled`

func scanCommand(r scanner) (c Command, err error) {
	var id, serial []byte
	var credential *string
	var created, settled int64
	if err = r.Scan(&id, &c.Terminal, &c.Kind, &credential, &c.Body, &serial, &c.State, &c.Detail, &created, &settled); err != nil {
		return c, err
	}
	copy(c.ID[:], id)
	if credential != nil {
		c.Credential = transport.Name(*credential)
	}
	if serial != nil {
		c.Serial = new(big.Int).SetBytes(serial)
	}
	c.Created, c.Settled = fromMillis(created), fromMillis(settled)
	return c, nil
}

// AddCommand queues an order.
func (t *Tx) AddCommand(c Command) error {
	_, err := t.exec(`INSERT INTO commands (id, terminal, kind, credential, body, state, detail, created, settled, actor, time)
		VALUES (?, ?, ?, ?, ?, ?, '', ?, 0, ?, ?)`,
		c.ID[:], c.Terminal, c.Kind, nullable(c.Credential), c.Body, CommandPending, t.now(), t.by.Actor, t.now())
	return err
}

// Command finds one by id, whoever it is for.
func (t *Tx) Command(id transport.ID) (Command, error) {
	return get(t, scanCommand, `SELECT `+commandColumns+` FROM commands WHERE id = ?`, id[:])
}

// NextCommand is a terminal's oldest order that is not settled.
func (t *Tx) NextCommand(terminal transport.Name) (Command, error) {
	return get(t, scanCommand, `SELECT `+commandColumns+` FROM commands WHERE terminal = ? AND state = 'pending' ORDER BY seq LIMIT 1`, terminal)
}

// CommandIssued notes which certificate was made for a pending order that had none.
func (t *Tx) CommandIssued(id transport.ID, serial *big.Int) error {
	return mustChange(t.exec(`UPDATE commands SET serial = ?, actor = ?, time = ? WHERE id = ? AND state = 'pending' AND serial IS NULL`,
		serialBytes(serial), t.by.Actor, t.now(), id[:]))
}

// Settle ends a pending order.
func (t *Tx) Settle(id transport.ID, state transport.CommandState, detail string) error {
	return mustChange(t.exec(`UPDATE commands SET state = ?, detail = ?, settled = ?, actor = ?, time = ? WHERE id = ? AND state = 'pending'`,
		state, detail, t.now(), t.by.Actor, t.now(), id[:]))
}

// Pending lists a terminal's orders that are not settled, oldest first.
func (t *Tx) Pending(terminal transport.Name) ([]Command, error) {
	return all(t, scanCommand, `SELECT `+commandColumns+` FROM commands WHERE terminal = ? AND state = 'pending' ORDER BY seq`, terminal)
}

// PendingOf lists the orders about a credential that are not settled.
func (t *Tx) PendingOf(credential transport.Name) ([]Command, error) {
	return all(t, scanCommand, `SELECT `+commandColumns+` FROM commands WHERE credential = ? AND state = 'pending' ORDER BY seq`, credential)
}

// OrderedOf names the terminal that is told to get a credential.
func (t *Tx) OrderedOf(credential transport.Name) (terminal transport.Name, err error) {
	err = t.row(`SELECT terminal FROM commands WHERE credential = ? AND state = 'pending' AND kind = ? ORDER BY seq LIMIT 1`, []any{credential, transport.CommandIssue}, &terminal)
	return terminal, err
}

// LastOf finds the newest order of a kind to a terminal about a credential.
func (t *Tx) LastOf(kind string, terminal, credential transport.Name) (Command, error) {
	return get(t, scanCommand, `SELECT `+commandColumns+` FROM commands WHERE kind = ? AND terminal = ? AND credential = ? ORDER BY seq DESC LIMIT 1`, kind, terminal, credential)
}

// EverOrdered says whether there ever was an order of a kind about a credential.
func (t *Tx) EverOrdered(kind string, credential transport.Name) (bool, error) {
	var n int
	err := t.row(`SELECT COUNT(*) FROM commands WHERE kind = ? AND credential = ?`, []any{kind, credential}, &n)
	return n > 0, err
}
