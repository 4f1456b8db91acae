package keycopy

// Source is the old terminal's end while one operator code is in force. Each
// connection is a sourceRun of its own (source_run.go); what they share, and
// what decides whether a guess is judged at all, is here.

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// SourceConfig is what a Source works with.
type SourceConfig struct {
	End
	// Codes are the security codes that this terminal holds, newest first: its
	// group's, and for a while the one of the epoch before.
	Codes []SecurityCode
	// Records reads all credentials of this terminal, once the codes match, and
	// anew when items are sent again; what it returns is wiped. wanted are those
	// that may go, empty for all: only their secrets need be there. parent is
	// where keys in a chip may go, or nil. withheld are those that are not among
	// the records and might be asked for, and why.
	Records func(ctx context.Context, wanted []transport.Name, parent *transport.KeycopyParent) (records []transport.CredentialRecord, withheld []transport.KeycopyWithheld, err error)
	Journal Journal
	// Move makes what may be copied move: stricter, never the reverse.
	Move bool
}

// ArmState is where a Source stands.
type ArmState uint8

// The states of a Source, in order.
const (
	Armed   ArmState = iota + 1 // waits for a Target
	Serving                     // the codes match; the code waits for the receipt
	Ended                       // the code is destroyed, or there never was one
)

func (s ArmState) String() string {
	switch s {
	case Armed:
		return "armed"
	case Serving:
		return "serving"
	case Ended:
		return "ended"
	}
	return "unknown"
}

// EndReason is why a Source ended.
type EndReason string

// The reasons.
const (
	EndDelivered EndReason = "delivered" // the receipt is recorded
	EndPending   EndReason = "pending"   // its time is over; the transaction goes on by RESUME
	EndExpired   EndReason = "expired"   // nobody came in time
	EndKilled    EndReason = "killed"    // CodeAttempts wrong codes
	EndAborted   EndReason = "aborted"   // the codes matched, but nothing came or can come of it
	EndDisarmed  EndReason = "disarmed"  // the operator, or shutdown
)

// An Outcome is how a Source ended. Transaction is nil if no Target proved the
// codes. With EndDelivered it may still be moving: see its phase.
type Outcome struct {
	Reason      EndReason
	Transaction *Transaction
}

// A Source is safe for concurrent use.
type Source struct {
	cfg SourceConfig

	// mu guards all below. It is not held during durable writes.
	mu       sync.Mutex
	code     *OperatorCode
	failures int
	proving  *sourceRun // holds the one place in the proof stage
	state    ArmState
	txn      transport.ID // of the transaction that the code has opened
	live     int          // connections of it
	receipt  bool         // it has come to a receipt
	disarmed bool
	outcome  Outcome
	done     chan struct{} // closed when Ended and no frame is left to send
	// announced is true once done is closed.
	announced bool
}

// NewSource arms: it takes code over, and destroys it when the copy is
// received, or when it expires, is guessed at too often, or is given up. It
// answers RESUME of every transaction on record as well, also once it has ended.
func NewSource(cfg SourceConfig, code *OperatorCode) *Source {
	return &Source{cfg: cfg, code: code, state: Armed, done: make(chan struct{})}
}

// NewResponder is a Source without an operator code: it only goes on with
// transactions that are on record.
func NewResponder(cfg SourceConfig) *Source {
	s := &Source{cfg: cfg, state: Ended, done: make(chan struct{})}
	s.announce()
	return s
}

// Watch ends the Source when its code expires, and when ctx is done. It
// returns when the Source has ended, for whatever reason.
func (s *Source) Watch(ctx context.Context) Outcome {
	tick := time.NewTicker(time.Second) // not one long timer: it would not see the wall clock
	defer tick.Stop()
	for {
		select {
		case <-s.done:
			s.mu.Lock()
			outcome := s.outcome
			s.mu.Unlock()
			if outcome.Reason == EndExpired {
				s.cfg.tell(Event{Kind: EventExpired})
			}
			return outcome
		case <-ctx.Done():
			s.Disarm()
		case <-tick.C:
			s.mu.Lock()
			s.expire()
			s.mu.Unlock()
		}
	}
}

// State is where the Source stands, and for how long its code is good.
func (s *Source) State() (ArmState, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	return s.state, s.code.Remaining(s.cfg.Clock())
}

// Disarm destroys the code, and stops sending items for it. A transaction under
// way stays on record as it is.
func (s *Source) Disarm() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.disarmed = true
	s.end(EndDisarmed)
}

// CallOff is Disarm by the operator: unless it has come to a receipt, the
// transaction ends as well.
func (s *Source) CallOff(ctx context.Context) error {
	s.Disarm()
	s.mu.Lock()
	t := s.outcome.Transaction
	s.mu.Unlock()
	if t == nil || t.Phase != transport.KeycopyOffered {
		return nil
	}
	t, _, err := record(ctx, s.cfg.Journal, t.ID, giveUp)
	if err == nil {
		s.note(t)
	}
	return err
}

