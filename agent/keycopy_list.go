package agent

import (
	"encoding/hex"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// What people see of the key copies that are on record: where each stands, what
// that means, and what is to be done.

// KeycopyDeal is one key copy on record.
type KeycopyDeal struct {
	Txn    transport.ID          `json:"txn"`
	Short  string                `json:"short"` // enough of Txn to name it
	Side   transport.KeycopySide `json:"side"`  // of this terminal
	Mode   transport.KeycopyMode `json:"mode"`
	Peer   transport.DeviceID    `json:"peer_device"`
	Name   transport.Name        `json:"peer,omitempty"` // if it proved one
	Remote string                `json:"remote"`
	At     time.Time             `json:"at,omitzero"`      // when the codes matched
	Since  time.Time             `json:"changed,omitzero"` // when it came to its phase
	Phase  string                `json:"phase"`
	// Open: it is not over. Moves: the old terminal gives keys up.
	Open   bool   `json:"open"`
	Moves  bool   `json:"moves"`
	Text   string `json:"text"`
	Next   string `json:"next,omitempty"`
	Items  int    `json:"items"`
	Taken  int    `json:"taken"`
	Moved  int    `json:"moving"` // of Taken
	Forced bool   `json:"forced,omitempty"`
	// Conflict: both ends use what moved.
	Conflict bool `json:"conflict,omitempty"`
	// Reported: the server knows this phase. Refusal is why it would not.
	Reported bool   `json:"reported"`
	Refusal  string `json:"report_refused,omitempty"`
	Trouble  string `json:"trouble,omitempty"` // of the last attempt to go on
}

// KeycopyDealKey is one key of it.
type KeycopyDealKey struct {
	ID       transport.Name           `json:"credential"`
	Kind     transport.CredentialKind `json:"kind,omitempty"`
	Service  transport.Name           `json:"service,omitempty"`
	Subject  transport.Name           `json:"subject,omitempty"`
	Transfer transport.Transfer       `json:"transfer"`
	Taken    bool                     `json:"taken"`
	// Here is what has become of it on this terminal, in words.
	Here string `json:"here"`
	Why  string `json:"why,omitempty"` // it was not taken
}

// KeycopyDealPage is a piece of one key copy in full: the first has all but Keys
// of the rest.
type KeycopyDealPage struct {
	Deal     *KeycopyDeal     `json:"copy,omitempty"`
	Keys     []KeycopyDealKey `json:"keys"`
	Withheld []KeycopyHeld    `json:"withheld,omitempty"`
	More     int              `json:"withheld_more,omitempty"`
	Receipt  string           `json:"receipt_signature,omitempty"` // of the new terminal's identity, in hexadecimal
}

// deals lists what is on record, the newest first.
func (a *Agent) deals() (list []KeycopyDeal, err error) {
	v, err := a.open()
	if err != nil {
		return nil, err
	}
	list = []KeycopyDeal{}
	err = v.store.View(func(tx *store.Tx) error {
		return eachDeal(tx, func(d *dealRecord) error {
			k, err := a.describe(tx, d)
			list = append(list, k)
			return err
		})
	})
	slices.Reverse(list)
	sort.SliceStable(list, func(i, j int) bool {
		x, y := &list[i], &list[j]
		if x.Open != y.Open {
			return x.Open
		}
		return x.At.After(y.At)
	})
	return list, err
}

// describe puts a transaction into words.
func (a *Agent) describe(tx *store.Tx, d *dealRecord) (KeycopyDeal, error) {
	t, n := &d.Deal, d.counts()
	k := KeycopyDeal{
		Txn: t.ID, Short: short(t.ID), Side: t.Side, Mode: t.Mode, Peer: t.Peer, Name: t.Name, Remote: t.Remote, At: dateOf(t.At), Since: dateOf(d.Changed),
		Phase: t.Phase.String(), Open: t.Phase.Open(), Moves: d.moves(), Items: int(n.Items), Taken: int(n.Taken), Moved: int(n.Moved), Forced: t.Forced, Conflict: t.Conflict,
	}
	k.Text, k.Next = inWords(d, a.cfg.Program)
	if t.Conflict {
		k.Text, k.Next = k.Text+"; "+bothUse, bothUseNext
	}
	var waits reportRecord
	found, err := tx.Get(bucketReports, dealKey(t.ID), &waits)
	k.Reported, k.Refusal = !found, waits.Fault
	if k.Open {
		k.Trouble = a.copies.trouble(t.ID)
	}
	return k, err
}

func dateOf(unix int64) (t time.Time) {
	if unix != 0 {
		t = time.Unix(unix, 0).UTC()
	}
	return t
}

// inWords says where a transaction stands, and what is to be done.
func inWords(d *dealRecord, program string) (text, next string) {
	t, n := &d.Deal, d.counts()
	who := peerText(t.Name, &t.Peer, t.Remote)
	keys, moved := count(int(n.Taken), "key"), count(int(n.Moved), "key")
	verb := func(v string) string { return fmt.Sprintf("%s keycopy %s %s", program, v, short(t.ID)) }
	switch t.Phase {
	case transport.KeycopyOffered:
		return fmt.Sprintf("%s sent to %s, which has not confirmed them", count(int(n.Items), "key"), who),
			"leave this terminal on: the new one comes back by itself; to end it: " + verb("abandon")
	case transport.KeycopyCommitted:
		return fmt.Sprintf("%s given to %s and disabled here, until that says it uses %s", moved, who, them(int(n.Moved))),
			"leave this terminal on: the new one comes back by itself; only if that one is gone for good: " + verb("reclaim")
	case transport.KeycopyDone:
		if n.Moved == 0 {
			return fmt.Sprintf("%s copied to %s; this terminal still holds %s", keys, who, them(int(n.Taken))), ""
		}
		return fmt.Sprintf("%s moved to %s and destroyed here%s", moved, who, copiedToo(n, "; %s copied, which this terminal still holds")), ""
	case transport.KeycopyReclaimed:
		return fmt.Sprintf("%s taken back from %s: an administrator said that it is gone", moved, who), "if it turns up again, it drops them when it reaches this terminal"
	case transport.KeycopyAbandoned:
		return fmt.Sprintf("ended before %s confirmed anything; nothing has changed here", who), ""
	case transport.KeycopyStarted:
		return fmt.Sprintf("%s under way from %s; nothing is installed yet", count(int(n.Items), "key"), who),
			"leave both terminals on, it goes on by itself; now: " + verb("resume")
	case transport.KeycopyStaged:
		if n.Moved == 0 {
			return fmt.Sprintf("%s installed here; %s has not confirmed that it knows", keys, who), "leave the old terminal on, it goes on by itself; now: " + verb("resume")
		}
		return fmt.Sprintf("%s from %s waiting here, not in use%s", moved, who, copiedToo(n, "; %s copied and in use")),
			"leave the old terminal on, it goes on by itself; now: " + verb("resume") + "; only if the old one is gone for good: " + verb("activate")
	case transport.KeycopyActive:
		next := "leave the old terminal on, it goes on by itself; now: " + verb("resume")
		if t.Forced {
			next = "do not use the old terminal any more; should it turn up, let this one reach it, and it gives its keys up"
		}
		next += "; if it never will: " + verb("abandon") + " (the keys stay in use here)"
		return fmt.Sprintf("%s moved from %s and in use here; that has not confirmed that it destroyed %s", moved, who, them(int(n.Moved))), next
	case transport.KeycopyClosed:
		if n.Moved == 0 {
			return fmt.Sprintf("%s copied from %s, which still holds %s", keys, who, them(int(n.Taken))), ""
		}
		return fmt.Sprintf("%s moved from %s, which holds %s no more%s", moved, who, them(int(n.Moved)), copiedToo(n, "; %s copied, which it still holds")), ""
	case transport.KeycopyUnreceipted:
		if t.Conflict {
			return fmt.Sprintf("%s moved from %s and in use here, although that took %s back%s", moved, who, them(int(n.Moved)), copiedToo(n, "; %s copied")), ""
		}
		if n.Moved > 0 {
			return fmt.Sprintf("%s moved from %s and in use here; the copy ended before that said that it holds %s no more%s", moved, who, them(int(n.Moved)),
				copiedToo(n, "; %s copied")), ""
		}
		return fmt.Sprintf("%s copied from %s, which ended the copy and did not note that they are here%s", keys, who,
			map[bool]string{true: "; what was to move is dropped"}[toMove(t)]), ""
	case transport.KeycopyDropped:
		return fmt.Sprintf("ended; nothing from %s is here", who), ""
	}
	return t.Phase.String(), ""
}

// toMove says whether something was to move.
func toMove(t *keycopy.Transaction) bool {
	return slices.ContainsFunc(t.Items, func(e transport.KeycopyEntry) bool { return e.Transfer == transport.TransferMove })
}

// When somebody was wrong about an end's being gone.
const (
	bothUse     = "both terminals use what moved"
	bothUseNext = "take one of the two out of service, or have its credentials issued anew: kagimori-server credential issue"
)

// outcome says what has come of a transaction.
func outcome(t *keycopy.Transaction) string {
	text, _ := inWords(&dealRecord{Deal: *t}, "")
	return text
}

// copiedToo is for a transaction that copies some keys and moves others.
func copiedToo(n dealCounts, format string) string {
	if n.Taken == n.Moved {
		return ""
	}
	return fmt.Sprintf(format, count(int(n.Taken-n.Moved), "key"))
}

// pickDeal finds the transaction that somebody names: by its id, or by so much of
// it that there is no other. With no name it is the one that is open.
func (a *Agent) pickDeal(name string, fits func(*keycopy.Transaction) bool) (transport.ID, error) {
	v, err := a.open()
	if err != nil {
		return transport.ID{}, err
	}
	next := "see: " + a.cfg.Program + " keycopy list"
	name = strings.ToLower(name)
	if name != "" && (len(name) < minID || strings.Trim(name, "0123456789abcdef") != "") {
		return transport.ID{}, control.Problemf(control.BadInput, next, "%.40q names no key copy: give the first %d digits of its id, or more", name, minID)
	}
	var found []transport.ID
	err = v.store.View(func(tx *store.Tx) error {
		return eachDeal(tx, func(d *dealRecord) error {
			if name != "" && strings.HasPrefix(d.Deal.ID.String(), name) || name == "" && fits(&d.Deal) {
				found = append(found, d.Deal.ID)
			}
			return nil
		})
	})
	switch {
	case err != nil:
		return transport.ID{}, err
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return transport.ID{}, control.Problemf(control.BadInput, "name one of them; "+next, "there is more than one such key copy")
	case name == "":
		return transport.ID{}, control.Problemf(control.NotFound, next, "there is no key copy for which that could be done")
	}
	return transport.ID{}, control.Problemf(control.NotFound, next, "no key copy %s is on record", name)
}

// minID is how many hex digits name a transaction at least.
const minID = 4

// showDeal gives one in full.
func (a *Agent) showDeal(id transport.ID) (page *KeycopyDealPage, err error) {
	v, err := a.open()
	if err != nil {
		return nil, err
	}
	err = v.store.View(func(tx *store.Tx) error {
		d, err := findDeal(tx, id)
		defer d.wipe()
		if err != nil || d == nil {
			return err
		}
		k, err := a.describe(tx, d)
		if err != nil {
			return err
		}
		t := &d.Deal
		page = &KeycopyDealPage{Deal: &k, Keys: []KeycopyDealKey{}, Withheld: heldOf(t.Withheld), More: int(t.More), Receipt: hex.EncodeToString(t.Signature)}
		why := make(map[transport.Name]string, len(d.Refused))
		for _, r := range d.Refused {
			why[r.ID] = r.Why
		}
		taken := map[transport.Name]bool{}
		for _, id := range t.Taken() {
			taken[id] = true
		}
		for _, e := range t.Items {
			key := KeycopyDealKey{ID: e.ID, Kind: e.Kind, Service: e.Service, Subject: e.Subject, Transfer: e.Transfer, Taken: taken[e.ID], Why: why[e.ID]}
			if key.Here, err = v.here(tx, t, e.ID); err != nil {
				return err
			}
			page.Keys = append(page.Keys, key)
		}
		return nil
	})
	if err == nil && page == nil {
		err = control.Problemf(control.NotFound, "see: "+a.cfg.Program+" keycopy list", "no key copy %s is on record", short(id))
	}
	return page, err
}

// here says what has become of a credential on this terminal.
func (v *vault) here(tx *store.Tx, t *keycopy.Transaction, id transport.Name) (string, error) {
	var waits holdingRecord
	defer waits.wipe()
	if staged, err := tx.Get(bucketStaged, stagedKey(t.ID, id), &waits); staged || err != nil {
		return "staged, not in use", err
	}
	h, err := holding(tx, id)
	defer h.wipe()
	switch {
	case err != nil:
		return "", err
	case h == nil:
		return "not here", nil
	}
	if why := h.unusable(v.clock); why != "" {
		return "held, " + why, nil
	}
	return "held and in use", nil
}

// deals fills in what is on record.
func (s *KeycopyStatus) deals(tx *store.Tx, program string) error {
	var last *dealRecord
	err := eachDeal(tx, func(d *dealRecord) error {
		if d.Deal.Phase.Open() {
			text, next := inWords(d, program)
			s.Open = append(s.Open, KeycopyOpen{Short: short(d.Deal.ID), Text: text, Next: next, Since: dateOf(d.Deal.At)})
		}
		if last == nil || d.Deal.At >= last.Deal.At {
			held := *d
			last = &held
		}
		return nil
	})
	if err != nil || last == nil {
		return err
	}
	s.Last, _ = inWords(last, program)
	s.LastAt = dateOf(last.Deal.At)
	s.Open = s.Open[:min(len(s.Open), openShown)]
	return nil
}

// openShown is how many open key copies the status names.
const openShown = 8

// KeycopyOpen is a key copy that is not over.
type KeycopyOpen struct {
	Short string    `json:"txn"`
	Text  string    `json:"text"`
	Next  string    `json:"next"`
	Since time.Time `json:"since,omitzero"`
}
