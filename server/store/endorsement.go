package store

import (
	"fmt"

	"github.com/kagimori/kagimori/transport"
)

// AttestPolicy is what a terminal must prove of its key storage at enrollment.
type AttestPolicy string

// What may be asked of a terminal.
const (
	AttestNone     AttestPolicy = "none"     // its level is what it says
	AttestRequired AttestPolicy = "required" // a TPM; its bundle has no security code
)

// An Endorsement is a chip that has proven itself.
type Endorsement struct {
	Key  [32]byte // SHA-256 of its endorsement key
	Root []byte   // TPMT_PUBLIC of its storage root key: what keys are wrapped to
}

// Endorse notes which chip a device proved; nil: none.
func (t *Tx) Endorse(device transport.DeviceID, e *Endorsement) error {
	var key, root []byte
	if e != nil {
		key, root = e.Key[:], e.Root
	}
	return mustChange(t.exec(`UPDATE devices SET endorsement = ?, root = ?, actor = ?, time = ? WHERE id = ?`, key, root, t.by.Actor, t.now(), device[:]))
}

// EndorsementOf is the chip that a device proved; ErrNotFound: none.
func (t *Tx) EndorsementOf(device transport.DeviceID) (Endorsement, error) {
	return get(t, func(r scanner) (e Endorsement, err error) {
		var key []byte
		if err = r.Scan(&key, &e.Root); err == nil && len(key) != len(e.Key) {
			err = fmt.Errorf("endorsement of %d bytes", len(key))
		}
		if err == nil {
			e.Key = [32]byte(key)
		}
		return e, err
	}, `SELECT endorsement, root FROM devices WHERE id = ? AND endorsement IS NOT NULL`, device[:])
}

// EndorsedAs finds another enrolled terminal than name whose device is in the
// same chip: it proved the same endorsement key, or another one of a chip with
// the same root. ErrNotFound: there is none.
func (t *Tx) EndorsedAs(e Endorsement, name transport.Name) (Terminal, error) {
	return get(t, scanTerminal, `SELECT `+terminalColumns+` FROM terminals WHERE state = 'enrolled' AND name <> ?
		AND device IN (SELECT id FROM devices WHERE endorsement = ? OR root = ?) ORDER BY name LIMIT 1`, name, e.Key[:], e.Root)
}
