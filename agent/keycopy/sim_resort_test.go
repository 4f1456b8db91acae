package keycopy

// Ends that die for good, the last resorts of the person who is left with the
// other one, and ends that were not dead at all.

import (
	"context"

	"github.com/kagimori/kagimori/transport"
)

// resort is what a person can do about a dead end; nil if nothing is to be done.
func (w *world) resort() (e *simEnd, next func(*Transaction) (*Transaction, error)) {
	s, t := w.source.safe.newest(), w.target.safe.newest()
	switch {
	case w.source.dead && w.target.dead:
	case w.target.dead && s != nil:
		switch s.Phase {
		case transport.KeycopyCommitted:
			return w.source, Reclaim
		case transport.KeycopyOffered:
			return w.source, Abandon
		}
	case w.source.dead && t != nil:
		switch t.Phase {
		case transport.KeycopyStaged:
			if t.moves() {
				return w.target, Activate
			}
			return w.target, Abandon
		case transport.KeycopyStarted:
			return w.target, Abandon
		}
	}
	return nil, nil
}

// lastResort is one visit of the person: settles what is open, or finds the
// other end alive.
func (w *world) lastResort() {
	e, next := w.resort()
	if e == nil {
		w.find()
		return
	}
	t := e.store.newest()
	after, err := next(t)
	if err != nil {
		w.violate("last resort at the %s in phase %s: %v", e.name, t.Phase, err)
		panic(errRunaway)
	}
	_ = w.op(e, "last resort: "+after.Phase.String())
	if e.code != nil {
		e.code.excused = true
	}
	if err := e.Advance(context.Background(), after, t.Phase); err != nil {
		w.note("last resort: %v", err)
	}
}

// find makes the dead end turn up: what was said of it was wrong.
func (w *world) find() {
	w.orphan, w.moment, w.wasFound = false, false, true
	for _, e := range []*simEnd{w.source, w.target} {
		if t := e.safe.newest(); t != nil && t.Forced {
			w.lied = true
		}
	}
	w.source.dead, w.target.dead = false, false
	w.note("the dead are found again")
	w.revive()
}

// die is the end of e. If it was the key's only holder, or the other end is in
// one of the two moments that no protocol helps against, then the key may be
// gone.
func (w *world) die(e *simEnd) {
	s, t := w.source.safe.newest(), w.target.safe.newest()
	survivor := w.source
	if e == w.source {
		survivor = w.target
	}
	e.dead = true
	switch {
	case survivor.dead || !w.holds(survivor):
		w.orphan = true
	case survivor == w.source && t != nil && t.Phase == transport.KeycopyActive && s.Phase == transport.KeycopyCommitted,
		survivor == w.target && t != nil && t.Phase == transport.KeycopyStaged && s != nil && (s.Phase == transport.KeycopyAbandoned || s.Phase == transport.KeycopyReclaimed || s.ID != t.ID):
		w.moment = true // until it is seen what the survivor did
	}
}

// holds says whether e has all keys, in use or not.
func (w *world) holds(e *simEnd) bool {
	for _, id := range w.items {
		if u := e.safe.keys[id].Use; !w.refuses(id) && (u == useNone || u == "") {
			return false
		}
	}
	return true
}

// momentOver is the end of the connection in which an end died.
func (w *world) momentOver() {
	if !w.moment {
		return
	}
	w.moment = false
	survivor := w.source
	if w.source.dead {
		survivor = w.target
	}
	w.orphan = w.orphan || !w.holds(survivor)
}

// checkConflict: after a wrong word of a person two keys may be in use, but then
// both ends say so.
func (w *world) checkConflict() {
	for _, id := range w.items {
		if !w.moves(id) || w.source.dead || w.target.dead {
			continue
		}
		if w.source.safe.keys[id].Use != useActive || w.target.safe.keys[id].Use != useActive {
			continue
		}
		s, t := w.source.safe.newest(), w.target.safe.newest()
		if !s.Conflict || !t.Conflict || !w.said {
			w.broken("conflict_said", "%s is active at both ends; Source %s, Target %s, and nobody says so", id, s.Phase, t.Phase)
		}
	}
}

// wrongWord is the mistake that the rules of the last resorts are there for: a
// person uses one while the other end lives.
func (w *world) wrongWord() bool {
	s, t := w.source.store.newest(), w.target.store.newest()
	if s == nil || t == nil {
		return false
	}
	var err error
	switch {
	case s.Phase == transport.KeycopyCommitted:
		after, _ := Reclaim(s)
		err = w.source.Advance(context.Background(), after, s.Phase)
	case t.Phase == transport.KeycopyStaged:
		after, _ := Activate(t)
		err = w.target.Advance(context.Background(), after, t.Phase)
	default:
		return false
	}
	return err == nil
}
