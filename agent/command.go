package agent

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sort"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

// Commands (DESIGN D1, req: L8). The ledger holds what each command came to,
// written in the same transaction as the effect: the same command again gets
// the same answer and has no second effect. The outbox holds the ids whose
// answer the server has not acknowledged yet.

const (
	bucketLedger = "ledger" // command id → ledgerRecord
	bucketOutbox = "outbox" // command id → outboxRecord

	// ledgerKept is how many settled commands are remembered after the server
	// has acknowledged them. It repeats none of those; this is for a server
	// that was put back from a backup.
	ledgerKept = 256
	// sendAtOnce is how many results or claims are under way at a time; the
	// acknowledgement of each brings the next.
	sendAtOnce = 16
)

// ledgerRecord is what one command came to.
type ledgerRecord struct {
	Kind   string                 `cbor:"1,keyasint"`
	State  transport.CommandState `cbor:"2,keyasint"`
	Detail string                 `cbor:"3,keyasint"`
	Time   int64                  `cbor:"4,keyasint"` // Unix seconds by Clock.Stamp
}

// outboxRecord marks a result that is to be sent.
type outboxRecord struct{}

func (r *ledgerRecord) result(id transport.ID) *transport.CommandResult {
	return &transport.CommandResult{Command: id, State: r.State, Detail: r.Detail}
}

// settle writes what a command came to; it belongs into the transaction of the
// effect. A command that is settled already stays as it is.
func settle(tx *store.Tx, id transport.ID, r ledgerRecord) error {
	var before ledgerRecord
	if found, err := tx.Get(bucketLedger, id.String(), &before); found || err != nil {
		return err
	}
	r.Detail = shorten(r.Detail, transport.MaxDetail)
	if err := tx.Put(bucketLedger, id.String(), &r); err != nil {
		return err
	}
	return tx.Put(bucketOutbox, id.String(), &outboxRecord{})
}

// settled looks a command up.
func settled(tx *store.Tx, id transport.ID) (r ledgerRecord, found bool, err error) {
	found, err = tx.Get(bucketLedger, id.String(), &r)
	return r, found, err
}

// acknowledged takes a result out of the outbox and lets the ledger forget what
// is old enough.
func acknowledged(tx *store.Tx, id transport.ID) error {
	if err := tx.Delete(bucketOutbox, id.String()); err != nil {
		return err
	}
	return forget(tx, ledgerKept)
}

// forget drops the oldest acknowledged commands beyond keep.
func forget(tx *store.Tx, keep int) error {
	type entry struct {
		key  string
		time int64
	}
	var done []entry
	err := tx.Each(bucketLedger, func(key string, decode func(any) error) error {
		var r ledgerRecord
		if err := decode(&r); err != nil {
			return err
		}
		if waiting, err := tx.Get(bucketOutbox, key, &outboxRecord{}); waiting || err != nil {
			return err
		}
		done = append(done, entry{key, r.Time})
		return nil
	})
	if err != nil || len(done) <= keep {
		return err
	}
	sort.SliceStable(done, func(i, j int) bool { return done[i].time < done[j].time })
	for _, e := range done[:len(done)-keep] {
		if err := tx.Delete(bucketLedger, e.key); err != nil {
			return err
		}
	}
	return nil
}

// waitingResults gives the results that the server has not acknowledged, at
// most limit of them.
func waitingResults(tx *store.Tx, limit int) (list []*transport.CommandResult, err error) {
	err = tx.Each(bucketOutbox, func(key string, _ func(any) error) error {
		if len(list) == limit {
			return store.ErrStop
		}
		id, err := transport.ParseID(key)
		if err != nil {
			return fmt.Errorf("outbox: %w", err)
		}
		r, found, err := settled(tx, id)
		if err != nil || !found {
			return err
		}
		list = append(list, r.result(id))
		return nil
	})
	return list, err
}

// A step is what obeying a command comes to for now: either it is settled, with
// an effect, or the server has to be asked something first.
type step struct {
	state  transport.CommandState
	detail string
	effect func(*store.Tx) error // in the ledger's transaction; nil: none
	ask    transport.Body        // set: not settled yet
}

