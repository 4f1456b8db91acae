package keycopy

// What must hold in every run of the simulator: the properties of
// docs/models/transaction.pml, by the same names, and what that model does not
// see (frames, counts of attempts, the bytes of the keys).

import (
	"bytes"
	"slices"
	"strings"

	"github.com/kagimori/kagimori/transport"
)

// A tuple is what is on both disks at one moment: docs/models/states-*.txt.
type tuple struct {
	source, sourceKey, sourceCopied string
	target, targetKey, targetCopied string
	same                            bool
}

// in is t's line in the file of a kind of items.
func (t tuple) in(items string) string {
	same := "-"
	if t.same {
		same = "same"
	}
	switch items, _, _ := strings.Cut(items, "-"); items {
	case "copy":
		return t.source + " " + t.sourceCopied + " " + t.target + " " + t.targetCopied + " " + same
	case "mixed":
		return t.source + " " + t.sourceKey + " " + t.sourceCopied + " " + t.target + " " + t.targetKey + " " + t.targetCopied + " " + same
	}
	return t.source + " " + t.sourceKey + " " + t.target + " " + t.targetKey + " " + same
}

// modelPhase maps what the journal says to the words of the model. It has no
// word for a transaction that was ended without effect: that is idle.
var modelPhase = map[transport.KeycopyPhase]string{
	transport.KeycopyOffered: "offered", transport.KeycopyCommitted: "committed", transport.KeycopyDone: "done",
	transport.KeycopyReclaimed: "reclaimed", transport.KeycopyAbandoned: "idle",
	transport.KeycopyStarted: "started", transport.KeycopyStaged: "staged", transport.KeycopyActive: "active",
	transport.KeycopyClosed: "closed", transport.KeycopyUnreceipted: "kept", transport.KeycopyDropped: "idle",
}

// modelUse is the same for keys.
var modelUse = map[keyUse]string{"": "none", useNone: "none", useActive: "active", useDisabled: "disabled", useStaged: "disabled"}

func (w *world) tuple() tuple {
	t := tuple{source: "idle", target: "idle"}
	s, g := w.source.safe.newest(), w.target.safe.newest()
	for e, to := range map[*simEnd]*string{w.source: &t.source, w.target: &t.target} {
		if txn := e.safe.newest(); txn != nil {
			*to = modelPhase[txn.Phase]
		}
		if e.dead {
			*to = "dead"
		}
	}
	t.sourceKey, t.sourceCopied = w.classes(w.source)
	t.targetKey, t.targetCopied = w.classes(w.target)
	idle := func(x string) bool { return x == "idle" || x == "dead" }
	t.same = s != nil && g != nil && s.ID == g.ID && !idle(t.source) && !idle(t.target)
	return t
}

// classes gives the use of the items that move and of those that are copied at
// e: all of a class go together.
func (w *world) classes(e *simEnd) (moved, copied string) {
	moved, copied = "none", "none"
	first := map[bool]bool{true: true, false: true}
	for _, id := range w.items {
		if w.refuses(id) {
			continue
		}
		class, moves := &copied, w.moves(id)
		if moves {
			class = &moved
		}
		use := modelUse[e.safe.keys[id].Use]
		if e.dead {
			use = "none"
		}
		if first[moves] {
			*class, first[moves] = use, false
		} else if *class != use {
			w.broken("one_step", "%s: %s is %s, others of its kind are %s", e.name, id, use, *class)
		}
	}
	return moved, copied
}

func (w *world) moves(id transport.Name) bool { return w.moving[id] }

func (w *world) refuses(id transport.Name) bool {
	return w.script.refused && id == w.items[len(w.items)-1]
}

