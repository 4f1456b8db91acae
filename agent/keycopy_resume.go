package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// The new terminal goes on with what is open by itself: at once after a link that
// broke and after each start, then less often, for as long as it is open.

const (
	resumeFirst = time.Second
	resumeMost  = time.Minute
	// persistTime is for how long a fetch that broke goes on while somebody waits
	// for it; then it goes on alone.
	persistTime = 30 * time.Second
	// quickTime bounds one attempt that somebody waits for.
	quickTime = 2 * transport.KeycopyConnectTimeout
)

// openTargets lists what is open at this terminal as a Target.
func (v *vault) openTargets() (list []keycopy.Transaction, err error) {
	err = v.store.View(func(tx *store.Tx) error {
		return eachOpen(tx, func(d *dealRecord) error {
			if t := d.Deal; t.Side == transport.KeycopyTarget && t.Phase.Open() {
				t.Resume = nil
				list = append(list, t)
			}
			return nil
		})
	})
	return list, err
}

// A retry is when to try next.
type retry struct {
	at    time.Time
	pause time.Duration
}

// later puts the next attempt off, ±20 % so that a fleet spreads out.
func (r *retry) later(now time.Time) {
	r.pause = min(max(2*r.pause, resumeFirst), resumeMost)
	r.at = now.Add(time.Duration(float64(r.pause) * (0.8 + 0.4*rand.Float64())))
}

// runResume goes on with what is open until ctx ends.
func (a *Agent) runResume(ctx context.Context, v *vault) {
	changed, stop := a.Watch()
	defer stop()
	next := map[transport.ID]*retry{}
	for {
		wait := time.NewTimer(a.resumeDue(ctx, v, next))
		select {
		case <-ctx.Done():
			wait.Stop()
			return
		case <-changed:
		case <-wait.C:
		}
		wait.Stop()
	}
}

// resumeDue tries what is due, and says for how long there is nothing to do.
func (a *Agent) resumeDue(ctx context.Context, v *vault, next map[transport.ID]*retry) time.Duration {
	list, err := v.openTargets()
	if err != nil || a.cfg.Keycopy == nil {
		return resumeMost
	}
	stands := map[transport.ID]bool{}
	pause := resumeMost
	for _, t := range list {
		stands[t.ID] = true
		r := next[t.ID]
		if r == nil {
			r = &retry{}
			next[t.ID] = r
		}
		if time.Now().Before(r.at) {
			pause = min(pause, time.Until(r.at))
			continue
		}
		if !a.copies.begin(ctx, 0) { // a fetch goes on with it, or tells when it ends
			pause = min(pause, resumeFirst)
			continue
		}
		_, err := a.resume(ctx, t.ID, "", nil)
		a.copies.end()
		if err != nil {
			r.later(time.Now())
			pause = min(pause, max(0, time.Until(r.at)))
		}
	}
	for id := range next {
		if !stands[id] {
			delete(next, id)
			a.copies.setTrouble(id, "")
		}
	}
	return pause
}

// resume makes one attempt to go on with a transaction; address is where the
// other end is, "" where it was. It needs the place of a Target.
func (a *Agent) resume(ctx context.Context, id transport.ID, address string, report func(KeycopyEvent)) (*keycopy.Transaction, error) {
	p, err := a.endpoint()
	if err != nil {
		return nil, err
	}
	t, err := journal{vault: p.vault}.Find(ctx, id)
	if err != nil {
		return nil, err
	}
	t.Resume.Wipe()
	t.Resume = nil
	to := address
	if to == "" {
		to = t.Remote
	}
	p.tcp.Modes = []transport.KeycopyMode{t.Mode}
	conn, err := p.dial(ctx, to)
	if err == nil {
		var after *keycopy.Transaction
		after, err = keycopy.Resume(ctx, conn, p.targetConfig(address, func(ev keycopy.Event) {
			if report != nil && worthTelling(ev) {
				report(tell(ev, roleTarget))
			}
		}), t)
		if after != nil {
			t = after
		}
	}
	if err != nil {
		err = notResumed(t, to, err)
		a.copies.setTrouble(id, err.Error())
		a.log.Debug("key copy does not go on", "txn", short(id), "phase", t.Phase, "remote", to, "err", err)
		return t, err
	}
	a.copies.setTrouble(id, "")
	a.log.Info("key copy went on", "txn", short(id), "phase", t.Phase, "remote", to)
	return t, nil
}

