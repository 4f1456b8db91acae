package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// What administrators see of key copies.

// KeycopyInfo is one transaction, as both ends tell of it.
type KeycopyInfo struct {
	Txn    transport.ID          `json:"txn"`
	Mode   transport.KeycopyMode `json:"mode"`
	Source KeycopyEndInfo        `json:"source"`
	Target KeycopyEndInfo        `json:"target"`
	Items  int                   `json:"items"`
	Moved  int                   `json:"moved"` // of them taken, and given up by the source
	Status store.KeycopyStatus   `json:"status"`
	// Waits says what an open one waits for.
	Waits    string           `json:"waits,omitempty"`
	Problems []KeycopyProblem `json:"problems,omitempty"`
	// Receipt is "none", "good" (signed by the target's identity, for this), "bad",
	// or "unchecked". Signature is of it.
	Receipt   string                `json:"receipt"`
	Signature []byte                `json:"signature,omitempty"`
	Settled   transport.KeycopySide `json:"settled,omitempty"` // the end that was let to act alone
	SettledAt time.Time             `json:"settled_at,omitzero"`
	Refused   time.Time             `json:"refused,omitzero"` // when the other one was first told that it may not
	Changed   time.Time             `json:"changed"`
	Row       int64                 `json:"row"`
}

// KeycopyEndInfo is what one end says.
type KeycopyEndInfo struct {
	Terminal transport.Name     `json:"terminal,omitempty"`
	Device   transport.DeviceID `json:"device"`
	Phase    string             `json:"phase,omitempty"` // empty: it has said nothing yet
	Matched  time.Time          `json:"matched,omitzero"`
	Changed  time.Time          `json:"changed,omitzero"` // when it came to the phase, by its own clock
	Reported time.Time          `json:"reported,omitzero"`
	Forced   bool               `json:"forced,omitempty"` // a person reclaimed or activated there
}

// KeycopyProblem is something that does not fit.
type KeycopyProblem struct {
	Code string `json:"code"`
	Text string `json:"text"`
	Next string `json:"next"`
}

// KeycopyPage is one page; Next continues the list, empty at its end.
type KeycopyPage struct {
	Keycopies []KeycopyInfo `json:"keycopies"`
	Next      string        `json:"next,omitempty"`
}

// KeycopyShowParams ask for a transaction and a page of its items: those of Row,
// 0 for the first, that follow the credential After.
type KeycopyShowParams struct {
	Txn   string `json:"txn"` // or its first 8 digits and more
	Row   int64  `json:"row,omitempty"`
	After string `json:"after,omitempty"`
	Limit int    `json:"limit,omitempty"`
}

// KeycopyDetail is a transaction: mostly one row, more if other devices speak of
// the same id. Items are those of the row that was asked for.
type KeycopyDetail struct {
	Keycopies []KeycopyInfo     `json:"keycopies"`
	Items     []KeycopyItemInfo `json:"items"`
	Next      string            `json:"next,omitempty"` // After of the next page; empty at the end
}

// KeycopyItemInfo is an item, as the ends tell of it; an end that has not spoken
// of it is nil.
type KeycopyItemInfo struct {
	Credential transport.Name   `json:"credential"`
	Known      bool             `json:"known"` // it is in this server's inventory
	Service    transport.Name   `json:"service,omitempty"`
	Source     *KeycopyWordInfo `json:"source"`
	Target     *KeycopyWordInfo `json:"target"`
	Holders    []transport.Name `json:"holders"` // at present
}

// KeycopyWordInfo is what an end says of an item.
type KeycopyWordInfo struct {
	Transfer transport.Transfer `json:"transfer"`
	Taken    bool               `json:"taken"`
}

// keycopyMethods are on the control socket.
func (s *Server) keycopyMethods() []control.Method {
	return []control.Method{
		{Name: "KeycopyList", Doc: "Lists key copies as both ends report them, page by page.", Class: control.Read,
			In: ListParams{}, Out: KeycopyPage{}, Handle: s.keycopyList},
		{Name: "KeycopyShow", Doc: "Shows a key copy with its items, page by page.", Class: control.Read,
			In: KeycopyShowParams{}, Out: KeycopyDetail{}, Handle: s.keycopyShow},
	}
}

func keycopyInfo(tx *store.Tx, k store.Keycopy) (i KeycopyInfo, err error) {
	n, err := tx.KeycopyTally(k)
	if err != nil {
		return i, err
	}
	if k.Source, err = namedEnd(tx, k.Source); err != nil {
		return i, err
	}
	if k.Target, err = namedEnd(tx, k.Target); err != nil {
		return i, err
	}
	i = KeycopyInfo{Txn: k.Txn, Mode: k.Source.Mode, Source: endInfo(k.Source), Target: endInfo(k.Target), Items: max(k.Source.Total, k.Target.Total), Moved: n.Moved,
		Status: k.Status, Receipt: "none", Signature: k.Signature, Settled: k.Settled, SettledAt: k.SettledAt, Refused: k.Refused, Changed: k.Changed, Row: k.Seq}
	if i.Mode == "" {
		i.Mode = k.Target.Mode
	}
	switch {
	case k.Proof != "":
		i.Receipt = k.Proof
	case len(k.Signature) > 0:
		i.Receipt = "unchecked"
	}
	for _, code := range k.Problems {
		i.Problems = append(i.Problems, KeycopyProblem{Code: code, Text: problemText(k, code), Next: problemNext(k, code)})
	}
	if k.Status == store.KeycopyOpen {
		i.Waits = waits(k, n)
	}
	return i, nil
}

func endInfo(e store.KeycopyEnd) KeycopyEndInfo {
	i := KeycopyEndInfo{Terminal: e.Terminal, Device: e.Device, Matched: e.At, Changed: e.Changed, Reported: e.Told, Forced: e.Forced}
	if e.Phase != 0 {
		i.Phase = e.Phase.String()
	}
	return i
}

