package store

import (
	"crypto/sha256"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// A Chip is a storage key that the fleet key has approved as a place for keys.
type Chip struct {
	Parent    []byte // TPMT_PUBLIC of the storage key
	Signature []byte // of the fleet key
	Origin    ChipOrigin
	// Device proved the chip at enrollment; nil when an administrator vouched for it.
	Device   *transport.DeviceID
	Approved time.Time
	Actor    string
}

// ChipOrigin is how it is known that the storage key is in a chip.
type ChipOrigin string

// The ways to know.
const (
	ChipProven  ChipOrigin = "proven"  // its maker's certificate, at enrollment
	ChipVouched ChipOrigin = "vouched" // an administrator says so
)

// ID names a chip in lists: SHA-256 of its storage key's public area, as in the
// key's Name.
func (c Chip) ID() [sha256.Size]byte { return sha256.Sum256(c.Parent) }

const chipColumns = `parent, signature, origin, device, time, actor`

func scanChip(r scanner) (c Chip, err error) {
	var device []byte
	var at int64
	if err = r.Scan(&c.Parent, &c.Signature, &c.Origin, &device, &at, &c.Actor); err != nil {
		return c, err
	}
	c.Approved = fromMillis(at)
	if device != nil {
		d, err := deviceOf(device)
		if err != nil {
			return c, err
		}
		c.Device = &d
	}
	return c, nil
}

// AddChip keeps an approval; ErrExists if the chip is approved already.
func (t *Tx) AddChip(c Chip) error {
	id := c.ID()
	var device []byte
	if c.Device != nil {
		device = c.Device[:]
	}
	_, err := t.exec(`INSERT INTO chips (id, parent, signature, origin, device, actor, time) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		id[:], c.Parent, c.Signature, c.Origin, device, t.by.Actor, t.now())
	return err
}

// Chip finds the approval of a storage key; ErrNotFound: there is none.
func (t *Tx) Chip(parent []byte) (Chip, error) {
	id := Chip{Parent: parent}.ID()
	return get(t, scanChip, `SELECT `+chipColumns+` FROM chips WHERE id = ?`, id[:])
}

// Chips gives a page of those that are approved.
func (t *Tx) Chips(q Query) ([]Chip, string, error) {
	return page(t, listing{
		table: "chips", columns: chipColumns, key: "number",
		sort:   map[string]string{"approved": "time"},
		filter: map[string]string{},
		words:  map[string]map[string]string{"origin": column("origin", ChipProven, ChipVouched)},
	}, q, scanChip)
}
