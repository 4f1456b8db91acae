package keycopy

// What goes by itself between two connections, and what the operator does when
// nothing does: as the agent's loop and its messages have it.

import (
	"context"
	"errors"
	"fmt"

	"github.com/kagimori/kagimori/transport"
)

// play runs the whole script. What it finds is in w.violations.
func (w *world) play() {
	defer func() {
		w.checkHistory(w.source)
		w.checkHistory(w.target)
	}()
	defer func() {
		switch r := recover(); r {
		case nil:
		case errRunaway:
			w.broken("finishes", "%v", errRunaway)
		default:
			panic(fmt.Sprintf("%v\nin the run %q", r, w.script))
		}
	}()
	w.check("at first")
	for range maxRounds {
		w.revive()
		if w.over() {
			w.finish()
			return
		}
		w.round()
	}
	w.broken("finishes", "after %d rounds: Source %s, Target %s", maxRounds, phaseOf(w.source), phaseOf(w.target))
}

// revive starts the ends that lost their power.
func (w *world) revive() {
	for _, e := range []*simEnd{w.source, w.target} {
		if !e.up && !e.dead {
			e.boot()
		}
	}
}

// person is something that somebody or the program does while no connection
// stands. A power cut ends it where it is.
func (w *world) person(do func()) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(powerCut); !ok {
				panic(r)
			}
		}
	}()
	do()
}

// round is one connection, or what the operator does so that there can be one.
func (w *world) round() {
	w.link = [2]*simConn{}
	open := w.target.store.newest()
	switch {
	case w.source.dead || w.target.dead:
		w.person(w.lastResort)
	case w.mutant.errs && w.wrongWord():
	case open != nil && open.Phase.Open() && !w.givenUp(open):
		w.resume(open)
	case !w.armed():
		w.person(w.arm)
	case w.target.target == nil || w.target.code.of != w.offers || !w.target.target.Usable():
		w.person(w.typeCode)
	default:
		w.fetch()
	}
}

// givenUp says that open cannot go on by itself and waits for a new code.
func (w *world) givenUp(open *Transaction) bool {
	return open.Phase == transport.KeycopyStarted && (w.settled[open.ID] || w.eager)
}

func (w *world) armed() bool {
	if w.source.source == nil || w.source.code == nil {
		return false
	}
	state, _ := w.source.source.State()
	return state == Armed
}

func (w *world) digits() string {
	var b [8]byte
	w.rng.Read(b[:])
	for i := range b {
		b[i] = '0' + b[i]%10
	}
	return string(b[:])
}

// arm makes a code on the Source.
func (w *world) arm() {
	_ = w.op(w.source, "keycopy offer")
	w.newOffer()
}

func (w *world) newOffer() {
	w.offers++
	if w.source.source != nil {
		if w.source.code != nil {
			w.source.code.excused = true
		}
		w.source.source.Disarm()
	}
	w.spoken = w.digits()
	w.source.source = NewSource(w.sourceConfig(), w.newCode(w.source, w.spoken))
}

// typeCode is keycopy fetch with the Source's code, or a wrong one.
func (w *world) typeCode() {
	_ = w.op(w.target, "keycopy fetch")
	digits := w.spoken
	if w.typed++; w.typed <= w.script.wrong {
		digits = w.digits()
	}
	if w.target.target != nil {
		if w.target.code != nil {
			w.target.code.excused = true
		}
		w.target.target.Wipe()
	}
	w.target.target = NewTarget(w.targetConfig(), w.newCode(w.target, digits))
}

// serve is the Source's part of a connection.
func (w *world) serve(c *simConn) error {
	if w.source.source == nil {
		w.source.source = NewResponder(w.sourceConfig())
	}
	defer c.Close()
	return Serve(context.Background(), c, w.source.source)
}

