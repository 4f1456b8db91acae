package agent

import (
	"crypto/x509"
	"fmt"
	"sync"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// A terminal may wake in 1970, or in 2099 (DESIGN D12). It never sets the
// system clock. It knows a floor, which the present cannot be before, and once
// the management server has spoken over an authenticated connection it counts
// on from what that server said.

const (
	// floorStep is how far the floor is let fall behind before it alone is
	// worth a write to flash.
	floorStep = 24 * time.Hour
	// recordStep is how far it must have risen to go along with another write.
	recordStep = time.Minute
	// plausibleSpan is how far after the floor a clock that nobody vouches for
	// is still believed in records for people.
	plausibleSpan = 10 * 365 * 24 * time.Hour
	// driftWarning is how far the wall clock may be off before status says so.
	driftWarning = 2 * time.Minute
	// written is when this was: a floor for programs that do not know when they
	// were built. Unix seconds of 2026-01-01.
	written = 1767225600
)

// A Clock says what time it is and at what time certificates are judged. All
// methods may be called from several goroutines.
type Clock struct {
	wall  func() time.Time
	start time.Time // the wall clock's reading when the process began

	mu     sync.Mutex
	floor  time.Time // guarded by mu
	saved  time.Time // guarded by mu: the floor as it is in the store
	server time.Time // guarded by mu: what the server said last; zero: nothing yet
	heard  time.Time // guarded by mu: the wall clock's reading then
}

// NewClock starts from the program's build date; wall is time.Now outside of tests.
func NewClock(wall func() time.Time, built time.Time) *Clock {
	c := &Clock{wall: wall, start: wall(), floor: time.Unix(written, 0)}
	c.Raise(built)
	return c
}

// Trusted says whether an authenticated server has told the time since the
// process started.
func (c *Clock) Trusted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.server.IsZero()
}

// Now is the best guess at the present. It counts on from the server's time by
// the monotonic clock, so that steps of the wall clock do not matter.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now()
}

func (c *Clock) now() time.Time {
	wall := c.wall()
	if !c.server.IsZero() {
		return c.server.Add(wall.Sub(c.heard))
	}
	if wall.Before(c.floor) {
		return c.floor
	}
	return wall
}

// Judge is the time at which a certificate chain is to be judged: the present
// if the clock is trusted, else the later of the floor and the latest
// notBefore of the chain. Every other check stays as it is.
func (c *Clock) Judge(chain []*x509.Certificate) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.server.IsZero() {
		return c.now()
	}
	if start := transport.LatestStart(chain); start.After(c.floor) {
		return start
	}
	return c.floor
}

// Stamp is the present in Unix seconds for a record, or 0 when this clock is
// not even plausible.
func (c *Clock) Stamp() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if c.server.IsZero() {
		wall := c.wall()
		if wall.Before(c.floor) || wall.Sub(c.floor) > plausibleSpan {
			return 0
		}
	}
	return now.Unix()
}

// Steady is the present if the clock is trusted; else the floor and the time
// since the process began: it goes on evenly, expires nothing too early, and
// nobody moves it by setting the system clock.
func (c *Clock) Steady() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.server.IsZero() {
		return c.now()
	}
	return c.floor.Add(max(0, c.wall().Sub(c.start)))
}

// Said is the time to put into an envelope: zero while it is not trusted.
func (c *Clock) Said() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server.IsZero() {
		return time.Time{}
	}
	return c.now()
}

// Raise lifts the floor to t if it is lower.
func (c *Clock) Raise(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.After(c.floor) {
		c.floor = t
	}
}

// Sync takes in the time of an authenticated message. proof is the chain that
// the server proved itself with: a time outside of its leaf's validity is
// refused, so that no server can push the floor beyond what it may sign for.
func (c *Clock) Sync(server time.Time, proof []*x509.Certificate) error {
	if len(proof) == 0 {
		return fmt.Errorf("server time %s: nobody vouches for it", server.UTC().Format(time.RFC3339))
	}
	if leaf := proof[0]; server.Before(leaf.NotBefore) || server.After(leaf.NotAfter) {
		return fmt.Errorf("server time %s is outside of the validity of its own certificate (%s to %s): set the server's clock",
			server.UTC().Format(time.RFC3339), leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.server, c.heard = server, c.wall()
	if server.After(c.floor) {
		c.floor = server
	}
	return nil
}

// raw is the system clock with its monotonic reading, for measuring spans.
func (c *Clock) raw() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wall()
}

// clockRecord is the floor in the store (bucket "clock", key "floor").
type clockRecord struct {
	Floor int64 `cbor:"1,keyasint"` // Unix seconds
}

// load takes in what the store remembers.
func (c *Clock) load(r clockRecord) {
	t := time.Unix(r.Floor, 0)
	c.Raise(t)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.saved = t
}

// due says whether the floor alone is worth a write.
func (c *Clock) due() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.advance()
	return c.floor.Sub(c.saved) >= floorStep
}

// record gives the floor for a transaction that is written anyway; ok is false
// when the store has it, nearly. wrote must follow once it is durable.
func (c *Clock) record() (r clockRecord, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.advance()
	return clockRecord{Floor: c.floor.Unix()}, c.floor.Sub(c.saved) >= recordStep
}

// advance lifts the floor to the present, if that is known.
func (c *Clock) advance() {
	if c.server.IsZero() {
		return
	}
	if now := c.now(); now.After(c.floor) {
		c.floor = now
	}
}

func (c *Clock) wrote(r clockRecord) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := time.Unix(r.Floor, 0); t.After(c.saved) {
		c.saved = t
	}
}

// ClockStatus is what status says about the time.
type ClockStatus struct {
	Trusted bool      `json:"trusted"`
	Now     time.Time `json:"now"`
	Floor   time.Time `json:"floor"`
	// Off is how many seconds the system clock is ahead of the server's,
	// negative when it is behind; 0 while the clock is not trusted.
	Off  int64  `json:"off_seconds"`
	Text string `json:"text"`
}

// Status describes the clock for people.
func (c *Clock) Status() ClockStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := ClockStatus{Trusted: !c.server.IsZero(), Now: c.now().UTC().Truncate(time.Second), Floor: c.floor.UTC().Truncate(time.Second)}
	if !s.Trusted {
		s.Text = "no server has told the time yet; certificates are judged at " + s.Floor.Format(time.RFC3339) + " or later"
		return s
	}
	off := c.wall().Sub(c.now()).Round(time.Second)
	s.Off = int64(off / time.Second)
	s.Text = "told by the management server"
	if off.Abs() >= driftWarning {
		s.Text += fmt.Sprintf("; the system clock is off by %s and is left alone", off)
	}
	return s
}