// waits says what an open key copy waits for.
func waits(k store.Keycopy, n store.KeycopyTally) string {
	a, b := k.Source, k.Target
	old, fresh := nameOf(a), nameOf(b)
	switch {
	case a.Phase == 0:
		return old + " has not reported yet"
	case b.Phase == 0:
		return fresh + " has not reported yet"
	case n.Said[0] < a.Total:
		return old + " is still reporting"
	case n.Said[1] < b.Total:
		return fresh + " is still reporting"
	case a.Phase == transport.KeycopyReclaimed, a.Phase == transport.KeycopyAbandoned:
		return fresh + " has to hear that it is ended"
	case a.Phase == transport.KeycopyCommitted && b.Phase == transport.KeycopyDropped:
		return fmt.Sprintf("%s has dropped it: if %s says so still, run there: kagimori keycopy reclaim %s", fresh, old, k.Txn)
	case a.Phase == transport.KeycopyDone:
		return fresh + " has to report anew, or to go on"
	case b.Phase.Open():
		return fmt.Sprintf("%s and %s go on when they meet", old, fresh)
	}
	return old + " has to report anew, or to go on"
}

func (s *Server) keycopyList(ctx context.Context, call *control.Call) error {
	var in ListParams
	if err := call.Params(&in); err != nil {
		return err
	}
	out := KeycopyPage{Keycopies: []KeycopyInfo{}}
	err := s.store.View(ctx, func(tx *store.Tx) error {
		list, next, err := tx.Keycopies(in.query(s.cfg.Now()))
		if err != nil {
			return err
		}
		for _, k := range list {
			i, err := keycopyInfo(tx, k)
			if err != nil {
				return err
			}
			out.Keycopies = append(out.Keycopies, i)
		}
		out.Next = next
		return nil
	})
	if err != nil {
		return problem(err)
	}
	return call.Reply(out)
}

func (s *Server) keycopyShow(ctx context.Context, call *control.Call) error {
	var in KeycopyShowParams
	if err := call.Params(&in); err != nil {
		return err
	}
	out := KeycopyDetail{Keycopies: []KeycopyInfo{}, Items: []KeycopyItemInfo{}}
	err := s.store.View(ctx, func(tx *store.Tx) error {
		txn, err := keycopyNamed(tx, in.Txn)
		if err != nil {
			return err
		}
		rows, err := tx.KeycopiesWith(txn, maxSameKeycopy)
		if err != nil {
			return err
		}
		row := rows[0]
		for _, k := range rows {
			i, err := keycopyInfo(tx, k)
			if err != nil {
				return err
			}
			out.Keycopies = append(out.Keycopies, i)
			if k.Seq == in.Row {
				row = k
			}
		}
		out.Items, out.Next, err = keycopyItems(tx, row.Seq, in)
		return err
	})
	if err != nil {
		return problem(err)
	}
	return call.Reply(out)
}

// shortKeycopy is how many digits of an id are enough to name it, as terminals
// show it, if they are unique.
const shortKeycopy = 8

// keycopyNamed finds the id that begins with what a person gave.
func keycopyNamed(tx *store.Tx, given string) (txn transport.ID, err error) {
	const see = "see: kagimori-server keycopy list"
	size := len(transport.ID{}.String())
	if len(given) < shortKeycopy || len(given) > size {
		return txn, control.Problemf(control.BadInput, see, "%.40q is not the id of a key copy: it has %d to %d hexadecimal digits", given, shortKeycopy, size)
	}
	from, err := transport.ParseID(given + strings.Repeat("0", size-len(given)))
	if err != nil {
		return txn, control.Problemf(control.BadInput, see, "%.40q is not the id of a key copy: it has %d to %d hexadecimal digits", given, shortKeycopy, size)
	}
	to, err := transport.ParseID(given + strings.Repeat("f", size-len(given)))
	if err != nil {
		return txn, err
	}
	list, err := tx.KeycopyIDs(from, to, 2)
	switch {
	case err != nil:
		return txn, err
	case len(list) == 0:
		return txn, control.Problemf(control.NotFound, see, "no key copy %s has been reported", given)
	case len(list) > 1:
		return txn, control.Problemf(control.Conflict, "give more digits; "+see, "several key copies begin with %s", given)
	}
	return list[0], nil
}

func keycopyItems(tx *store.Tx, seq int64, in KeycopyShowParams) (infos []KeycopyItemInfo, next string, err error) {
	limit := store.Query{Limit: in.Limit}.Rows()
	list, err := tx.KeycopyItems(seq, transport.Name(in.After), limit+1)
	if err != nil {
		return nil, "", err
	}
	if len(list) > limit {
		list = list[:limit]
		next = string(list[limit-1].Credential)
	}
	infos = []KeycopyItemInfo{}
	for _, i := range list {
		info := KeycopyItemInfo{Credential: i.Credential, Source: wordInfo(i.Source), Target: wordInfo(i.Target), Holders: []transport.Name{}}
		c, err := tx.Credential(i.Credential)
		switch {
		case errors.Is(err, store.ErrNotFound):
		case err != nil:
			return nil, "", err
		default:
			info.Known, info.Service = true, c.Service
			holders, err := activeHolders(tx, c.ID)
			if err != nil {
				return nil, "", err
			}
			info.Holders = append(info.Holders, holders...)
		}
		infos = append(infos, info)
	}
	return infos, next, nil
}

func wordInfo(w store.KeycopyWord) *KeycopyWordInfo {
	if w.Phase == 0 {
		return nil
	}
	return &KeycopyWordInfo{Transfer: w.Transfer, Taken: w.Taken}
}
