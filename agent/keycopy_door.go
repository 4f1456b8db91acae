package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/tcp"
)

// The old terminal's door: it is open exactly while an offer stands, a transaction
// is open, or the other end of one may still ask what became of it; after a
// restart too.

const (
	// doorTick is how often it is looked whether a transaction's time is over.
	doorTick = time.Minute
	// farewellTime bounds how long an offer that has ended waits for the new
	// terminal to say that it knows.
	farewellTime = transport.KeycopyMessageTimeout + 2*time.Second
)

// An arming is an offer on its way to the door.
type arming struct {
	offer *offering
	reply chan error // nil: it stands
}

// A door is run by one goroutine.
type door struct {
	*Agent
	listener net.Listener // nil: it is shut
	party    *party       // that it was opened for
	failed   bool         // it could not be opened, and that is said
	stop     context.CancelFunc
	serving  sync.WaitGroup
	watching sync.WaitGroup
	ended    chan *offering
	responder
}

// responder is what connections are served by while no offer stands.
type responder struct {
	mu     sync.Mutex
	source *keycopy.Source // guarded by mu
}

// runKeycopy keeps the door until ctx ends.
func (a *Agent) runKeycopy(ctx context.Context) {
	changed, stop := a.Watch()
	defer stop()
	d := &door{Agent: a, ended: make(chan *offering, 1)}
	tick := time.NewTicker(doorTick)
	defer tick.Stop()
	a.sweep(ctx)
	for {
		d.adjust(ctx)
		select {
		case <-ctx.Done():
			d.shut()
			d.watching.Wait()
			select {
			case o := <-d.ended:
				d.over(o)
			default:
			}
			return
		case r := <-a.copies.armed():
			r.reply <- d.offer(ctx, r.offer)
		case o := <-d.ended:
			d.over(o)
		case <-changed:
		case <-tick.C:
			a.sweep(ctx)
			d.renewed()
		}
	}
}

// offer opens the door for an offer, under what this terminal is by now.
func (d *door) offer(ctx context.Context, o *offering) error {
	d.shut()
	if err := d.open(ctx, o.party); err != nil {
		return control.Problemf(control.Unavailable, "choose another address for listen in the [keycopy] section, or stop what uses it", "%w", err)
	}
	if err := o.opened(d.listener.Addr()); err != nil {
		d.shut()
		return err
	}
	d.copies.mu.Lock()
	d.copies.offer = o
	d.copies.mu.Unlock()
	announced, quiet := context.WithCancel(ctx)
	d.watching.Go(func() { d.announce(announced, o.chosen.Listen) })
	d.watching.Go(func() {
		o.outcome = o.source.Watch(ctx)
		quiet()
		o.farewell()
		d.ended <- o
	})
	return nil
}

// over is an offer that has ended. The door is shut before anybody hears of it,
// if nothing else keeps it open.
func (d *door) over(o *offering) {
	d.copies.mu.Lock()
	d.copies.offer = nil
	d.copies.mu.Unlock()
	d.adjust(context.Background())
	d.log.Info("key copy offer ended", "reason", string(o.outcome.Reason))
	close(o.done)
}

// adjust opens or shuts the door, as what is on record wants it.
func (d *door) adjust(ctx context.Context) {
	wanted := d.wanted()
	switch {
	case ctx.Err() != nil || d.listener != nil == wanted:
	case !wanted:
		d.shut()
	default:
		p, err := d.endpoint()
		if err == nil {
			err = d.open(ctx, p)
		}
		if err != nil && !d.failed {
			d.log.Error("the new terminal cannot come back for an open key copy", "err", err)
		}
		d.failed = err != nil
		d.copies.mu.Lock()
		d.copies.shut = ""
		if err != nil {
			d.copies.shut = err.Error()
		}
		d.copies.mu.Unlock()
	}
}

// wanted says whether somebody may come.
func (d *door) wanted() (found bool) {
	offer := d.copies.standing()
	v, err := d.Agent.open()
	if offer != nil || err != nil || d.cfg.Keycopy == nil {
		return offer != nil
	}
	err = v.store.View(func(tx *store.Tx) error {
		return eachOpen(tx, func(r *dealRecord) error {
			found = found || r.Deal.Side == transport.KeycopySource
			return nil
		})
	})
	return found && err == nil
}

// open listens, and serves until shut.
func (d *door) open(ctx context.Context, p *party) (err error) {
	if d.listener, err = tcp.Listen(ctx, d.cfg.Keycopy.Listen); err != nil {
		return err
	}
	d.party = p
	d.responder.mu.Lock()
	d.responder.source = keycopy.NewResponder(d.sourceConfig(p, armOrder{}, d.noted))
	d.responder.mu.Unlock()
	d.copies.mu.Lock()
	d.copies.listen = d.listener.Addr().String()
	d.copies.mu.Unlock()
	serving, stop := context.WithCancel(ctx)
	d.stop = stop
	listener, cfg := d.listener, p.tcp
	if cfg.Modes, err = p.vault.answered(d.cfg.Keycopy.modes()); err != nil {
		d.log.Error("which modes open key copies have is not known", "err", err) // enabled ones are served
	}
	cfg.Refused = func(remote string, err error) {
		if o := d.copies.standing(); o != nil {
			o.tell(turnedForeign(remote, err))
		}
	}
	d.serving.Go(func() {
		err := tcp.Serve(serving, listener, cfg, d.serve)
		if err == nil {
			return
		}
		d.log.Error("key copy listener failed", "err", err)
		if o := d.copies.standing(); o != nil {
			o.source.Disarm()
		}
	})
	return nil
}

