package keycopy

// What of a terminal's credentials goes into a transaction, and why the rest does
// not.

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

// A Choice is what decides which credentials a transaction carries, and how.
type Choice struct {
	// Select names them; empty means all.
	Select []transport.Name
	// Want is the Target's: with TransferCopy it takes nothing that moves.
	Want transport.Transfer
	// Move makes everything move.
	Move bool
	// Now judges expiry.
	Now time.Time
	// Withheld are credentials that are not among the records, and why.
	Withheld []transport.KeycopyWithheld
}

// Choose is what `keycopy offer` shows before a code is made, and what a Source
// does again after the codes match. The records stay the caller's; Wipe the
// offer.
func Choose(records []transport.CredentialRecord, c Choice) (*Offer, error) {
	o := &Offer{}
	held := map[transport.Name]bool{}
	for i := range records {
		r := &records[i]
		if held[r.ID] {
			o.Wipe()
			return nil, fmt.Errorf("credential %s is there twice", r.ID)
		}
		held[r.ID] = true
		if !c.selects(r.ID) {
			continue
		}
		why := c.withhold(r)
		if why == 0 {
			var err error
			if why, err = o.add(r, c.transfer(r)); err != nil {
				o.Wipe()
				return nil, fmt.Errorf("encode credential %s: %w", r.ID, err)
			}
		}
		if why != 0 {
			o.withhold(r.ID, why)
		}
	}
	for _, w := range c.Withheld {
		if !held[w.ID] && c.selects(w.ID) {
			o.withhold(w.ID, w.Reason)
		}
		held[w.ID] = true
	}
	for _, id := range c.Select {
		if !held[id] {
			o.withhold(id, transport.KeycopyNotHeld)
		}
	}
	if len(o.Items) == 0 && len(c.Select) > 0 {
		o.list(records, c)
	}
	return o, nil
}

// again makes the offer of a transaction anew, from its announcement. It fails
// if it does not come out the same.
func again(records []transport.CredentialRecord, entries []transport.KeycopyEntry, now time.Time) (*Offer, error) {
	held := make(map[transport.Name]*transport.CredentialRecord, len(records))
	for i := range records {
		held[records[i].ID] = &records[i]
	}
	o := &Offer{}
	for _, entry := range entries {
		r := held[entry.ID]
		c := Choice{Want: transport.TransferMove, Move: entry.Transfer == transport.TransferMove, Now: now}
		if r == nil || c.withhold(r) != 0 {
			o.Wipe()
			return nil, fmt.Errorf("credential %s is not to be had any more", entry.ID)
		}
		why, err := o.add(r, c.transfer(r))
		if err == nil && (why != 0 || o.Items[len(o.Items)-1] != entry) {
			err = fmt.Errorf("credential %s is not what was announced", entry.ID)
		}
		if err != nil {
			o.Wipe()
			return nil, err
		}
	}
	return o, nil
}

func (c *Choice) selects(id transport.Name) bool {
	return len(c.Select) == 0 || slices.Contains(c.Select, id)
}

// transfer is what happens to a record that may go.
func (c *Choice) transfer(r *transport.CredentialRecord) transport.Transfer {
	if c.Move && r.Transfer == transport.TransferCopy {
		return transport.TransferMove
	}
	return r.Transfer
}

// withhold is why a record may not go; 0 if it may.
func (c *Choice) withhold(r *transport.CredentialRecord) transport.KeycopyReason {
	switch transfer := c.transfer(r); {
	case transfer != transport.TransferCopy && transfer != transport.TransferMove:
		return transport.KeycopyNeverTransfer
	case transfer == transport.TransferMove && c.Want == transport.TransferCopy:
		return transport.KeycopyMoveOnly
	case r.Secret.Form == transport.SecretTPM || r.ChipOnly && r.Secret.Form != transport.SecretDuplicate:
		return transport.KeycopyChipOnly
	case r.State != transport.CredentialActive:
		return transport.KeycopyInvalid
	case r.Expires != 0 && !c.Now.Before(time.Unix(r.Expires, 0)):
		return transport.KeycopyExpired
	}
	return 0
}

// list says what could be asked for, to whoever asked for nothing of it.
func (o *Offer) list(records []transport.CredentialRecord, c Choice) {
	for i := range records {
		if r := &records[i]; !c.selects(r.ID) && c.withhold(r) == 0 {
			o.withhold(r.ID, transport.KeycopyNotSelected)
		}
	}
}

// add takes r into the offer, or says why it cannot be in this one. transfer is
// what is announced to happen to it.
func (o *Offer) add(r *transport.CredentialRecord, transfer transport.Transfer) (transport.KeycopyReason, error) {
	record, err := transport.Marshal(r)
	if err != nil {
		return 0, err
	}
	entry := transport.NewKeycopyEntry(r, len(record))
	entry.Transfer = transfer
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