// check looks at both disks after each step.
func (w *world) check(when string) {
	if w.source.safe == nil || w.target.safe == nil || w.target.boots == 0 {
		return
	}
	t := w.tuple()
	if !w.tuples[t] {
		w.tuples[t] = true
	}
	w.note("%s: %+v", when, t)
	s, g := w.source.safe.newest(), w.target.safe.newest()
	for _, id := range w.items {
		w.checkKey(id)
	}
	// What the Source takes for received is on the Target's disk.
	if s != nil && !s.Forced && !w.target.dead && (s.Phase == transport.KeycopyCommitted || s.Phase == transport.KeycopyDone) {
		for _, id := range s.Taken() {
			if u := w.target.safe.keys[id].Use; u != useActive && u != useStaged {
				w.broken("receipt_true", "%s: the Source has a receipt for %s, which is %q at the Target", when, id, u)
			}
		}
	}
	// No key is anywhere that the Source has not recorded first.
	for _, k := range w.target.safe.keys {
		if k.Use != useNone && w.source.safe.txns[k.Txn] == nil {
			w.broken("offer_first", "%s: the Target has %s of a transaction that the Source does not know", when, k.ID)
		}
	}
	if !w.source.dead && !w.target.dead && s != nil && g != nil {
		if on := w.source.safe.txns[g.ID]; g.Phase == transport.KeycopyClosed && !g.Forced && (on == nil || on.Phase != transport.KeycopyDone) {
			w.broken("closed_true", "%s: closed at the Target, %s at the Source", when, phaseOf(w.source))
		}
		if (s.Phase == transport.KeycopyCommitted || s.Phase == transport.KeycopyDone) && s.ID != g.ID && modelPhase[g.Phase] != "idle" {
			w.broken("same_transaction", "%s: Source %s, Target %s of another", when, s.Phase, g.Phase)
		}
	}
	w.checkCodes(when)
}

// checkKey: never two active, never lost.
func (w *world) checkKey(id transport.Name) {
	su, tu := w.source.safe.keys[id].Use, w.target.safe.keys[id].Use
	if w.refuses(id) {
		if su != useActive || tu != "" {
			w.broken("never_lost", "%s was refused, and is %q at the Source, %q at the Target", id, su, tu)
		}
		return
	}
	if w.moves(id) {
		if su == useActive && tu == useActive && !w.source.dead && !w.target.dead && !w.lied {
			w.broken("one_active", "%s is active at both ends", id)
		}
	} else if su != useActive {
		w.broken("one_active", "%s is copied, and %s at the Source", id, su)
	}
	source := !w.source.dead && su != useNone
	target := !w.target.dead && (tu == useActive || w.source.dead && tu == useStaged)
	if !source && !target && !w.orphaned() {
		w.broken("never_lost", "%s is %q at the Source, %q at the Target", id, su, tu)
	}
}

// checkCodes: a code is there until the receipt, or until what was copied is on
// the disk, unless there is a reason that is nobody's mistake.
func (w *world) checkCodes(when string) {
	if c := w.source.code; w.source.up && c != nil && c.gone() && !c.excused {
		if t := w.source.safe.newest(); t == nil || t.Phase == transport.KeycopyOffered || t.Phase == transport.KeycopyAbandoned {
			w.broken("source_code", "%s: the Source's code is gone before the receipt", when)
		}
	}
	if c := w.target.code; w.target.up && c != nil && c.gone() && !c.excused {
		if t := w.target.safe.newest(); t == nil || t.Phase == transport.KeycopyStarted || t.Phase == transport.KeycopyDropped {
			w.broken("target_code", "%s: the Target's code is gone before its keys are staged", when)
		}
	}
}

// orphaned says that the key's only rightful holder died: no protocol helps.
func (w *world) orphaned() bool { return w.source.dead && w.target.dead || w.orphan || w.moment }

// checkSend looks at what is on the sender's disk when a frame leaves.
func (w *world) checkSend(c *simConn, f transport.KeycopyFrame) {
	e, t := c.end, c.end.safe.newest()
	want := func(phases ...transport.KeycopyPhase) {
		if t == nil || !slices.Contains(phases, t.Phase) {
			w.broken("write_first", "%s sends %s in phase %s", e.name, f.Type, phaseOf(e))
		}
	}
	wiped := func() {
		if t != nil && e.code != nil && !e.code.gone() && e.code.of == w.opened[t.ID] {
			w.broken("code_gone", "%s sends %s and still has its code", e.name, f.Type)
		}
	}
	switch f.Type {
	case transport.KeycopyTypeProof: // with a sealed code nobody can try a guess of his own
		w.proofs++
		if e.safe.counted < w.proofs {
			w.broken("count_first", "PROOF %d leaves with %d counted", w.proofs, e.safe.counted)
		}
	case transport.KeycopyTypeGrant:
		w.verdict(e)
		c.proven = false
		if t != nil && w.opened[t.ID] == 0 {
			w.opened[t.ID] = c.code
		}
		want(transport.KeycopyOffered, transport.KeycopyAbandoned) // the latter by the operator, this moment
	case transport.KeycopyTypeItem:
		want(transport.KeycopyOffered, transport.KeycopyAbandoned)
	case transport.KeycopyTypeReceipt:
		if t == nil || !t.Forced {
			want(transport.KeycopyStaged)
		}
		wiped()
	case transport.KeycopyTypeCommit:
		want(transport.KeycopyCommitted)
		wiped()
	case transport.KeycopyTypeActivated:
		want(transport.KeycopyActive)
		wiped()
	case transport.KeycopyTypeClose:
		want(transport.KeycopyDone)
		wiped()
	case transport.KeycopyTypeError:
		var m transport.KeycopyError
		if transport.DecodeKeycopy(f, &m) == nil && e == w.source && c.proven && m.Code == transport.KeycopyAuthFailed {
			w.verdict(e)
		}
	}
}

