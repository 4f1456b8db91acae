package agent

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
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
	operator *keycopy.OperatorCode
	tag      *uint16      // of a code that the operator typed
	chosen   KeycopyEvent // what would be copied
	events   chan KeycopyEvent
	done     chan struct{}   // closed when it has ended
	outcome  keycopy.Outcome // set before done is closed

	mu     sync.Mutex
	txn    transport.ID  // guarded by mu: the transaction that the code has opened
	served int           // guarded by mu: connections that it serves
	idle   chan struct{} // guarded by mu: closed when there is none; nil while there are
}

// arm makes an operator code, or takes the operator's own, and opens the door.
// The code is the caller's to show and wipe; it is nil if the operator knows it.
func (a *Agent) arm(ctx context.Context, order armOrder) (o *offering, code []byte, err error) {
	defer order.typed.Wipe()
	p, err := a.party()
	if err != nil {
		return nil, nil, err
	}
	a.copies.arming.Lock()
	defer a.copies.arming.Unlock()
	if a.copies.standing() != nil {
		return nil, nil, control.Problemf(control.Conflict, "use the code that was shown, or destroy it first: "+a.cfg.Program+" keycopy disarm", "an offer stands already")
	}
	o = &offering{party: p, events: make(chan KeycopyEvent, offerEvents), done: make(chan struct{})}
	if err := o.choose(order); err != nil {
		return nil, nil, err
	}
	if err := p.answers(ctx); err != nil {
		return nil, nil, err
	}
	if err := a.cfg.Keycopy.offerable(p.identity() != nil); err != nil {
		return nil, nil, err
	}
	if err := p.show(); err != nil {
		return nil, nil, err
	}
	if o.operator, o.tag, err = a.operatorCode(ctx, p, order); err != nil {
		return nil, nil, err
	}
	if o.chosen.CodeKind = o.operator.Kind(); o.chosen.CodeKind == keycopy.CodeGenerated {
		code = o.operator.Grouped()
	}
	if a.link.get(a.clock).State == LinkRefused {
		o.chosen.Warning = "the management server does not accept this terminal any more (was it removed?): gates may refuse the keys that are copied"
	}
	o.source = keycopy.NewSource(a.sourceConfig(p, order, o.progress), o.operator)
	if err := a.stand(ctx, o); err != nil {
		o.source.Disarm()
		clear(code)
		return nil, nil, err
	}
	a.log.Info("key copy offered", "listen", o.chosen.Listen, "keys", len(o.chosen.Keys))
	return o, code, nil
}

// stand hands an offer to the door.
func (a *Agent) stand(ctx context.Context, o *offering) error {
	r := arming{o, make(chan error, 1)}
	select {
	case a.copies.armed() <- r:
		return <-r.reply
	case <-ctx.Done():
		return ctx.Err()
	}
}

// opened is called when the door is open, before anybody is let in.
func (o *offering) opened(at net.Addr) error {
	v := o.party.vault
	err := v.update(func(tx *store.Tx) error {
		return errors.Join(v.useCode(tx, o.tag, true), v.audit(tx, audit.CopyOffered, at.String(), "%s", offered(o.chosen.Keys)))
	})
	if err != nil {
		return err
	}
	o.chosen.Seconds = int(math.Ceil(o.operator.Remaining(o.party.clock()).Seconds()))
	o.invite(at)
	return nil
}

// opensTransaction says whether id is the transaction of this offer's code.
func (o *offering) opensTransaction(id transport.ID) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.txn == id
}

// enter counts a connection that this offer serves.
func (o *offering) enter() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.served++
}

func (o *offering) leave() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.served--; o.served == 0 && o.idle != nil {
		close(o.idle)
		o.idle = nil
	}
}

