package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"sync"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/tcp"
)

// The old terminal's end (req: C2, C5, C9). An offer belongs to the daemon, not
// to the program that asked for it: a lost login does not break a copy. It
// ends when the copy is done, its time is over, or somebody disarms it.

// offerEvents is how many events wait for a reader; more are dropped.
const offerEvents = 256

// An offering is one offer that stands.
type offering struct {
	party    *party
	source   *keycopy.Source
	listener net.Listener
	chosen   KeycopyEvent // what would be copied
	events   chan KeycopyEvent
	done     chan struct{}   // closed when it has ended
	outcome  keycopy.Outcome // set before done is closed
}

// runKeycopy runs the offers, one after the other, until ctx ends.
func (a *Agent) runKeycopy(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case o := <-a.copies.armed():
			o.run(ctx, a)
		}
	}
}

// run serves an offer until it has ended.
func (o *offering) run(ctx context.Context, a *Agent) {
	serving, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() {
		cfg := o.party.tcp
		cfg.Refused = func(remote string, err error) { o.tell(turnedForeign(remote, err)) }
		err := tcp.Serve(serving, o.listener, cfg, func(ctx context.Context, c *tcp.Conn) error {
			return o.party.vault.wrongCode(c.Channel().Remote, keycopy.Serve(ctx, c, o.source))
		})
		if err != nil {
			a.log.Error("key copy listener failed", "err", err)
			o.source.Disarm()
		}
	})
	o.outcome = o.source.Watch(ctx)
	stop()
	wg.Wait()
	a.copies.mu.Lock()
	a.copies.offer = nil
	a.copies.mu.Unlock()
	a.log.Info("key copy offer ended", "reason", string(o.outcome.Reason))
	close(o.done)
}

// arm makes an operator code, or takes the operator's own, and opens the door.
// The code is the caller's to show and wipe; it is nil if the operator knows it.
func (a *Agent) arm(ctx context.Context, order armOrder) (o *offering, code []byte, err error) {
	defer order.typed.Wipe()
	selected := order.selected
	p, err := a.party()
	if err != nil {
		return nil, nil, err
	}
	a.copies.mu.Lock()
	defer a.copies.mu.Unlock()
	if a.copies.offer != nil {
		return nil, nil, control.Problemf(control.Conflict, "use the code that was shown, or destroy it first: "+a.cfg.Program+" keycopy disarm", "an offer stands already")
	}
	o = &offering{party: p, events: make(chan KeycopyEvent, offerEvents), done: make(chan struct{})}
	if err := o.choose(selected); err != nil {
		return nil, nil, err
	}
	if err := p.answers(ctx); err != nil {
		return nil, nil, err
	}
	if o.listener, err = tcp.Listen(ctx, a.cfg.Keycopy.Listen); err != nil {
		return nil, nil, control.Problemf(control.Unavailable, "choose another address for listen in the [keycopy] section, or stop what uses it", "%w", err)
	}
	if err := p.show(); err != nil {
		o.listener.Close()
		return nil, nil, err
	}
	operator, err := a.operatorCode(ctx, p, order)
	if err != nil {
		o.listener.Close()
		return nil, nil, err
	}
	if err := p.vault.logged(audit.CopyOffered, o.listener.Addr(), "%s", offered(o.chosen.Keys)); err != nil {
		operator.Wipe()
		o.listener.Close()
		return nil, nil, err
	}
	if o.chosen.CodeKind = operator.Kind(); o.chosen.CodeKind == keycopy.CodeGenerated {
		code = operator.Grouped()
	}
	o.chosen.Seconds = int(math.Ceil(operator.Remaining(p.clock()).Seconds()))
	o.invite()
	if a.link.get(a.clock).State == LinkRefused {
		o.chosen.Warning = "the management server does not accept this terminal any more (was it removed?): gates may refuse the keys that are copied"
	}
	o.source = keycopy.NewSource(keycopy.SourceConfig{
		End: keycopy.End{
			Device: p.vault.device, Attempts: attempts{vault: p.vault, role: roleSource, now: a.clock.Steady}, Clock: p.clock, Random: rand.Reader,
			Progress: func(ev keycopy.Event) { o.progress(ev) },
		},
		Codes: p.codes,
		Records: func(context.Context, *transport.KeycopyParent) ([]transport.CredentialRecord, []transport.KeycopyWithheld, error) {
			records, err := p.vault.records(selected)
			return records, nil, err
		},
		Journal: journal{p.vault},
	}, operator)
	select {
	case a.copies.armed() <- o:
		a.copies.offer = o
		a.log.Info("key copy offered", "listen", o.chosen.Listen, "keys", len(o.chosen.Keys))
		return o, code, nil
	case <-ctx.Done():
		o.source.Disarm()
		clear(code)
		return nil, nil, errors.Join(ctx.Err(), o.listener.Close())
	}
}

