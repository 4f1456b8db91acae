package transport

import (
	"fmt"
)

// What a Source offers to an authenticated Target, and what it holds back and
// why. Both are for people to read as well: nothing is left out silently.

// A KeycopyEntry announces one item. Length is of the encoded record, in bytes.
type KeycopyEntry struct {
	ID       Name           `cbor:"1,keyasint"`
	Subject  Name           `cbor:"2,keyasint"`
	Kind     CredentialKind `cbor:"3,keyasint"`
	Service  Name           `cbor:"4,keyasint"`
	Length   uint32         `cbor:"5,keyasint"`
	Transfer Transfer       `cbor:"6,keyasint"`
	ChipOnly bool           `cbor:"7,keyasint"`
	Usage    Usage          `cbor:"8,keyasint"`
}

// NewKeycopyEntry announces a record whose encoding has length bytes.
func NewKeycopyEntry(r *CredentialRecord, length int) KeycopyEntry {
	return KeycopyEntry{ID: r.ID, Subject: r.Subject, Kind: r.Kind, Service: r.Service, Length: uint32(length),
		Transfer: r.Transfer, ChipOnly: r.ChipOnly, Usage: r.Usage}
}

// KeycopyReason is why a credential is not offered.
type KeycopyReason uint8

// The reasons. The list only grows.
const (
	KeycopyNeverTransfer KeycopyReason = iota + 1 // transfer: never
	KeycopyMoveOnly                               // transfer: move, and this is a copy
	KeycopyChipOnly                               // its key may only be inside a chip
	KeycopyExpired
	KeycopyInvalid  // invalidated
	KeycopyNotHeld  // asked for by id, and not here
	KeycopyTooLarge // over a limit of one transaction
	KeycopyDamaged  // its record cannot be announced
	// KeycopyNotSelected is in a manifest without items only: what could have
	// been asked for instead.
	KeycopyNotSelected
	// KeycopyNoChip: its key goes from chip to chip, and the Target named none.
	KeycopyNoChip
	// KeycopyChipNotApproved: the fleet has not approved the Target's chip.
	KeycopyChipNotApproved
	// KeycopyChipStays: its key was made so that it can never leave its chip.
	KeycopyChipStays
	// KeycopyChipFailed: the Source's chip did not give it.
	KeycopyChipFailed
	// KeycopyMoving: it is disabled here, on its way to another terminal.
	KeycopyMoving
)

var keycopyReasonText = map[KeycopyReason]string{
	KeycopyNeverTransfer: "it may not leave its terminal; issue a new one to the new terminal: kagimori-server credential issue (if it was imported: kagimori credential import, there)",
	KeycopyMoveOnly:      "it may only be moved, and this is a copy",
	KeycopyChipOnly:      "its key must stay in a chip; issue a new one to the new terminal: kagimori-server credential issue",
	KeycopyExpired:       "it is expired; have it issued anew",
	KeycopyInvalid:       "it is invalidated; enable it first",
	KeycopyNotHeld:       "the old terminal does not hold it",
	KeycopyTooLarge:      "it does not fit in this copy; copy it in a further one",
	KeycopyDamaged:       "its record is damaged; issue a new one to the new terminal: kagimori-server credential issue (if it was imported: kagimori credential import, there)",
	KeycopyNotSelected:   "it was not asked for",

	KeycopyNoChip:          "its key goes only from chip to chip, and the new terminal has no approved chip: there, kagimori chip show says what is missing; or issue a new one to it: kagimori-server credential issue",
	KeycopyChipNotApproved: "its key goes only to chips that the fleet has approved, and the new terminal's is not one: there, kagimori chip show says what is missing; or issue a new one to it: kagimori-server credential issue",
	KeycopyChipStays:       "its key was made to stay in its chip; issue a new one to the new terminal: kagimori-server credential issue",
	KeycopyChipFailed:      "the old terminal's chip did not give its key: its log says why; try again, or issue a new one to the new terminal: kagimori-server credential issue",
	KeycopyMoving:          "it is being moved to another terminal",
}

func (r KeycopyReason) String() string {
	if s, ok := keycopyReasonText[r]; ok {
		return s
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// KeycopyWithheld is a credential that is not offered.
type KeycopyWithheld struct {
	ID     Name          `cbor:"1,keyasint"`
	Reason KeycopyReason `cbor:"2,keyasint"`
}

// A KeycopyManifest is the table of contents of a transaction, in the order of
// its items. More counts what Withheld has no room for.
type KeycopyManifest struct {
	Items    []KeycopyEntry    `cbor:"1,keyasint"`
	Withheld []KeycopyWithheld `cbor:"2,keyasint"`
	More     uint32            `cbor:"3,keyasint"`
}

// DecodeKeycopyManifest reads the manifest of a GRANT, and checks that it keeps
// the limits and names each item once.
func DecodeKeycopyManifest(data []byte) (*KeycopyManifest, error) {
	var m KeycopyManifest
	if err := Unmarshal(data, &m, MaxKeycopyGrant); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if len(m.Items) > MaxKeycopyItems || len(m.Withheld) > MaxKeycopyWithheld {
		return nil, fmt.Errorf("manifest: %w: %d items, %d withheld", ErrMalformed, len(m.Items), len(m.Withheld))
	}
	seen := make(map[Name]bool, len(m.Items))
	total := 0
	for _, e := range m.Items {
		if err := e.Check(); err != nil {
			return nil, fmt.Errorf("manifest: %w: %w", ErrMalformed, err)
		}
		if seen[e.ID] {
			return nil, fmt.Errorf("manifest: %w: %s is there twice", ErrMalformed, e.ID)
		}
		seen[e.ID] = true
		total += int(e.Length)
	}
	if total > MaxKeycopyTotal {
		return nil, fmt.Errorf("manifest: %w: %d bytes, the limit is %d", ErrMalformed, total, MaxKeycopyTotal)
	}
	for _, w := range m.Withheld {
		if _, err := ParseName(string(w.ID)); err != nil {
			return nil, fmt.Errorf("manifest: %w: %w", ErrMalformed, err)
		}
	}
	return &m, nil
}

// Check refuses an entry that no manifest may have: a length over its limit, or
// a name, kind or usage that does not look like one.
func (e *KeycopyEntry) Check() error {
	if e.Length == 0 || e.Length > MaxKeycopyRecord {
		return fmt.Errorf("%s has %d bytes, the limit is %d", e.ID, e.Length, MaxKeycopyRecord)
	}
	// Kind and Usage may be ones that are not known here, but people will see them.
	for _, n := range []string{string(e.ID), string(e.Subject), string(e.Service), string(e.Kind), string(e.Usage)} {
		if _, err := ParseName(n); err != nil {
			return err
		}
	}
	return nil
}