// farewell waits, for a moment, for the connections of an offer that has ended:
// the new terminal may be about to say that it knows.
func (o *offering) farewell() {
	if o.outcome.Reason != keycopy.EndDelivered {
		return
	}
	o.mu.Lock()
	var idle chan struct{}
	if o.served > 0 {
		idle = make(chan struct{})
		o.idle = idle
	}
	o.mu.Unlock()
	if idle == nil {
		return
	}
	select {
	case <-idle:
	case <-time.After(farewellTime):
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

// choose finds out what would be copied, and refuses to arm for nothing.
func (o *offering) choose(order armOrder) error {
	p := o.party
	for _, id := range order.selected {
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
	records, away, err := p.vault.records(nil)
	if err != nil {
		return err
	}
	defer keycopy.WipeRecords(records)
	forPreview(records)
	offer, err := keycopy.Choose(records, keycopy.Choice{Select: order.selected, Want: transport.TransferMove, Move: order.move, Now: p.clock().Date, Withheld: away})
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
	if ev.Kind == keycopy.EventGranted && ev.Transaction != nil {
		o.mu.Lock()
		o.txn = ev.Transaction.ID
		o.mu.Unlock()
	}
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
		return o.delivered(t)
	case keycopy.EndPending:
		return KeycopyEvent{}, goesOnAlone(t)
	case keycopy.EndExpired:
		return KeycopyEvent{}, control.Problemf(control.Unavailable, "run it again when the new terminal is at hand", "nobody came in time; the operator code is destroyed, nothing was copied")
	case keycopy.EndKilled:
		return KeycopyEvent{}, control.Problemf(control.Refused, "make sure that the right terminal asks, then run it again for a new code", "wrong operator codes were typed %d times; the code is destroyed, nothing was copied", keycopy.CodeAttempts)
	case keycopy.EndDisarmed:
		if t != nil && t.Phase.Open() {
			return KeycopyEvent{}, goesOnAlone(t)
		}
		return KeycopyEvent{}, control.Problemf(control.Interrupted, "run it again for a new code", "the offer was called off; the operator code is destroyed")
	}
	return KeycopyEvent{}, control.Problemf(control.Unavailable, "run it again for a new code; what the new terminal says tells why",
		"the copy ended after the codes matched; the operator code is destroyed, and this terminal still holds its keys")
}

// delivered is an offer whose receipt has come. The old terminal may be unplugged
// once nothing depends on it any more: when the new one knows that a copy is over,
// or when what moved is destroyed here, which the new one uses by then.
func (o *offering) delivered(t *keycopy.Transaction) (KeycopyEvent, error) {
	if t.Phase.Open() {
		return KeycopyEvent{}, goesOnAlone(t)
	}
	ev := tell(keycopy.Event{Kind: keycopy.EventClosed, Transaction: t}, roleSource)
	ev.Text = "done: " + outcome(t)
	ev.Next = "the new terminal is ready; a further copy needs a new code"
	open, err := o.party.vault.asked(t.ID)
	switch {
	case err != nil:
		return KeycopyEvent{}, err
	case len(t.Moving()) > 0 || !open:
		ev.Text += "; you may unplug the old terminal now"
	default:
		ev.Text += "; the new terminal has not said that it knows"
		ev.Next = "leave this terminal on until the new one says that it is done: it comes back by itself"
	}
	return ev, nil
}

// goesOnAlone is an offer that is over while its transaction is not.
func goesOnAlone(t *keycopy.Transaction) error {
	text, next := inWords(&dealRecord{Deal: *t}, "kagimori")
	return control.Problemf(control.Unavailable, next, "the connection to the new terminal broke; the operator code is destroyed and not needed any more: %s", text)
}

// asked says whether the other end may still ask for a transaction.
func (v *vault) asked(id transport.ID) (open bool, err error) {
	err = v.store.View(func(tx *store.Tx) error {
		d, err := openDeal(tx, id)
		defer d.wipe()
		open = d != nil
		return err
	})
	return open, err
}

func them(n int) string {
	if n == 1 {
		return "it"
	}
	return "them"
}

// disarm destroys the operator code in force, and ends what it has opened, if
// nothing was confirmed yet. It says whether there was one.
func (a *Agent) disarm() bool {
	o := a.copies.standing()
	if o == nil {
		return false
	}
	if err := o.source.CallOff(context.Background()); err != nil {
		a.log.Error("the operator code is destroyed, but its key copy is not ended", "err", err)
	}
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

// records gives copies of this terminal's credentials, those selected or all, and
// says of those that it may not use itself why it does not give them. The caller
// wipes them.
func (v *vault) records(selected []transport.Name) (list []transport.CredentialRecord, withheld []transport.KeycopyWithheld, err error) {
	err = v.store.View(func(tx *store.Tx) error {
		return tx.Each(bucketCredentials, func(key string, decode func(any) error) error {
			if len(selected) > 0 && !slices.Contains(selected, transport.Name(key)) {
				return nil
			}
			var h holdingRecord
			if err := decode(&h); err != nil {
				return err
			}
			if h.Away != nil {
				h.wipe()
				withheld = append(withheld, transport.KeycopyWithheld{ID: h.Record.ID, Reason: transport.KeycopyMoving})
				return nil
			}
			list = append(list, h.Record)
			return nil
		})
	})
	if err != nil {
		keycopy.WipeRecords(list)
		return nil, nil, fmt.Errorf("read credentials: %w", err)
	}
	return list, withheld, nil
}
