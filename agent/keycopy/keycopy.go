// Package keycopy is the protocol keycopy/1 by which an old terminal (Source)
// copies or moves credentials to a new one (Target), so that the new one reaches
// its services with nothing changed there. START HERE, then
//
//   - source.go and target.go: the two ends, and what each is told by its caller;
//   - run.go: the drivers that carry frames between a connection and an end;
//   - source_*.go and target_*.go: run, one connection; handshake, until the codes
//     match; transaction, from then on; resume, on a new connection;
//   - transaction.go: what outlives a connection; resort.go: how a person ends it;
//   - offer.go: which credentials go along, and why the others do not;
//   - schedule*.go, cpace.go: the cryptography; code*.go, attempts.go,
//     invitation.go: what operators read and type, and how often.
//
// The simulator that crashes all of this at every step is sim_*_test.go.
//
// What keeps a key from the wrong terminal: both ends hold the security code
// of their group (in hsm, it never comes out), and an operator reads a one-time
// operator code off the Source and types it on the Target. The codes
// authenticate a key exchange (CPace) that is bound to the TLS connection below.
//
// The package is pure: frames in, frames out. It opens no connection and no
// file; time, randomness, the security code's MAC and durable writes are passed
// in. What outlives a connection is a Transaction, in a Journal.
package keycopy

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
)

// An Instant is one moment on two clocks, for measuring. Wall is the system's
// clock; Mono is measured from any fixed point, such as the program's start, and
// never jumps. Date is the present for records and for what has expired: it may
// jump when a server tells the time, so no span is measured by it.
type Instant struct {
	Wall time.Time
	Mono time.Duration
	Date time.Time
}

// Since is how long ago t was, by the clock that says longer: neither setting
// the wall clock back nor stopping the other one gives a code more time.
func (i Instant) Since(t Instant) time.Duration {
	return max(i.Wall.Round(0).Sub(t.Wall.Round(0)), i.Mono-t.Mono)
}

// A Clock tells the present time.
type Clock func() Instant

// NewClock reads the system's clocks. Mono is Linux's CLOCK_BOOTTIME: unlike
// Go's monotonic clock it goes on while the terminal is suspended.
func NewClock() Clock {
	start := time.Now()
	return func() Instant {
		now := time.Now()
		var boot unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil { // older than Linux 2.6.39
			return Instant{Wall: now, Mono: now.Sub(start), Date: now}
		}
		return Instant{Wall: now, Mono: time.Duration(boot.Nano()), Date: now}
	}
}

// A SecurityCode is the fleet secret of a group, or rather what can be done
// with it: HMAC-SHA256. The code itself stays in hsm.
type SecurityCode struct {
	ID transport.KeycopyCodeID
	// MAC is hsm.MACs with the code's blob. It is called once per connection,
	// on the Source by anybody who connects.
	MAC func(ctx context.Context, message []byte) (*hsm.Secret, error)
}

// Attempts counts guesses at the operator code so that neither cutting the
// power nor reconnecting gives more of them. Its rules are AttemptLog's.
type Attempts interface {
	// Count records one attempt, durably, before anybody learns whether it was
	// right. An error means that it must not be judged; ErrLocked if there were
	// too many. typed is the code at a Target, lent; a Source, which counts the
	// failures of its one code by itself, gives nil.
	Count(ctx context.Context, typed *OperatorCode) error
	// Succeed takes the last counted attempt back: it was right.
	Succeed(ctx context.Context) error
}

// End is what both ends of a copy have in common.
type End struct {
	Device   transport.DeviceID // this device
	Attempts Attempts
	Clock    Clock
	Random   io.Reader
	// Modes are those that this end takes part in, the first by default; none
	// is KeycopyPAKE alone.
	Modes []transport.KeycopyMode
	// RequireIdentity wants an identity certificate of both ends in mode pake
	// too; the others always do.
	RequireIdentity bool
	// Progress is told what happens, from the goroutine of Serve or Fetch; it
	// must not block for long. nil is fine.
	Progress func(Event)
}

func (e *End) tell(ev Event) {
	if e.Progress != nil {
		e.Progress(ev)
	}
}

// modes is Modes as it is meant.
func (e *End) modes() []transport.KeycopyMode {
	if len(e.Modes) == 0 {
		return []transport.KeycopyMode{transport.KeycopyPAKE}
	}
	return e.Modes
}

// allows refuses a mode that this end does not take part in, that is not the one
// TLS agreed on, or that needs identities which are not there. There is no other
// mode to fall back to: the run ends.
func (e *End) allows(mode transport.KeycopyMode, ch *transport.KeycopyChannel) error {
	switch {
	case !slices.Contains(e.modes(), mode):
		return fail(transport.KeycopyModeRefused, fmt.Errorf("mode %q is not enabled here", mode))
	case mode != ch.Mode:
		return fail(transport.KeycopyModeRefused, fmt.Errorf("mode %q on a connection for %q", mode, ch.Mode))
	case !mode.SealsCode() && !e.RequireIdentity:
		return nil
	case !ch.Identified:
		return fail(transport.KeycopyModeRefused, fmt.Errorf("mode %q needs an identity certificate here", mode))
	case ch.Peer == "":
		return fail(transport.KeycopyModeRefused, fmt.Errorf("mode %q needs an identity certificate of the other terminal", mode))
	}
	return nil
}
