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
}

// Choose decides which records a copy carries. selected names them; empty
// means all. now judges expiry. It is what `keycopy offer` shows before a code
// is made, and what a Source does again after the codes match. The records
// stay the caller's; Wipe the offer.
func Choose(records []transport.CredentialRecord, selected []transport.Name, now time.Time) (*Offer, error) {
	o := &Offer{}
	held := map[transport.Name]bool{}
	total, listed := 0, 0
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
		if why := withhold(r, now); why != 0 {
			o.withhold(r.ID, why)
			continue
		}
		record, err := transport.Marshal(r)
		if err != nil {
			o.Wipe()
			return nil, fmt.Errorf("encode credential %s: %w", r.ID, err)
		}
		entry := transport.NewKeycopyEntry(r, len(record))
		announce, err := transport.Marshal(entry)
		if err != nil {
			o.Wipe()
			return nil, fmt.Errorf("encode manifest: %w", err)
		}
		if len(record) > transport.MaxKeycopyRecord || total+len(record) > transport.MaxKeycopyTotal ||
			len(o.Items) == transport.MaxKeycopyItems || listed+len(announce) > maxListed {
			clear(record)
			o.withhold(r.ID, transport.KeycopyTooLarge)
			continue
		}
		total, listed = total+len(record), listed+len(announce)
		o.Items = append(o.Items, entry)
		o.records = append(o.records, record)
	}
	for _, id := range selected {
		if !held[id] {
			o.withhold(id, transport.KeycopyNotHeld)
		}
	}
	return o, nil
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
	if len(o.Withheld) == transport.MaxKeycopyWithheld {
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