// sourceConfig is what this terminal gives to whoever may have it.
func (a *Agent) sourceConfig(p *party, order armOrder, progress func(keycopy.Event)) keycopy.SourceConfig {
	return keycopy.SourceConfig{
		End: keycopy.End{
			Device: p.vault.device, Attempts: attempts{vault: p.vault, role: roleSource, now: a.clock.Steady}, Clock: p.clock, Random: rand.Reader,
			Modes: a.cfg.Keycopy.modes(), RequireIdentity: a.cfg.Keycopy.RequireIdentity, Progress: progress,
		},
		Codes: p.codes, Move: order.move, Journal: journal{vault: p.vault},
		Records: func(ctx context.Context, wanted []transport.Name, parent *transport.KeycopyParent) ([]transport.CredentialRecord, []transport.KeycopyWithheld, error) {
			return p.vault.given(ctx, order.selected, wanted, parent)
		},
	}
}

// shut ends what goes through the door, and waits for it.
func (d *door) shut() {
	if d.listener == nil {
		return
	}
	d.stop()
	d.listener.Close()
	d.serving.Wait()
	d.listener = nil
	d.copies.mu.Lock()
	d.copies.listen = ""
	d.copies.mu.Unlock()
}

// renewed shows another identity certificate, once there is one.
func (d *door) renewed() {
	if d.listener == nil || d.copies.standing() != nil {
		return
	}
	if p, err := d.endpoint(); err == nil && !p.sameIdentity(d.party) {
		d.shut()
	}
}

// serve serves one connection: the offer that stands answers for it, else the
// journal.
func (d *door) serve(ctx context.Context, c *tcp.Conn) error {
	o := d.copies.standing()
	if o != nil {
		o.enter()
		defer o.leave()
		err := keycopy.Serve(ctx, c, o.source)
		if errors.Is(err, keycopy.ErrWrongCode) {
			d.party.vault.wrongCode(c.Channel().Remote)
		}
		return err
	}
	d.responder.mu.Lock()
	s := d.responder.source
	d.responder.mu.Unlock()
	return keycopy.Serve(ctx, c, s)
}

// noted logs what happens while no offer stands.
func (d *door) noted(ev keycopy.Event) {
	switch ev.Kind {
	case keycopy.EventResumed, keycopy.EventClosed, keycopy.EventEnded, keycopy.EventInterrupted, keycopy.EventConflict:
		t := ev.Transaction
		if t == nil {
			return
		}
		d.log.Info("key copy goes on", "step", string(ev.Kind), "txn", short(t.ID), "phase", t.Phase, "remote", ev.Remote, "err", ev.Err)
	}
}

// Times that a transaction may take, by Clock.Steady.
const (
	// resumeWindow ends what has changed nothing at this terminal yet.
	resumeWindow = 24 * time.Hour
	// tombstoneTime is how long a transaction that is over at the Source is kept
	// to be asked for.
	tombstoneTime = 7 * 24 * time.Hour
)

// sweep ends what has waited for too long.
func (a *Agent) sweep(ctx context.Context) {
	v, err := a.open()
	if err != nil {
		return
	}
	var due []*keycopy.Transaction
	now := a.clock.Steady()
	err = v.store.View(func(tx *store.Tx) error {
		return eachOpen(tx, func(d *dealRecord) error {
			t := d.Deal
			since := func(steady int64) time.Duration { return now.Sub(time.Unix(steady, 0)) }
			switch {
			case t.Phase == transport.KeycopyOffered || t.Phase == transport.KeycopyStarted:
				if since(d.Opened) < resumeWindow {
					return nil
				}
			case t.Phase.Open() || since(d.Ended) < tombstoneTime:
				return nil
			}
			t.Resume = append(transport.Sensitive(nil), t.Resume...)
			due = append(due, &t)
			return nil
		})
	})
	for _, t := range due {
		end := keycopy.Abandon
		if !t.Phase.Open() {
			end = keycopy.Forget
		}
		over, failed := end(t)
		if failed == nil {
			failed = journal{vault: v, note: "nobody came back for it"}.Advance(ctx, over, t.Phase)
		}
		t.Resume.Wipe()
		if failed != nil && !errors.Is(failed, keycopy.ErrOtherPhase) {
			err = errors.Join(err, failed)
		}
	}
	if err != nil {
		a.log.Warn("key copies whose time is over are not ended yet", "err", err)
	}
}