// expire destroys a code whose time is over. A transaction under way needs the
// code no more and goes on.
func (s *Source) expire() {
	if s.state == Ended || s.code.Remaining(s.cfg.Clock()) > 0 {
		return
	}
	s.code.Wipe()
	switch {
	case s.state == Armed:
		s.end(EndExpired)
	case s.live == 0:
		s.end(EndPending)
	}
}

// end is final, and tells Watch. mu is held.
func (s *Source) end(why EndReason) {
	s.settle(why)
	s.announce()
}

// settle is end without telling Watch: a last frame is still to be sent. mu is held.
func (s *Source) settle(why EndReason) {
	if s.state != Ended {
		s.code.Wipe()
		s.state, s.outcome.Reason = Ended, why
	}
}

func (s *Source) announce() {
	if !s.announced {
		s.announced = true
		close(s.done)
	}
}

// armed refuses unless a code is in force and no Target has proven it yet.
func (s *Source) armed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.check()
}

// check is armed with mu held.
func (s *Source) check() error {
	s.expire()
	switch s.state {
	case Armed:
		return nil
	case Serving:
		if s.live > 0 {
			return fail(transport.KeycopyBusy, nil)
		}
		return fail(transport.KeycopyNotArmed, errors.New("the code has opened a transaction already"))
	}
	return fail(transport.KeycopyNotArmed, nil)
}

// enter gives r the place in the proof stage, and lends it the code.
func (s *Source) enter(r *sourceRun, use func(*OperatorCode)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check(); err != nil {
		return err
	}
	if s.proving != nil {
		return fail(transport.KeycopyBusy, nil)
	}
	s.proving = r
	use(s.code)
	return nil
}

// judge counts an attempt and only then gives the verdict on it: nil makes r
// the one transaction of this code. Whatever is wrong, r has left the proof
// stage afterwards.
func (s *Source) judge(ctx context.Context, r *sourceRun, right func() bool) error {
	defer s.release(r) // before the peer hears of it and comes back
	if err := s.armed(); err != nil {
		return err
	}
	if err := s.cfg.Attempts.Count(ctx, nil); err != nil {
		if errors.Is(err, ErrLocked) {
			return fail(transport.KeycopyNotArmed, err)
		}
		return fail(transport.KeycopyStoreFailed, fmt.Errorf("count the attempt: %w", err))
	}
	if !right() {
		return s.wrong(r)
	}
	if err := s.cfg.Attempts.Succeed(ctx); err != nil {
		return fail(transport.KeycopyStoreFailed, fmt.Errorf("count the attempt: %w", err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check(); err != nil { // it may have been disarmed meanwhile
		return err
	}
	s.state, s.txn = Serving, r.txn
	s.enlist(r)
	r.proven = true
	return nil
}

// enlist counts r among the connections of the code's transaction. mu is held.
func (s *Source) enlist(r *sourceRun) {
	s.live++
	r.live = true
}

// join is enlist for a connection that goes on with a transaction, if it is
// that one. A receipt may have come in another way.
func (s *Source) join(r *sourceRun, on transport.KeycopyPhase) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != Serving || r.txn != s.txn {
		return
	}
	s.enlist(r)
	if on == transport.KeycopyCommitted || on == transport.KeycopyDone {
		s.code.Wipe()
		s.receipt = true
	}
}

// release frees the place in the proof stage if r holds it.
func (s *Source) release(r *sourceRun) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proving == r {
		s.proving = nil
	}
}

// wrong books a wrong operator code; the last one allowed kills the code.
func (s *Source) wrong(r *sourceRun) error {
	s.mu.Lock()
	s.failures++
	left := max(0, CodeAttempts-s.failures)
	if left == 0 {
		s.settle(EndKilled) // leave announces it, once the peer has its ERROR
	}
	s.mu.Unlock()
	r.judged = true
	s.cfg.tell(r.event(EventRefused, Event{Left: left}))
	if left == 0 {
		s.cfg.tell(r.event(EventKilled, Event{}))
	}
	return fail(transport.KeycopyAuthFailed, fmt.Errorf("%w, %d attempts left", ErrWrongCode, left))
}

// note keeps the transaction as it stands now for the outcome, if it is the
// code's. t is not changed afterwards: others may be reading it.
func (s *Source) note(t *Transaction) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.ID == s.txn {
		s.outcome.Transaction = t
	}
}

// serving refuses once the operator has called the copy off.
func (s *Source) serving(r *sourceRun) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.disarmed && r.txn == s.txn {
		return fail(transport.KeycopyAborted, nil)
	}
	return nil
}

// received destroys the code on the receipt (req: C5).
func (s *Source) received(r *sourceRun) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.txn == s.txn {
		s.code.Wipe()
		s.receipt = true
	}
}

// leave ends r's part: its place is free again. The Source ends with the last
// connection of a transaction that needs its code no more.
func (s *Source) leave(r *sourceRun) {
	s.release(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.judged && s.state == Ended {
		s.announce()
	}
	if !r.live {
		return
	}
	s.live--
	switch {
	case s.receipt:
		s.end(EndDelivered)
	case r.deal == nil || r.deal.Phase != transport.KeycopyOffered:
		s.end(EndAborted)
	default:
		s.expire()
	}
}