// verdict: no answer to a guess that is not counted first.
func (w *world) verdict(e *simEnd) {
	w.judged++
	if e.safe.counted < w.judged {
		w.broken("count_first", "verdict %d leaves with %d counted", w.judged, e.safe.counted)
	}
}

// checkEnd looks at what a run leaves behind.
func (w *world) checkEnd() {
	for _, c := range w.codes {
		if !c.gone() {
			w.broken("code_gone", "an operator code is left in RAM")
		}
	}
	w.checkConflict()
	if w.source.dead || w.target.dead || w.wasFound {
		return
	}
	g := w.target.safe.newest()
	if len(g.Resume) > 0 {
		w.broken("finishes", "the Target keeps its resume key when %s", g.Phase)
	}
	for _, id := range w.items {
		if w.refuses(id) {
			continue
		}
		at, before := w.target.safe.keys[id], w.before[id]
		moved := w.moves(id) && g.Phase == transport.KeycopyClosed
		if w.moves(id) && !moved {
			if s := w.source.safe.keys[id]; s.Use != useActive {
				w.broken("never_lost", "%s was not moved and is %s at the Source", id, s.Use)
			}
			continue
		}
		if at.Use != useActive || !sameSecret(at.Record, before.Record) {
			w.broken("never_lost", "%s is %q at the Target, or another key", id, at.Use)
		}
		if s := w.source.safe.keys[id]; moved && (s.Use != useNone || len(s.Record) > 0) {
			w.broken("one_active", "%s is %s at the Source when all is over", id, s.Use)
		}
	}
}

func sameSecret(a, b []byte) bool {
	var x, y transport.CredentialRecord
	if transport.Unmarshal(a, &x, transport.MaxKeycopyRecord) != nil || transport.Unmarshal(b, &y, transport.MaxKeycopyRecord) != nil {
		return false
	}
	return x.ID == y.ID && bytes.Equal(x.Secret.Bytes, y.Secret.Bytes)
}

// follows is what may come after a phase, at both ends. A phase follows itself
// only to forget the resume key, or to note a conflict.
var follows = map[transport.KeycopyPhase][]transport.KeycopyPhase{
	0:                          {transport.KeycopyOffered, transport.KeycopyStarted},
	transport.KeycopyOffered:   {transport.KeycopyCommitted, transport.KeycopyDone, transport.KeycopyAbandoned},
	transport.KeycopyCommitted: {transport.KeycopyDone, transport.KeycopyReclaimed},
	transport.KeycopyStarted:   {transport.KeycopyStaged, transport.KeycopyDropped},
	transport.KeycopyStaged:    {transport.KeycopyActive, transport.KeycopyClosed, transport.KeycopyDropped, transport.KeycopyUnreceipted},
	transport.KeycopyActive:    {transport.KeycopyClosed, transport.KeycopyUnreceipted}, // the latter after a wrong word
}

// checkHistory: each phase is entered once, in order, so that each receipt and
// each install has one effect.
func (w *world) checkHistory(e *simEnd) {
	at, installs := map[transport.ID]*Transaction{}, map[transport.Name]map[transport.ID]int{}
	for _, entry := range e.disk.entries() {
		for i := range entry.Txns {
			t := &entry.Txns[i]
			var was transport.KeycopyPhase
			had := at[t.ID]
			if had != nil {
				was = had.Phase
			}
			same := was == t.Phase && (len(had.Resume) > 0 && len(t.Resume) == 0 || t.Conflict && !had.Conflict)
			if was == t.Phase && !same || was != t.Phase && !slices.Contains(follows[was], t.Phase) {
				w.broken("one_effect", "%s: %s follows %s", e.name, t.Phase, was)
			}
			at[t.ID] = t
		}
		for _, k := range entry.Keys {
			if e == w.target && (k.Use == useStaged || k.Use == useActive && !w.moves(k.ID)) {
				if installs[k.ID] == nil {
					installs[k.ID] = map[transport.ID]int{}
				}
				if installs[k.ID][k.Txn]++; installs[k.ID][k.Txn] > 1 {
					w.broken("one_effect", "%s is installed twice by one transaction", k.ID)
				}
			}
		}
	}
}
