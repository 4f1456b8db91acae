package store

import (
	"math/big"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// Origin is how a device came to hold a credential.
type Origin string

// The ways for a credential to come to a device.
const (
	OriginIssue Origin = "issue" // made there, certified here
	OriginCopy  Origin = "copy"  // copied from a device that still has it
	OriginMove  Origin = "move"  // copied from one that has deleted it since
)

// A Holding says that a device has a credential (DESIGN D7).
type Holding struct {
	Credential transport.Name
	Device     transport.DeviceID
	Terminal   transport.Name // the device's name at that time
	Since      time.Time
	Origin     Origin
	Source     transport.DeviceID // where it was copied from; zero when issued
	Serial     *big.Int           // of the certificate that the device has
	Expires    time.Time          // of that certificate; PutHolding does not take it
	Active     bool
}

const (
	holdingColumns = `credential, device, terminal, since, origin, source, serial, state`
	holdingExpires = `, COALESCE((SELECT not_after FROM certificates WHERE certificates.serial = holdings.serial), 0)`
	holdingActive  = "active"
	holdingEnded   = "ended"
)

func scanHolding(r scanner) (h Holding, err error) {
	var device, source, serial []byte
	var since, expires int64
	var state string
	if err = r.Scan(&h.Credential, &device, &h.Terminal, &since, &h.Origin, &source, &serial, &state, &expires); err != nil {
		return h, err
	}
	h.Since, h.Expires, h.Active = fromMillis(since), fromMillis(expires), state == holdingActive
	if serial != nil {
		h.Serial = new(big.Int).SetBytes(serial)
	}
	if h.Device, err = deviceOf(device); err != nil {
		return h, err
	}
	h.Source, err = deviceOf(source)
	return h, err
}

// PutHolding records an active holding. One that the device already has with
// the same certificate stays as it is; one that had ended is opened again.
func (t *Tx) PutHolding(h Holding) (changed bool, err error) {
	var source any
	if h.Source != (transport.DeviceID{}) {
		source = h.Source[:]
	}
	n, err := t.exec(`INSERT INTO holdings (`+holdingColumns+`, actor, time) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (credential, device) DO UPDATE SET terminal = excluded.terminal, since = excluded.since, origin = excluded.origin,
			source = excluded.source, serial = excluded.serial, state = excluded.state, actor = excluded.actor, time = excluded.time
		WHERE holdings.state <> excluded.state OR holdings.terminal <> excluded.terminal OR holdings.serial IS DISTINCT FROM excluded.serial`,
		h.Credential, h.Device[:], h.Terminal, toMillis(h.Since), h.Origin, source, serialBytes(h.Serial), holdingActive, t.by.Actor, t.now())
	return n > 0, err
}

// HoldingOf finds the holding of a device that is active.
func (t *Tx) HoldingOf(credential transport.Name, device transport.DeviceID) (Holding, error) {
	return get(t, scanHolding, `SELECT `+holdingColumns+holdingExpires+` FROM holdings WHERE credential = ? AND device = ? AND state = 'active'`, credential, device[:])
}

// Holdings lists who has or had a credential, first holder first.
func (t *Tx) Holdings(credential transport.Name) ([]Holding, error) {
	return all(t, scanHolding, `SELECT `+holdingColumns+holdingExpires+` FROM holdings WHERE credential = ? ORDER BY since, device`, credential)
}

// HeldBy lists what a terminal's devices, present and earlier, still hold.
func (t *Tx) HeldBy(terminal transport.Name) ([]Holding, error) {
	return all(t, scanHolding, `SELECT `+holdingColumns+holdingExpires+` FROM holdings WHERE terminal = ? AND state = 'active' ORDER BY credential, device`, terminal)
}

// EndHoldings ends all that HeldBy lists.
func (t *Tx) EndHoldings(terminal transport.Name) error {
	_, err := t.exec(`UPDATE holdings SET state = ?, actor = ?, time = ? WHERE terminal = ? AND state = 'active'`,
		holdingEnded, t.by.Actor, t.now(), terminal)
	return err
}

// EndHoldingsWith ends those with a certificate.
func (t *Tx) EndHoldingsWith(serial *big.Int) error {
	_, err := t.exec(`UPDATE holdings SET state = ?, actor = ?, time = ? WHERE serial = ? AND state = 'active'`,
		holdingEnded, t.by.Actor, t.now(), serialBytes(serial))
	return err
}

// EndHoldingsOf ends every holding of a credential.
func (t *Tx) EndHoldingsOf(credential transport.Name) error {
	_, err := t.exec(`UPDATE holdings SET state = ?, actor = ?, time = ? WHERE credential = ? AND state = 'active'`,
		holdingEnded, t.by.Actor, t.now(), credential)
	return err
}