// offered names keys in an entry of the audit log.
func offered(keys []KeycopyKey) string {
	ids := make([]transport.Name, len(keys))
	for i, k := range keys {
		ids[i] = k.ID
	}
	return listed(ids)
}

// answers proves that the security code can be used: with a chip that has died,
// an offer would turn everybody away.
func (p *party) answers(ctx context.Context) error {
	tag, err := p.codes[0].MAC(ctx, []byte("is it there"))
	if err != nil {
		problem, _ := storageProblem(err)
		return fmt.Errorf("use the security code: %w", problem)
	}
	tag.Wipe()
	return nil
}

// backdated makes codes live shorter than the protocol allows, if the
// configuration says so.
func (a *Agent) backdated(now keycopy.Instant) keycopy.Instant {
	if ttl := a.cfg.Keycopy.CodeTTL; ttl > 0 && ttl < keycopy.CodeLifetime {
		now.Wall, now.Mono = now.Wall.Add(ttl-keycopy.CodeLifetime), now.Mono+ttl-keycopy.CodeLifetime
	}
	return now
}

// choose finds out what would be copied, and refuses to arm for nothing.
func (o *offering) choose(selected []transport.Name) error {
	p := o.party
	for _, id := range selected {
		if _, err := transport.ParseName(string(id)); err != nil {
			return control.Problemf(control.BadInput, "list them with `credential list`", "%w", err)
		}
	}
	err := p.vault.store.View(func(tx *store.Tx) error {
		wait, err := locked(tx, roleSource, p.vault.clock.Steady())
		if err == nil && wait > 0 {
			err = control.Problemf(control.Refused, "find out who typed them; wait, or run: sudo kagimori keycopy unlock", "%w", &keycopy.Locked{For: wait})
		}
		return err
	})
	if err != nil {
		return err
	}
	records, err := p.vault.records(nil)
	if err != nil {
		return err
	}
	defer keycopy.WipeRecords(records)
	offer, err := keycopy.Choose(records, keycopy.Choice{Select: selected, Want: transport.TransferCopy, Now: p.clock().Date})
	if err != nil {
		return err
	}
	defer offer.Wipe()
	held := heldOf(offer.Withheld)
	if missing := heldIDs(held, transport.KeycopyNotHeld.String()); missing != "" { // better now than when the new terminal is there
		next := "have one issued to this terminal first"
		if len(records) > 0 {
			next = "name one that is listed by: kagimori credential list"
		}
		return control.Problemf(control.NotFound, next, "this terminal holds no credential %s", missing)
	}
	o.chosen = KeycopyEvent{Step: stepArmed, Items: len(offer.Items), Keys: keysOf(offer.Items, nil), Held: held, More: int(offer.More)}
	o.chosen.Text = "waiting for the new terminal"
	switch {
	case len(offer.Items) > 0:
		return nil
	case len(offer.Withheld) > 0:
		w := offer.Withheld[0]
		return control.Problemf(control.Conflict, "see all of them with `credential list`", "there is nothing to copy: %s: %s", w.ID, w.Reason)
	}
	return control.Problemf(control.NotFound, "an offer is made on the old terminal: if this is the new one, run there `kagimori keycopy offer`, then here `kagimori keycopy fetch HOST:PORT`; if it is the old one, have a credential issued to it first", "there is nothing to copy: this terminal holds no credential")
}

