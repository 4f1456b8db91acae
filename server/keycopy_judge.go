package server

import (
	"fmt"
	"slices"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// Two ends speak of one transaction, each when it next meets the server. What the
// one says may be old: versions contradict each other only if no run of the
// protocol (docs/models) leads through the one and then, or before, the other.

// The codes of what does not fit.
const (
	problemBoth    = "both-active"    // both ends use what was to move
	problemLost    = "lost"           // the Source has destroyed what the Target has not
	problemPhases  = "phases"         // no run leads to these two
	problemSettle  = "settle"         // an end acts alone though the other one was let to
	problemTaken   = "taken"          // they differ in what the Target has
	problemItems   = "items"          // they differ in what was to be copied or moved
	problemMode    = "mode"           // they differ in the mode
	problemReceipt = "receipt"        // the receipt that the Source shows is not the Target's
	problemChanged = "changed"        // an end has taken back its word
	problemRevived = "revived"        // the Source has again what it had destroyed
	problemEnds    = "ends"           // other devices speak of the same transaction
	oddRevived     = "holds-it-again" // Keycopy's Odd for problemRevived
)

// judgeAll judges a row, and the others of the same id, which it may have put
// into another light. It returns what is new and wrong, in words.
func (s *Server) judgeAll(tx *store.Tx, k store.Keycopy) (told []string, err error) {
	rows, err := tx.KeycopiesWith(k.Txn, maxSameKeycopy)
	if err != nil {
		return nil, err
	}
	for _, row := range rows {
		news, err := judgeRow(tx, row, len(rows) > 1)
		if err != nil {
			return nil, fmt.Errorf("judge key copy: %w", err)
		}
		told = append(told, news...)
	}
	return told, nil
}

func judgeRow(tx *store.Tx, k store.Keycopy, others bool) (news []string, err error) {
	n, err := tx.KeycopyTally(k)
	if err != nil {
		return nil, err
	}
	before := k
	if err := proveReceipt(tx, &k, n); err != nil {
		return nil, err
	}
	k.Status, k.Problems = judge(k, n, others)
	if k.Status == store.KeycopyOpen {
		if k.Status, err = withoutOthers(tx, k, n); err != nil {
			return nil, err
		}
	}
	for _, p := range k.Problems {
		if slices.Contains(before.Problems, p) {
			continue
		}
		text := problemText(k, p)
		news = append(news, text)
		if err := tx.Audit("keycopy.contradiction", k.Txn.String(), text); err != nil {
			return nil, err
		}
	}
	if k.Status == before.Status && k.Proof == before.Proof && slices.Equal(k.Problems, before.Problems) {
		return news, nil
	}
	return news, tx.SetKeycopy(k)
}

// judge says how the versions of both ends go together.
func judge(k store.Keycopy, n store.KeycopyTally, others bool) (store.KeycopyStatus, []string) {
	a, b := k.Source, k.Target
	var problems []string
	add := func(wrong bool, code string) {
		if wrong && !slices.Contains(problems, code) {
			problems = append(problems, code)
		}
	}
	add(others, problemEnds)
	add(a.Odd == oddRevived, problemRevived)
	add(a.Odd != "" && a.Odd != oddRevived || b.Odd != "", problemChanged)
	add(a.Mode != "" && b.Mode != "" && a.Mode != b.Mode, problemMode)
	add(k.Proof == store.ProofBad, problemReceipt)
	finished := false
	if n.Said[0] >= a.Total && n.Said[1] >= b.Total && a.Phase != 0 && b.Phase != 0 {
		var code string
		finished, code = fit(a.Phase, b.Phase, n.Moved > 0, n.Kept > 0)
		add(code != "", code)
		add(n.OtherTransfer > 0 || n.Source != n.Target || n.Items != n.Source, problemItems)
		add(n.OtherTaken > 0 && receipted(a.Phase) && took(b.Phase), problemTaken)
	} else {
		finished = a.Phase == transport.KeycopyAbandoned && b.Phase == 0 || a.Phase == 0 && b.Phase == transport.KeycopyDropped
	}
	uses := usesMoved(b.Phase, n.Kept > 0)
	kept := a.Phase == transport.KeycopyReclaimed || a.Phase == transport.KeycopyAbandoned
	if n.Moved > 0 && !slices.Contains(problems, problemBoth) {
		add(k.Settled == transport.KeycopySource && uses && a.Phase != transport.KeycopyDone, problemSettle)
		add(k.Settled == transport.KeycopyTarget && kept, problemSettle)
	}
	switch {
	case len(problems) > 0:
		return store.KeycopyContradiction, problems
	case finished:
		return store.KeycopyConsistent, nil
	}
	return store.KeycopyOpen, nil
}

// withoutOthers closes what waits for a device that is no terminal any more, as
// far as the other end has nothing left to do by itself.
func withoutOthers(tx *store.Tx, k store.Keycopy, n store.KeycopyTally) (store.KeycopyStatus, error) {
	goneSource, err := tx.DeviceGone(k.Source.Device)
	if err != nil {
		return k.Status, err
	}
	goneTarget, err := tx.DeviceGone(k.Target.Device)
	if err != nil {
		return k.Status, err
	}
	ended := func(p transport.KeycopyPhase) bool { return p != 0 && !p.Open() }
	at := k.Target.Phase
	settled := ended(at) || at == transport.KeycopyActive || at == transport.KeycopyStaged && n.Moved == 0
	if goneSource && (goneTarget || settled) || goneTarget && ended(k.Source.Phase) {
		return store.KeycopyConsistent, nil
	}
	return k.Status, nil
}

// judgeGone judges anew what waits for a device that has just been removed.
func (s *Server) judgeGone(tx *store.Tx, device transport.DeviceID) error {
	rows, err := tx.OpenKeycopies(device)
	for _, k := range rows {
		if _, e := s.judgeAll(tx, k); e != nil {
			return e
		}
	}
	return err
}

// receipted says whether a Source has had a receipt, took whether a Target has
// something.
func receipted(p transport.KeycopyPhase) bool {
	return p == transport.KeycopyCommitted || p == transport.KeycopyDone || p == transport.KeycopyReclaimed
}

func took(p transport.KeycopyPhase) bool {
	return p == transport.KeycopyStaged || p == transport.KeycopyActive || p == transport.KeycopyClosed
}

// fit says whether two phases go together: nothing is left to do, or something
// is, or, with a code, they cannot both be. moves: something moved; kept: the
// Target says that it has what moved.
func fit(source, target transport.KeycopyPhase, moves, kept bool) (finished bool, code string) {
	uses := usesMoved(target, kept)
	switch source {
	case transport.KeycopyDone:
		switch {
		case uses, target == transport.KeycopyStaged && !moves, target == transport.KeycopyUnreceipted && !moves:
			return true, "" // a Target that was not told so has them all the same
		case target == transport.KeycopyDropped && moves, target == transport.KeycopyUnreceipted:
			return false, problemLost
		case target == transport.KeycopyDropped:
			return false, problemPhases
		}
	case transport.KeycopyReclaimed, transport.KeycopyAbandoned:
		switch {
		case uses && moves:
			return false, problemBoth
		case uses:
			return false, problemPhases
		case target == transport.KeycopyDropped, target == transport.KeycopyUnreceipted:
			return true, ""
		}
	}
	return false, ""
}

// usesMoved says whether a Target uses what moved. One that ended without having
// heard from its Source keeps what it used by then.
func usesMoved(target transport.KeycopyPhase, kept bool) bool {
	return target == transport.KeycopyActive || target == transport.KeycopyClosed || target == transport.KeycopyUnreceipted && kept
}

// problemText says in words what a code is about.
func problemText(k store.Keycopy, code string) string {
	old, fresh := nameOf(k.Source), nameOf(k.Target)
	switch code {
	case problemBoth:
		return fmt.Sprintf("%s has what was to move (%s), and %s uses it (%s): both have the keys", old, k.Source.Phase, fresh, k.Target.Phase)
	case problemLost:
		return fmt.Sprintf("%s has destroyed what moved, and %s has not got it (%s)", old, fresh, k.Target.Phase)
	case problemPhases:
		return fmt.Sprintf("%s says %s and %s says %s, which does not go together", old, k.Source.Phase, fresh, k.Target.Phase)
	case problemSettle:
		winner, loser := old, fresh
		if k.Settled == transport.KeycopyTarget {
			winner, loser = fresh, old
		}
		return fmt.Sprintf("%s was let to have the keys alone, and %s uses them", winner, loser)
	case problemTaken:
		return fmt.Sprintf("%s and %s differ in which of the items %s has", old, fresh, fresh)
	case problemItems:
		return fmt.Sprintf("%s and %s differ in what was to be copied or moved", old, fresh)
	case problemMode:
		return fmt.Sprintf("%s says mode %s, %s mode %s", old, k.Source.Mode, fresh, k.Target.Mode)
	case problemReceipt:
		return fmt.Sprintf("the receipt that %s shows was not signed by %s for this", old, fresh)
	case problemChanged:
		who, end := old, k.Source
		if end.Odd == "" || end.Odd == oddRevived {
			who, end = fresh, k.Target
		}
		return fmt.Sprintf("%s has said %s, and %s later", who, end.Phase, end.Odd)
	case problemRevived:
		return fmt.Sprintf("%s has again what it had destroyed: its store was set back", old)
	case problemEnds:
		return "another device speaks of the same key copy as one of its ends"
	}
	return code
}

// problemNext says what to do about a code.
func problemNext(k store.Keycopy, code string) string {
	txn := k.Txn.String()
	switch code {
	case problemBoth, problemSettle, problemRevived:
		return "find out which box is in use; end each credential that both have with kagimori-server credential revoke ID, and issue it anew to that one; see: kagimori-server keycopy show " + txn
	case problemLost:
		return "nobody has the keys: kagimori-server credential revoke ID, and credential issue to the terminal that is in use; see: kagimori-server keycopy show " + txn
	case problemChanged, problemEnds, problemReceipt:
		return "one of the terminals does not tell the truth, or its store was damaged: run kagimori doctor on both, and take the keys from the one that is not trusted: kagimori-server credential revoke ID"
	}
	return "compare: kagimori-server keycopy show " + txn + ", and on both terminals kagimori keycopy list"
}

// nameOf is what people call an end.
func nameOf(e store.KeycopyEnd) string {
	if e.Terminal != "" {
		return string(e.Terminal)
	}
	return "device " + e.Device.Short()
}

// revive notes that a Source has proven to have what it had destroyed.
func (s *Server) revive(tx *store.Tx, k store.Keycopy) error {
	if k.Source.Odd != "" {
		return nil
	}
	k.Source.Odd = oddRevived
	if err := tx.SetKeycopy(k); err != nil {
		return err
	}
	_, err := s.judgeAll(tx, k)
	return err
}
