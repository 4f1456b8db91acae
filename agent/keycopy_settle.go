package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// The last resorts: what a person decides about a transaction whose other end does
// not come back. The management server knows both ends and is asked first. Is it
// not in reach, the person's word counts, and the audit log says so.

// askTime bounds how long the server is waited for.
const askTime = 10 * time.Second

// settleAsk is a question on its way to the server.
type settleAsk struct {
	m      *transport.KeycopySettle
	answer chan settleAnswer // takes one without anybody waiting
}

type settleAnswer struct {
	allowed bool
	why     string // if not
	err     error  // there is no answer
}

// errNoServer is a server that is not in reach, or does not answer.
var errNoServer = errors.New("the management server is not in reach")

// askServer asks for leave. errNoServer says that nobody answered.
func (a *Agent) askServer(ctx context.Context, m *transport.KeycopySettle) (allowed bool, why string, err error) {
	if !a.link.get(a.clock).Up() {
		return false, "", errNoServer
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	ask := &settleAsk{m, make(chan settleAnswer, 1)}
	select {
	case a.copies.settling() <- ask:
	case <-ctx.Done():
		return false, "", errNoServer
	}
	select {
	case r := <-ask.answer:
		return r.allowed, r.why, r.err
	case <-ctx.Done():
		return false, "", errNoServer
	}
}

// settle sends a question for somebody who waits.
func (s *session) settle(ask *settleAsk) ([][]byte, error) {
	return s.saying(func() error { return s.say(ask.m, question{settle: ask}) })
}

// settled is the server's answer.
func (s *session) settled(env *transport.Envelope, m *transport.KeycopySettled) error {
	for i, q := range s.asked {
		if q.settle == nil || env.InReplyTo == nil || q.id != *env.InReplyTo {
			continue
		}
		if q.settle.m.Txn != m.Txn {
			return fmt.Errorf("%w: an answer about another key copy", transport.ErrMalformed)
		}
		s.asked = append(s.asked[:i:i], s.asked[i+1:]...)
		q.settle.reply(settleAnswer{allowed: m.Allowed, why: shorten(m.Why, transport.MaxDetail)})
		return nil
	}
	return nil // nobody waits for it any more
}

// refused is a server that will not, or cannot, decide.
func (q *settleAsk) refused(f *transport.Fault) {
	if f.Code == transport.FaultRefused {
		q.reply(settleAnswer{why: f.Error()})
		return
	}
	q.reply(settleAnswer{err: errNoServer})
}

func (q *settleAsk) reply(r settleAnswer) {
	select {
	case q.answer <- r:
	default:
	}
}

// KeycopySettled is what came of a last resort.
type KeycopySettled struct {
	Deal KeycopyDeal `json:"copy"`
	Text string      `json:"text"`
	Next string      `json:"next,omitempty"`
	// Server is what the management server said: allowed, absent, or "" if it was
	// not asked because nothing depends on it.
	Server string `json:"server,omitempty"`
}

// What a server said.
const (
	serverAllowed = "allowed"
	serverAbsent  = "absent"
)

// A resort is one of the ways out.
type resort struct {
	side transport.KeycopySide
	want transport.KeycopyPhase // what the server is asked for; 0: nothing depends on it
	end  func(*keycopy.Transaction) (*keycopy.Transaction, error)
	fits func(*keycopy.Transaction) bool
	text string
	next string
}

func reclaimed() resort {
	return resort{
		side: transport.KeycopySource, want: transport.KeycopyReclaimed, end: keycopy.Reclaim,
		fits: func(t *keycopy.Transaction) bool { return t.Phase == transport.KeycopyCommitted },
		text: "the keys are in use on this terminal again",
		next: "keep this terminal; should the new one turn up, let it reach this one: it drops what it does not use yet, and both say so if it does",
	}
}

func activated() resort {
	return resort{
		side: transport.KeycopyTarget, want: transport.KeycopyActive, end: keycopy.Activate,
		fits: func(t *keycopy.Transaction) bool {
			return t.Phase == transport.KeycopyStaged && len(t.Moving()) > 0
		},
		text: "the keys are in use on this terminal",
		next: "do not use the old terminal any more; should it turn up, let this one reach it, and it gives its keys up",
	}
}

// abandoned ends what has changed nothing that is needed: no key is lost by it.
func abandoned() resort {
	return resort{
		end: keycopy.Abandon,
		fits: func(t *keycopy.Transaction) bool {
			switch t.Phase {
			case transport.KeycopyOffered, transport.KeycopyStarted, transport.KeycopyActive:
				return true
			}
			return t.Phase == transport.KeycopyStaged && len(t.Moving()) == 0
		},
		text: "the key copy is ended",
		next: "a new copy needs a new code: kagimori keycopy offer, on the old terminal",
	}
}

// dropped destroys what is staged. The old terminal has those keys still, in use
// or disabled; if that is gone for good, they are gone.
func dropped() resort {
	r := abandoned()
	r.fits = func(t *keycopy.Transaction) bool {
		return t.Phase == transport.KeycopyStaged && len(t.Moving()) > 0
	}
	r.text = "what waited here is destroyed"
	r.next = "the old terminal still has the keys; if it shows them as moving: kagimori keycopy reclaim, there"
	return r
}

// lastResort carries one out.
func (a *Agent) lastResort(ctx context.Context, name string, r resort) (*KeycopySettled, error) {
	v, err := a.open()
	if err != nil {
		return nil, err
	}
	id, err := a.pickDeal(name, r.fits)
	if err != nil {
		return nil, err
	}
	t, err := a.dealOn(id, r.side)
	if err != nil {
		return nil, err
	}
	if t.Side == transport.KeycopyTarget { // nothing may go on meanwhile
		if !a.copies.begin(ctx, beginTime) {
			return nil, control.Problemf(control.Conflict, "wait until it is done", "another copy to this terminal is under way")
		}
		defer a.copies.end()
		if t.Phase != transport.KeycopyStarted { // else nothing has come, and nothing is to
			if done, err := a.goesOn(ctx, v, t); done != nil || err != nil {
				return done, err
			}
		}
		if t, err = a.dealOn(id, r.side); err != nil { // it may have come further
			return nil, err
		}
	}
	if !r.fits(t) {
		return nil, a.unfit(v, id)
	}
	return a.decide(ctx, v, t, r)
}

// goesOn tries whether the other end is there after all: then nobody has to
// decide anything.
func (a *Agent) goesOn(ctx context.Context, v *vault, t *keycopy.Transaction) (*KeycopySettled, error) {
	if a.cfg.Keycopy == nil || !t.Phase.Open() {
		return nil, nil
	}
	quick, cancel := context.WithTimeout(ctx, quickTime)
	defer cancel()
	after, err := a.resume(quick, t.ID, "", nil)
	if err != nil || after == nil || after.Phase.Open() {
		return nil, ctx.Err()
	}
	s, err := a.settledAs(v, t.ID)
	if err == nil {
		s.Text = "the other terminal is there: the key copy went on by itself; " + s.Deal.Text
	}
	return s, err
}

// decide asks the server, if something depends on it, and makes the step.
func (a *Agent) decide(ctx context.Context, v *vault, t *keycopy.Transaction, r resort) (*KeycopySettled, error) {
	server, note := "", ""
	if r.want != 0 {
		allowed, why, err := a.askServer(ctx, &transport.KeycopySettle{Txn: t.ID, Side: t.Side, Peer: t.Peer, Want: r.want})
		switch {
		case err != nil:
			server, note = serverAbsent, "without the server"
		case !allowed:
			return nil, control.Problemf(control.Refused, "see: kagimori-server keycopy show "+short(t.ID), "the management server does not allow it: %s", why)
		default:
			server, note = serverAllowed, "the server allows it"
		}
	}
	j := journal{vault: v, note: note}
	now, err := j.Find(ctx, t.ID)
	if err != nil {
		return nil, err
	}
	defer now.Resume.Wipe()
	next, err := r.end(now)
	if err != nil {
		return nil, a.unfit(v, t.ID)
	}
	switch err := j.Advance(ctx, next, now.Phase); {
	case errors.Is(err, keycopy.ErrOtherPhase):
		return nil, a.unfit(v, t.ID)
	case err != nil:
		return nil, err
	}
	if o := a.copies.standing(); o != nil && o.opensTransaction(t.ID) {
		o.source.Disarm() // its code is of no more use
	}
	a.log.Warn("key copy settled by an administrator", "txn", short(t.ID), "phase", next.Phase, "server", server)
	s, err := a.settledAs(v, t.ID)
	if err == nil {
		s.Server = server
		if s.Text, s.Next = r.text, r.next; now.Phase == transport.KeycopyActive {
			s.Text, s.Next = r.text+"; the keys stay in use on this terminal", "do not use the old terminal any more, and take nothing back there: it may still have the keys, disabled"
		}
	}
	return s, err
}

// settledAs describes a transaction as it is now.
func (a *Agent) settledAs(v *vault, id transport.ID) (s *KeycopySettled, err error) {
	s = &KeycopySettled{}
	err = v.store.View(func(tx *store.Tx) error {
		d, err := findDeal(tx, id)
		defer d.wipe()
		if err != nil || d == nil {
			return err
		}
		s.Deal, err = a.describe(tx, d)
		return err
	})
	return s, err
}

// unfit is a transaction that is not in a phase for what was asked.
func (a *Agent) unfit(v *vault, id transport.ID) error {
	s, err := a.settledAs(v, id)
	if err != nil {
		return err
	}
	next := s.Deal.Next
	if next == "" {
		next = "nothing to do"
	}
	return control.Problemf(control.Conflict, next, "that is not for this key copy: %s", s.Deal.Text)
}

// dealOn gives a transaction of this terminal's as the end that side says, any
// if "", without its resume key.
func (a *Agent) dealOn(id transport.ID, side transport.KeycopySide) (t *keycopy.Transaction, err error) {
	v, err := a.open()
	if err != nil {
		return nil, err
	}
	err = v.store.View(func(tx *store.Tx) error {
		d, err := findDeal(tx, id)
		defer d.wipe()
		if err == nil && d != nil {
			held := d.Deal
			held.Resume = nil
			t = &held
		}
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case t == nil:
		return nil, control.Problemf(control.NotFound, "see: "+a.cfg.Program+" keycopy list", "no key copy %s is on record", short(id))
	case side != "" && t.Side != side:
		return nil, control.Problemf(control.Conflict, "do it on the other terminal", "this terminal is the %s of key copy %s", map[transport.KeycopySide]string{
			transport.KeycopySource: "old one", transport.KeycopyTarget: "new one"}[t.Side], short(id))
	}
	return t, nil
}
