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
	// Records reads all credentials of this terminal. It is called once, after
	// the codes match; what it returns is wiped.
	Records func(ctx context.Context) ([]transport.CredentialRecord, error)
	Journal SourceJournal
}

// SourceJournal is told, and makes durable, what must not be forgotten.
type SourceJournal interface {
	// Offered comes before the first key leaves. An error stops it.
	Offered(ctx context.Context, t *Transaction) error
	// Received comes with the Target's receipt, before the operator code is
	// destroyed and the Target is told. t.Taken is set.
	Received(ctx context.Context, t *Transaction) error
}

// ArmState is where a Source stands.
type ArmState uint8

// The states of a Source, in order.
const (
	Armed   ArmState = iota + 1 // waits for a Target
	Serving                     // the codes match; items are under way
	Ended                       // the code is destroyed
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
	EndExpired   EndReason = "expired"   // nobody came in time
	EndKilled    EndReason = "killed"    // CodeAttempts wrong codes
	EndAborted   EndReason = "aborted"   // the run failed after the codes matched
	EndDisarmed  EndReason = "disarmed"  // the operator, or shutdown
)

// An Outcome is how a Source ended. Transaction is nil if no Target proved the
// codes; with EndAborted its items may or may not have arrived.
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
	outcome  Outcome
	done     chan struct{} // closed when Ended and no frame is left to send
	// announced is true once done is closed.
	announced bool
}

// NewSource arms: it takes code over, and destroys it when the copy is
// received, or when it expires, is guessed at too often, or is given up.
func NewSource(cfg SourceConfig, code *OperatorCode) *Source {
	return &Source{cfg: cfg, code: code, state: Armed, done: make(chan struct{})}
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

// Disarm destroys the code. A transaction under way ends as well.
func (s *Source) Disarm() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end(EndDisarmed)
}

// expire destroys a code whose time is over. A transaction under way needs the
// code no more and goes on.
func (s *Source) expire() {
	if s.state == Ended || s.code.Remaining(s.cfg.Clock()) > 0 {
		return
	}
	s.code.Wipe()
	if s.state == Armed {
		s.end(EndExpired)
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
		return fail(transport.KeycopyBusy, nil)
	}
	return fail(transport.KeycopyNotArmed, nil)
}

// enter gives r the place in the proof stage and CPace's password.
func (s *Source) enter(r *sourceRun, fleet *fleetKeys) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check(); err != nil {
		return nil, err
	}
	if s.proving != nil {
		return nil, fail(transport.KeycopyBusy, nil)
	}
	s.proving = r
	return fleet.password(s.code), nil
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
	s.state = Serving
	return nil
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
	return fail(transport.KeycopyAuthFailed, fmt.Errorf("wrong operator code, %d attempts left", left))
}

// note keeps the transaction as it stands now for the outcome. t is not changed
// afterwards: others may be reading it.
func (s *Source) note(t *Transaction) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outcome.Transaction = t
}

// serving refuses once the operator has called the copy off.
func (s *Source) serving() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != Serving {
		return fail(transport.KeycopyAborted, nil)
	}
	return nil
}

// received destroys the code on the receipt (req: C5).
func (s *Source) received() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.code.Wipe()
}

// leave ends r's part: its place is free again, and if it was the transaction
// the Source has ended with it.
func (s *Source) leave(r *sourceRun) {
	s.release(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case r.received:
		s.end(EndDelivered)
	case r.state >= sourceGranting:
		s.end(EndAborted)
	case r.judged && s.state == Ended:
		s.announce()
	}
}