// progress is called by the protocol; it must not block.
func (o *offering) progress(ev keycopy.Event) {
	if ev.Kind == keycopy.EventClosed {
		return // result says that
	}
	if worthTelling(ev) {
		o.tell(tell(ev, roleSource))
	}
}

func (o *offering) tell(ev KeycopyEvent) {
	select {
	case o.events <- ev:
	default:
	}
}

// result says how an offer ended: an event, or a Problem.
func (o *offering) result() (KeycopyEvent, error) {
	t := o.outcome.Transaction
	switch o.outcome.Reason {
	case keycopy.EndDelivered:
		ev := tell(keycopy.Event{Kind: keycopy.EventClosed, Transaction: t}, roleSource)
		ev.Text = fmt.Sprintf("done: %s on %s; this terminal still holds %s, and may be unplugged", count(len(ev.Keys), "key"), peerText(t.Name, &t.Peer, t.Remote), them(len(ev.Keys)))
		ev.Next = "the new terminal is ready; a further copy needs a new code"
		return ev, nil
	case keycopy.EndExpired:
		return KeycopyEvent{}, control.Problemf(control.Unavailable, "run it again when the new terminal is at hand", "nobody came in time; the operator code is destroyed, nothing was copied")
	case keycopy.EndKilled:
		return KeycopyEvent{}, control.Problemf(control.Refused, "make sure that the right terminal asks, then run it again for a new code", "wrong operator codes were typed %d times; the code is destroyed, nothing was copied", keycopy.CodeAttempts)
	case keycopy.EndDisarmed:
		return KeycopyEvent{}, control.Problemf(control.Interrupted, "run it again for a new code", "the offer was called off; the operator code is destroyed")
	}
	return KeycopyEvent{}, control.Problemf(control.Unavailable, "look at the new terminal: `"+"kagimori credential list` there says whether the keys arrived; if not, run it again for a new code",
		"the copy broke off after the codes matched; the operator code is destroyed, and this terminal still holds its keys")
}

func them(n int) string {
	if n == 1 {
		return "it"
	}
	return "them"
}

// disarm destroys the operator code in force. It says whether there was one.
func (a *Agent) disarm() bool {
	a.copies.mu.Lock()
	o := a.copies.offer
	a.copies.mu.Unlock()
	if o == nil {
		return false
	}
	o.source.Disarm()
	<-o.done
	return true
}

// unlock forgets wrong operator codes, on an administrator's word.
func (a *Agent) unlock() error {
	v, err := a.open()
	if err != nil {
		return err
	}
	for _, r := range []role{roleSource, roleTarget} {
		t := attempts{vault: v, role: r}
		if err := t.change(func(_ *store.Tx, log *keycopy.AttemptLog) error { log.Reset(); return nil }); err != nil {
			return err
		}
	}
	if err := v.logged(audit.CopyUnlocked, "", ""); err != nil {
		return err
	}
	a.log.Warn("wrong operator codes forgotten by an administrator")
	return nil
}

// records gives copies of this terminal's credentials, those selected or all.
// The caller wipes them.
func (v *vault) records(selected []transport.Name) (list []transport.CredentialRecord, err error) {
	err = v.store.View(func(tx *store.Tx) error {
		return tx.Each(bucketCredentials, func(key string, decode func(any) error) error {
			if len(selected) > 0 && !slices.Contains(selected, transport.Name(key)) {
				return nil
			}
			var h holdingRecord
			if err := decode(&h); err != nil {
				return err
			}
			list = append(list, h.Record)
			return nil
		})
	})
	if err != nil {
		keycopy.WipeRecords(list)
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	return list, nil
}