// notResumed explains why a transaction did not go on. Nobody but a terminal that
// proves the transaction's key can end it.
func notResumed(t *keycopy.Transaction, address string, err error) error {
	if errors.Is(err, transport.KeycopyTxnUnknown) {
		return fmt.Errorf("the terminal at %s does not know this key copy: it is another one, or its store was replaced; nothing was changed here (%w)", address, err)
	}
	return fmt.Errorf("from %s: %w", peerText(t.Name, &t.Peer, address), err)
}

// persist goes on with a fetch that broke, as long as somebody waits for it. Then
// runResume does, and at once if it is this terminal's store that fails: whoever
// waits is to hear of that.
func (a *Agent) persist(ctx context.Context, p *party, t *keycopy.Transaction, broken error, report func(KeycopyEvent)) (*keycopy.Transaction, error) {
	limit := time.NewTimer(persistTime)
	defer limit.Stop()
	var r retry
	for n := 0; !ownStore(broken); n++ {
		if n == 0 {
			report(KeycopyEvent{Step: string(keycopy.EventInterrupted), Remote: t.Remote, Text: "the connection broke; leave both terminals on, it goes on by itself"})
		}
		after, err := a.resume(context.WithoutCancel(ctx), t.ID, "", report) // it has deadlines of its own
		if err == nil {
			return after, nil
		}
		if after != nil {
			t, broken = after, err
		}
		r.later(time.Now())
		pause := time.NewTimer(time.Until(r.at))
		select {
		case <-pause.C:
			continue
		case <-limit.C:
		case <-ctx.Done():
		}
		pause.Stop()
		break
	}
	return t, broken
}

// settleFirst goes on with what is open before a new copy begins. What has come
// and waits for the old terminal must be settled first; anything else may wait.
func (a *Agent) settleFirst(ctx context.Context, p *party, report func(KeycopyEvent)) error {
	list, err := p.vault.openTargets()
	if err != nil {
		return err
	}
	for _, t := range list {
		quick, cancel := context.WithTimeout(ctx, quickTime)
		after, err := a.resume(quick, t.ID, "", report)
		cancel()
		if err == nil || ctx.Err() != nil {
			continue
		}
		if after == nil {
			after = &t
		}
		if after.Phase == transport.KeycopyStaged && len(after.Moving()) > 0 {
			id := short(t.ID)
			return control.Problemf(control.Conflict,
				fmt.Sprintf("bring the old terminal in reach: kagimori keycopy resume %[1]s; if it is gone for good: kagimori keycopy activate %[1]s; to destroy what waits here: kagimori keycopy abandon %[1]s", id),
				"an earlier key copy is not settled: %s from %s waiting here", count(len(after.Moving()), "key"), peerText(t.Name, &t.Peer, t.Remote))
		}
	}
	return ctx.Err()
}

// resumeNow goes on with a transaction because somebody wants it.
func (a *Agent) resumeNow(ctx context.Context, name, address string, report func(KeycopyEvent)) (*KeycopyEvent, error) {
	p, err := a.endpoint()
	if err != nil {
		return nil, err
	}
	id, err := a.pickDeal(name, func(t *keycopy.Transaction) bool { return t.Side == transport.KeycopyTarget && t.Phase.Open() })
	if err != nil {
		return nil, err
	}
	if address != "" {
		if err := checkFetch(address, nil); err != nil {
			return nil, err
		}
	}
	d, err := a.dealOn(id, transport.KeycopyTarget)
	if err != nil {
		return nil, err
	}
	if !a.copies.begin(ctx, beginTime) {
		return nil, control.Problemf(control.Conflict, "wait until it is done", "another copy to this terminal is under way")
	}
	defer a.copies.end()
	t, err := a.resume(context.WithoutCancel(ctx), id, address, report)
	switch {
	case err == nil:
		return a.fetched(p, t, nil)
	case t == nil:
		return nil, err
	case errors.Is(err, keycopy.ErrNotClosed) && d.Phase != t.Phase:
		return a.fetched(p, t, err)
	}
	next := "look whether that terminal is on and in the same network; if it has another address now: kagimori keycopy resume " + short(id) + " --address HOST:PORT"
	return nil, control.Problemf(control.Unavailable, next, "key copy %s does not go on: %w", short(id), err)
}