func refuse(format string, args ...any) step {
	return step{state: transport.CommandRefused, detail: fmt.Sprintf(format, args...)}
}

// obey carries a command out, once, and gives what to send: its result, or a
// question to the server. An error is of this terminal's own (its store, its
// chip); the command stays open and comes again.
func (s *session) obey(ctx context.Context, c *transport.Command) (transport.Body, error) {
	var before ledgerRecord
	var found bool
	err := s.store.View(func(tx *store.Tx) (err error) {
		before, found, err = settled(tx, c.ID)
		return err
	})
	if err != nil {
		return nil, err
	}
	if found {
		return before.result(c.ID), s.update(func(tx *store.Tx) error {
			return tx.Put(bucketOutbox, c.ID.String(), &outboxRecord{})
		})
	}
	next, err := s.carryOut(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("command %s: %w", c.Kind, err)
	}
	if next.ask != nil {
		return next.ask, nil
	}
	return s.finish(c.ID, c.Kind, next)
}

// carryOut knows the kinds of command. The list only grows.
func (s *session) carryOut(ctx context.Context, c *transport.Command) (step, error) {
	switch c.Kind {
	case transport.CommandIssue:
		return s.issue(ctx, c)
	case transport.CommandSet:
		return s.setCredential(c)
	case transport.CommandCodeInstall:
		return s.installCode(ctx, c)
	case transport.CommandCodeRetire:
		return s.retireCodes(c)
	}
	return step{state: transport.CommandUnknown, detail: "this terminal's software does not know it: update it"}, nil
}

// finish settles a command and gives its result.
func (s *session) finish(id transport.ID, kind string, done step) (transport.Body, error) {
	r := ledgerRecord{Kind: shorten(kind, transport.MaxName), State: done.state, Detail: shorten(done.detail, transport.MaxDetail), Time: s.clock.Stamp()}
	err := s.update(func(tx *store.Tx) error {
		if done.effect != nil {
			if err := done.effect(tx); err != nil {
				return err
			}
		}
		return settle(tx, id, r)
	})
	if err != nil {
		return nil, fmt.Errorf("settle command: %w", err)
	}
	s.log.Info("command settled", "command", id, "kind", r.Kind, "state", string(r.State), "detail", r.Detail)
	return r.result(id), nil
}

// shorten cuts s to at most n bytes, at a character.
func shorten(s string, n int) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= n {
		return s
	}
	s = s[:n]
	for len(s) > 0 {
		if r, size := utf8.DecodeLastRuneInString(s); r != utf8.RuneError || size > 1 {
			break
		}
		s = s[:len(s)-1]
	}
	return s
}

// A poller says when to poll of one's own accord: at the interval, and while
// something is unsettled sooner, then slower with every repetition.
type poller struct {
	interval time.Duration
	repeats  int
	due      time.Time
	timer    *time.Timer
}

const (
	// firstRepeat is how long an answer may take before the question is repeated.
	firstRepeat = 15 * time.Second
	maxDoubling = 10
)

func newPoller(interval time.Duration) *poller {
	return &poller{interval: interval, timer: time.NewTimer(interval)}
}

// arm sets the timer; it never puts a poll off that is due sooner.
func (p *poller) arm(unsettled bool) {
	due := time.Now().Add(pollPause(p.interval, unsettled, p.repeats, rand.Float64()))
	if p.due.IsZero() || due.Before(p.due) {
		p.due = due
	}
	p.timer.Reset(time.Until(p.due))
}

func (p *poller) fired() { p.due, p.repeats = time.Time{}, min(p.repeats+1, maxDoubling) }
func (p *poller) heard() { p.repeats = 0 }
func (p *poller) stop()  { p.timer.Stop() }

// pollPause is the time to the next poll, ±10 % so that a fleet spreads out.
// random is in [0,1).
func pollPause(interval time.Duration, unsettled bool, repeats int, random float64) time.Duration {
	pause := interval
	if unsettled {
		pause = min(interval, firstRepeat<<repeats)
	}
	return time.Duration(float64(pause) * (0.9 + 0.2*random))
}
