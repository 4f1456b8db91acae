package keycopy

// What of a terminal's credentials goes into a copy, and why the rest does not.

import (
	"fmt"
	"slices"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// An Offer is a choice of credentials, encoded in the order of its manifest.
type Offer struct {
	transport.KeycopyManifest
	records []transport.Sensitive // nil once sent
	total   int                   // bytes of records
	listed  int                   // bytes of Items, encoded
}

// Choose decides which records a copy carries. selected names them; empty
// means all. now judges expiry. It is what `keycopy offer` shows before a code
// is made, and what a Source does again after the codes match. The records
// stay the caller's; Wipe the offer.
func Choose(records []transport.CredentialRecord, selected []transport.Name, now time.Time) (*Offer, error) {
	o := &Offer{}
	held := map[transport.Name]bool{}
	for i := range records {
		r := &records[i]
		if held[r.ID] {
			o.Wipe()
			return nil, fmt.Errorf("credential %s is there twice", r.ID)
		}
		held[r.ID] = true
		if len(selected) > 0 && !slices.Contains(selected, r.ID) {
			continue
		}
		why := withhold(r, now)
		if why == 0 {
			var err error
			if why, err = o.add(r); err != nil {
				o.Wipe()
				return nil, fmt.Errorf("encode credential %s: %w", r.ID, err)
			}
		}
		if why != 0 {
			o.withhold(r.ID, why)
		}
	}
	for _, id := range selected {
		if !held[id] {
			o.withhold(id, transport.KeycopyNotHeld)
		}
	}
	if len(o.Items) == 0 && len(selected) > 0 {
		o.list(records, selected, now)
	}
	return o, nil
}

// list says what could be asked for, to whoever asked for nothing of it.
func (o *Offer) list(records []transport.CredentialRecord, selected []transport.Name, now time.Time) {
	for i := range records {
		if r := &records[i]; !slices.Contains(selected, r.ID) && withhold(r, now) == 0 {
			o.withhold(r.ID, transport.KeycopyNotSelected)
		}
	}
}

// add takes r into the offer, or says why it cannot be in this one.
func (o *Offer) add(r *transport.CredentialRecord) (transport.KeycopyReason, error) {
	record, err := transport.Marshal(r)
	if err != nil {
		return 0, err
	}
	entry := transport.NewKeycopyEntry(r, len(record))
	announced, err := transport.Marshal(entry)
	if err != nil {
		clear(record)
		return 0, err
	}
	var why transport.KeycopyReason
	switch {
	case len(record) > transport.MaxKeycopyRecord || o.total+len(record) > transport.MaxKeycopyTotal ||
		len(o.Items) == transport.MaxKeycopyItems || o.listed+len(announced) > maxListed:
		why = transport.KeycopyTooLarge
	case entry.Check() != nil:
		why = transport.KeycopyDamaged
	}
	if why != 0 {
		clear(record)
		return why, nil
	}
	o.total, o.listed = o.total+len(record), o.listed+len(announced)
	o.Items, o.records = append(o.Items, entry), append(o.records, record)
	return 0, nil
}

// maxListed leaves room in GRANT for the longest list of withheld credentials
// (an id of 63 characters and a reason make 69 bytes), tag and headers.
const maxListed = transport.MaxKeycopyGrant - transport.MaxKeycopyWithheld*(transport.MaxName+6) - 256

// withhold is why a record may not be copied; 0 if it may.
func withhold(r *transport.CredentialRecord, now time.Time) transport.KeycopyReason {
	switch {
	case r.Transfer == transport.TransferMove:
		return transport.KeycopyMoveOnly
	case r.Transfer != transport.TransferCopy:
		return transport.KeycopyNeverTransfer
	case r.ChipOnly:
		return transport.KeycopyChipOnly
	case r.State != transport.CredentialActive:
		return transport.KeycopyInvalid
	case r.Expires != 0 && !now.Before(time.Unix(r.Expires, 0)):
		return transport.KeycopyExpired
	}
	return 0
}

func (o *Offer) withhold(id transport.Name, why transport.KeycopyReason) {
	_, err := transport.ParseName(string(id))
	if err != nil || len(o.Withheld) == transport.MaxKeycopyWithheld {
		o.More++
		return
	}
	o.Withheld = append(o.Withheld, transport.KeycopyWithheld{ID: id, Reason: why})
}

// take lends record n for the last time: the caller wipes it.
func (o *Offer) take(n int) transport.Sensitive {
	r := o.records[n]
	o.records[n] = nil
	return r
}

// Wipe destroys the encoded records.
func (o *Offer) Wipe() {
	if o == nil {
		return
	}
	for _, r := range o.records {
		r.Wipe()
	}
	o.records = nil
}

// WipeRecords destroys the secrets of records.
func WipeRecords(records []transport.CredentialRecord) {
	for i := range records {
		records[i].Secret.Bytes.Wipe()
	}
}