func (w *world) fetch() {
	struck, source, target := w.struck, (*simConn)(nil), (*simConn)(nil)
	source, target = w.connect()
	code := w.target.code
	source.code, w.eager = w.source.code.of, false
	w.note("-- fetch")
	s := w.start(source, func() error { return w.serve(source) })
	t := w.start(target, func() error {
		_, err := Fetch(context.Background(), target, w.target.target)
		if err != nil {
			code.excused = true // it may have been judged
		}
		return err
	})
	w.run()
	w.momentOver()
	w.note("-- Source: %v; Target: %v", s.err, t.err)
	if errors.Is(t.err, transport.KeycopyBusy) {
		w.wait()
		return
	}
	if t.err != nil && w.struck == struck && w.mangle == nil {
		w.arms++
		if w.arms > len(w.script.faults)+w.script.wrong+2 {
			w.broken("finishes", "fetch fails although nothing is wrong: %v", t.err)
		}
	}
}

func (w *world) resume(open *Transaction) {
	struck := w.struck
	source, target := w.connect()
	w.note("-- resume in phase %s", open.Phase)
	s := w.start(source, func() error { return w.serve(source) })
	t := w.start(target, func() error {
		_, err := Resume(context.Background(), target, w.targetConfig(), open)
		return err
	})
	w.run()
	w.momentOver()
	w.note("-- Source: %v; Target: %v", s.err, t.err)
	if t.err == nil || w.struck != struck || w.mangle != nil {
		return
	}
	if now := w.target.store.txns[open.ID]; now.Phase != open.Phase {
		return // it went on, or was ended
	}
	if open.Phase == transport.KeycopyStarted && errors.Is(t.err, transport.KeycopyTxnUnknown) {
		w.settled[open.ID] = true
		return
	}
	w.broken("finishes", "resume in phase %s fails although nothing is wrong: %v (Source: %v)", open.Phase, t.err, s.err)
	panic(errRunaway)
}

// abandon is keycopy abandon on the Source, or the end of its resume window.
func (w *world) abandon() {
	e := w.source
	if e.writing {
		e.waiting = append(e.waiting, w.abandon)
	}
	if e.writing || !e.up {
		return
	}
	t := e.store.newest()
	if t == nil || t.Phase != transport.KeycopyOffered {
		return
	}
	after, err := Abandon(t)
	if err != nil {
		w.violate("abandon in phase %s: %v", t.Phase, err)
		return
	}
	if e.code != nil {
		e.code.excused = true
	}
	entry := &simEntry{Txns: []Transaction{*after}}
	if w.mutant.entry != nil {
		w.mutant.entry(e, after, entry)
	}
	encoded := encodeEntry(entry)
	e.disk.append(encoded)
	e.disk.sync()
	back, _, _ := decodeEntry(encoded)
	e.store.apply(back)
	e.safe.apply(back)
	if e.source != nil {
		e.source.Disarm()
	}
}

func phaseOf(e *simEnd) string {
	switch t := e.safe.newest(); {
	case e.dead:
		return "dead"
	case t == nil:
		return "idle"
	default:
		return t.Phase.String()
	}
}

// over says that nothing is left to do.
func (w *world) over() bool {
	s, t := w.source.safe.newest(), w.target.safe.newest()
	if w.source.dead || w.target.dead {
		e, _ := w.resort()
		return e == nil && !w.script.found
	}
	if t != nil && t.Phase == transport.KeycopyUnreceipted {
		return true
	}
	if w.wasFound && (t == nil || !t.Phase.Open()) {
		return true
	}
	return s != nil && t != nil && s.ID == t.ID && s.Phase == transport.KeycopyDone && t.Phase == transport.KeycopyClosed
}

// wait is what the operator does until connections that hang have ended.
func (w *world) wait() {
	for _, s := range w.strands {
		s.held = false
	}
	w.run()
}

// finish lets what still hangs come to its end, and looks at what is left.
func (w *world) finish() {
	w.faults = nil
	w.wait()
	if w.source.source != nil && w.source.code != nil { // one made too early: it expires
		w.source.code.excused = true
		w.source.source.Disarm()
	}
	if w.target.target != nil {
		w.target.code.excused = true
		w.target.target.Wipe()
	}
	w.check("at the end")
	w.checkEnd()
}
