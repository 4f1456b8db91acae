package store

import (
	"bytes"
	"errors"
	"math/big"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// Origin is how a device came to hold a credential.
type Origin string

// The ways for a credential to come to a device.
const (
	OriginIssue  Origin = "issue"  // made there, certified here
	OriginCopy   Origin = "copy"   // copied from a device that still has it
	OriginMove   Origin = "move"   // copied from one that has deleted it since
	OriginImport Origin = "import" // made elsewhere, put into that device by a person
)

// HoldingState says whether a device has a credential.
type HoldingState string

// What may be of a holding.
const (
	HoldingActive  HoldingState = "active"
	HoldingTransit HoldingState = "transit" // given up in a move; nobody has proven yet to have it instead
	HoldingEnded   HoldingState = "ended"
)

// A Holding says that a device has a credential, or had it (DESIGN D7). One
// device has at most one that is not ended.
type Holding struct {
	Credential transport.Name
	Device     transport.DeviceID
	Terminal   transport.Name // the device's name at that time
	Since      time.Time
	Until      time.Time // zero while it is not ended
	Origin     Origin
	Source     transport.DeviceID // where it was copied from; zero when issued
	Txn        *transport.ID      // the key copy that brought it, if that is known
	Serial     *big.Int           // of the certificate that the device has
	Expires    time.Time          // of that certificate; PutHolding does not take it
	State      HoldingState
	Taken      *transport.ID // the key copy that takes it away, or took it

	seq int64
}

// Active says whether the device has it and may use it.
func (h Holding) Active() bool { return h.State == HoldingActive }

// Ended says whether the device is known not to have it any more.
func (h Holding) Ended() bool { return h.State == HoldingEnded }

const (
	holdingColumns = `seq, credential, device, terminal, since, until, origin, source, txn, serial, state, taken,
		COALESCE((SELECT not_after FROM certificates WHERE certificates.serial = holdings.serial), 0)`
	selectHoldings = `SELECT ` + holdingColumns + ` FROM holdings `
	endHoldings    = `UPDATE holdings SET state = 'ended', until = ?, actor = ?, time = ? WHERE state <> 'ended' AND `
)

func scanHolding(r scanner) (h Holding, err error) {
	var device, source, txn, serial, taken []byte
	var since, until, expires int64
	if err = r.Scan(&h.seq, &h.Credential, &device, &h.Terminal, &since, &until, &h.Origin, &source, &txn, &serial, &h.State, &taken, &expires); err != nil {
		return h, err
	}
	h.Since, h.Until, h.Expires = fromMillis(since), fromMillis(until), fromMillis(expires)
	if serial != nil {
		h.Serial = new(big.Int).SetBytes(serial)
	}
	h.Txn, h.Taken = idOf(txn), idOf(taken)
	if h.Device, err = deviceOf(device); err != nil {
		return h, err
	}
	h.Source, err = deviceOf(source)
	return h, err
}

// idOf reads an id column that may be NULL.
func idOf(b []byte) *transport.ID {
	var id transport.ID
	if len(b) != len(id) {
		return nil
	}
	copy(id[:], b)
	return &id
}

func idBytes(id *transport.ID) any {
	if id == nil {
		return nil
	}
	return id[:]
}

// PutHolding records an active holding. One that the device already has, by the
// same key copy and with the same certificate, stays as it is; one that was issued
// there and is issued there again goes on; any other that it has ends, and the new
// one begins.
func (t *Tx) PutHolding(h Holding) (changed bool, err error) {
	now, err := t.HoldingOf(h.Credential, h.Device)
	switch {
	case errors.Is(err, ErrNotFound):
		return true, t.openHolding(h)
	case err != nil:
		return false, err
	}
	sameSerial := bytes.Equal(serialBytes(now.Serial), serialBytes(h.Serial))
	sameTxn := h.Txn == nil || now.Txn != nil && *now.Txn == *h.Txn
	switch {
	case now.Active() && now.Terminal == h.Terminal && sameSerial && sameTxn:
		return false, nil
	case now.Active() && now.Terminal == h.Terminal && now.Origin == OriginIssue && h.Origin == OriginIssue:
		return true, mustChange(t.exec(`UPDATE holdings SET serial = ?, actor = ?, time = ? WHERE seq = ?`, serialBytes(h.Serial), t.by.Actor, t.now(), now.seq))
	}
	return true, errors.Join(t.EndHolding(now, h.Since), t.openHolding(h))
}

func (t *Tx) openHolding(h Holding) error {
	var source any
	if h.Source != (transport.DeviceID{}) {
		source = h.Source[:]
	}
	_, err := t.exec(`INSERT INTO holdings (credential, device, terminal, since, until, origin, source, txn, serial, state, actor, time)
		VALUES (?, ?, ?, ?, 0, ?, ?, ?, ?, 'active', ?, ?)`,
		h.Credential, h.Device[:], h.Terminal, toMillis(h.Since), h.Origin, source, idBytes(h.Txn), serialBytes(h.Serial), t.by.Actor, t.now())
	return err
}

// HoldingOf finds the holding of a device that has not ended.
func (t *Tx) HoldingOf(credential transport.Name, device transport.DeviceID) (Holding, error) {
	return get(t, scanHolding, selectHoldings+`WHERE credential = ? AND device = ? AND state <> 'ended'`, credential, device[:])
}

// Holdings lists who has or had a credential, first holder first: terminals tell
// times in seconds, so within one they stand as the server came to know them.
func (t *Tx) Holdings(credential transport.Name) ([]Holding, error) {
	return all(t, scanHolding, selectHoldings+`WHERE credential = ? ORDER BY since / 1000, seq`, credential)
}

// HeldBy lists what a terminal's devices, present and earlier, still hold, and
// what they have given up that nobody else has proven to have.
func (t *Tx) HeldBy(terminal transport.Name) ([]Holding, error) {
	return all(t, scanHolding, selectHoldings+`WHERE terminal = ? AND state <> 'ended' ORDER BY credential, device`, terminal)
}

// EndHolding ends one, at a time that is held between its begin and now.
func (t *Tx) EndHolding(h Holding, until time.Time) error {
	return mustChange(t.exec(endHoldings+`seq = ?`, t.bound(until, h.Since), t.by.Actor, t.now(), h.seq))
}

// bound is a time of the field as the database keeps it: not before begin, not
// after now; now if it is not known. It is in seconds, begin is not.
func (t *Tx) bound(at, begin time.Time) int64 {
	if at.Unix() == begin.Unix() {
		return toMillis(begin)
	}
	if at.IsZero() || at.After(t.by.At) || at.Before(begin) {
		return t.now()
	}
	return toMillis(at)
}

// EndHoldingOn ends what one device holds of a credential; that it holds nothing
// is no error.
func (t *Tx) EndHoldingOn(credential transport.Name, device transport.DeviceID) error {
	_, err := t.exec(endHoldings+`credential = ? AND device = ?`, t.now(), t.by.Actor, t.now(), credential, device[:])
	return err
}

// EndHoldingsWith ends those with a certificate.
func (t *Tx) EndHoldingsWith(serial *big.Int) error {
	_, err := t.exec(endHoldings+`serial = ?`, t.now(), t.by.Actor, t.now(), serialBytes(serial))
	return err
}

// EndHoldingsOf ends every holding of a credential.
func (t *Tx) EndHoldingsOf(credential transport.Name) error {
	_, err := t.exec(endHoldings+`credential = ?`, t.now(), t.by.Actor, t.now(), credential)
	return err
}

// GiveUp says that a device has given a holding up by a key copy, before anybody
// else has proven to have it.
func (t *Tx) GiveUp(h Holding, txn transport.ID) error {
	return mustChange(t.exec(`UPDATE holdings SET state = 'transit', taken = ?, actor = ?, time = ? WHERE seq = ? AND state = 'active'`,
		txn[:], t.by.Actor, t.now(), h.seq))
}

// TakenAway ends a holding by a key copy.
func (t *Tx) TakenAway(h Holding, txn transport.ID, until time.Time) error {
	return mustChange(t.exec(`UPDATE holdings SET state = 'ended', taken = ?, until = ?, actor = ?, time = ? WHERE seq = ? AND state <> 'ended'`,
		txn[:], t.bound(until, h.Since), t.by.Actor, t.now(), h.seq))
}

// TakeBack opens a holding again that a key copy had taken away, or was taking.
// ErrNotFound: there is none, or the device has another one by now.
func (t *Tx) TakeBack(credential transport.Name, device transport.DeviceID, txn transport.ID) error {
	h, err := t.LastHolding(credential, device)
	if err != nil {
		return err
	}
	if h.Taken == nil || *h.Taken != txn || h.Active() {
		return ErrNotFound
	}
	return mustChange(t.exec(`UPDATE holdings SET state = 'active', taken = NULL, until = 0, actor = ?, time = ? WHERE seq = ?`, t.by.Actor, t.now(), h.seq))
}

// LastHolding is the newest of a device, ended ones too.
func (t *Tx) LastHolding(credential transport.Name, device transport.DeviceID) (Holding, error) {
	return get(t, scanHolding, selectHoldings+`WHERE credential = ? AND device = ? ORDER BY seq DESC LIMIT 1`, credential, device[:])
}

// ClaimedBy says whether a device has proven to have something that a key copy
// moved to it.
func (t *Tx) ClaimedBy(txn transport.ID, device transport.DeviceID) (bool, error) {
	var n int
	err := t.row(`SELECT COUNT(*) FROM holdings WHERE device = ? AND txn = ? AND origin = 'move' AND state <> 'ended'`, []any{device[:], txn[:]}, &n)
	return n > 0, err
}

// CameBy says whether a device ever proved to have a credential that a key copy
// brought.
func (t *Tx) CameBy(credential transport.Name, device transport.DeviceID, txn transport.ID) (bool, error) {
	var n int
	err := t.row(`SELECT COUNT(*) FROM holdings WHERE credential = ? AND device = ? AND txn = ?`, []any{credential, device[:], txn[:]}, &n)
	return n > 0, err
}
