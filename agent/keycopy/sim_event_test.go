package keycopy

// What the programs tell people has to be so when they tell it.

import (
	"github.com/kagimori/kagimori/transport"
)

// event hears what an end says while it has power.
func (w *world) event(e *simEnd, ev Event) {
	w.note("%s says %s", e.name, ev.Kind)
	t := ev.Transaction
	if t != nil && len(t.Resume) > 0 {
		w.violate("event %s shows the resume key", ev.Kind)
	}
	at := func(e *simEnd, phases ...transport.KeycopyPhase) bool {
		on := e.safe.txns[t.ID]
		for _, p := range phases {
			if on != nil && on.Phase == p {
				return true
			}
		}
		return false
	}
	switch ev.Kind {
	case EventInstalled:
		if e == w.target && !at(e, transport.KeycopyStaged, transport.KeycopyActive) || e == w.source && !at(e, transport.KeycopyCommitted, transport.KeycopyDone) {
			w.broken("said_true", "%s says installed when it is %s", e.name, phaseOf(e))
		}
	case EventActive:
		if !at(w.target, transport.KeycopyActive) {
			w.broken("said_true", "active is said when the Target is %s", phaseOf(w.target))
		}
		w.unplugNow("active")
	case EventClosed:
		if !w.source.dead && !at(w.source, transport.KeycopyDone) || e == w.target && !at(e, transport.KeycopyClosed) {
			w.broken("said_true", "%s says closed: Source %s, Target %s", e.name, phaseOf(w.source), phaseOf(w.target))
		}
		if e == w.target {
			w.unplugNow("closed")
		}
	case EventConflict:
		w.said = true
		if !w.lied {
			w.broken("said_true", "%s sees a conflict where none can be", e.name)
		}
	}
}

// unplugNow is "you may unplug the old terminal now": everything taken is in
// use at the Target, and what moved is not at the Source.
func (w *world) unplugNow(when string) {
	for _, id := range w.items {
		if w.refuses(id) {
			continue
		}
		su, tu := w.source.safe.keys[id].Use, w.target.safe.keys[id].Use
		if tu != useActive || w.moves(id) && su == useActive && !w.source.dead && !w.lied {
			w.broken("said_true", "%s is said, and %s is %q at the Source, %q at the Target", when, id, su, tu)
		}
	}
}
