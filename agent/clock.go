package agent

import (
	"crypto/x509"
	"fmt"
	"sync"
	"time"

	"github.com/kagimori/kagimori/agent/keycopy"
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
	// ranStep is how often the time that the program has run is worth a write of
	// its own, while there is something that waits by it.
	ranStep = 10 * time.Minute
	// steadyStart is what Steady shows on a new device, in Unix seconds: not zero,
	// which means "none" in records.
	steadyStart = 1
	// written is when this was: a floor for programs that do not know when they
	// were built. Unix seconds of 2026-01-01.
	written = 1767225600
)

// A Clock says what time it is and at what time certificates are judged. All
// methods may be called from several goroutines.
type Clock struct {
	wall  func() time.Time
	boot  func() time.Duration // CLOCK_BOOTTIME: never set, and goes on while suspended
	start reading              // when the process began

	mu     sync.Mutex
	floor  time.Time     // guarded by mu
	saved  time.Time     // guarded by mu: the floor as it is in the store
	server time.Time     // guarded by mu: what the server said last; zero: nothing yet
	heard  reading       // guarded by mu: when it did
	behind time.Duration // guarded by mu: how far that was below the floor
	ran    time.Duration // guarded by mu: how long earlier processes ran, by the store
	noted  time.Duration // guarded by mu: what the store has for all of them and this one
}

// A reading is one moment as the system's clocks show it.
type reading struct {
	wall time.Time
	boot time.Duration
}

func (c *Clock) read() reading { return reading{c.wall(), c.boot()} }

// since is the time that has passed since a reading. Go's monotonic clock stands
// still while the terminal is suspended, the other one does not.
func (c *Clock) since(then reading) time.Duration {
	now := c.read()
	return max(now.wall.Sub(then.wall), now.boot-then.boot)
}

// NewClock starts from the program's build date; wall is time.Now outside of tests.
func NewClock(wall func() time.Time, built time.Time) *Clock {
	system := keycopy.NewClock()
	c := &Clock{wall: wall, boot: func() time.Duration { return system().Mono }, floor: time.Unix(written, 0)}
	c.start = c.read()
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
	if !c.server.IsZero() {
		return c.server.Add(c.since(c.heard))
	}
	wall := c.wall()
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

// Earliest is the present if the clock is trusted; else the floor and the time
// since the process began: it expires nothing too early, and nobody moves it by
// setting the system clock. It jumps when the server tells the time, so measure
// no spans with it.
func (c *Clock) Earliest() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.server.IsZero() {
		return c.now()
	}
	return c.floor.Add(max(0, c.since(c.start)))
}

// Steady is a clock for spans that outlast a restart, such as the locks after
// wrong operator codes. It shows how long this program has run on this device,
// all in all, by CLOCK_BOOTTIME, and is no date: neither the system clock nor
// the server moves it. It stands still while the program does not run, since
// nobody can say for how long that was, and a power cut sets it back by at most
// ranStep while something waits by it: that waits longer then, and never less.
func (c *Clock) Steady() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Unix(steadyStart, 0).Add(c.running())
}

func (c *Clock) running() time.Duration { return c.ran + max(0, c.boot()-c.start.boot) }

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
// refused, so that no server can push the floor beyond what it may sign for. A
// time below the floor is taken as the floor.
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
	c.behind = max(0, c.floor.Sub(server))
	if server.After(c.floor) {
		c.floor = server
	}
	c.server, c.heard = c.floor, c.read()
	return nil
}

// raw is the system clock with its monotonic reading, for measuring spans.
func (c *Clock) raw() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wall()
}

// clockRecord is the clock in the store (bucket "clock", key "floor").
type clockRecord struct {
	Floor int64 `cbor:"1,keyasint"`           // Unix seconds
	Ran   int64 `cbor:"2,keyasint,omitempty"` // seconds that the program has run in all, for Steady
}

// load takes in what the store remembers.
func (c *Clock) load(r clockRecord) {
	t := time.Unix(r.Floor, 0)
	c.Raise(t)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.saved = t
	c.ran = time.Duration(r.Ran) * time.Second
	c.noted = c.ran
}

// due says whether the floor alone is worth a write.
func (c *Clock) due() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.advance()
	return c.floor.Sub(c.saved) >= floorStep
}

// overdue says whether the time that the program has run is worth a write, if
// something waits by it.
func (c *Clock) overdue() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running()-c.noted >= ranStep
}

// record gives the clock for a transaction that is written anyway; ok is false
// when the store has it, nearly. wrote must follow once it is durable.
func (c *Clock) record() (r clockRecord, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.advance()
	ran := c.running()
	r = clockRecord{Floor: c.floor.Unix(), Ran: int64(ran / time.Second)}
	return r, c.floor.Sub(c.saved) >= recordStep || ran-c.noted >= recordStep
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
	c.noted = max(c.noted, time.Duration(r.Ran)*time.Second)
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
		s.Text = "no server has told the time yet; certificates are judged at " + s.Floor.Format("2006-01-02 15:04 UTC") + " or later"
		return s
	}
	off := c.wall().Sub(c.now()).Round(time.Second)
	s.Off = int64(off / time.Second)
	s.Text = "told by the management server"
	if off.Abs() >= driftWarning {
		s.Text += fmt.Sprintf("; the system clock is off by %s and is left alone", off)
	}
	if c.behind >= driftWarning {
		s.Text += fmt.Sprintf("; that was %s before a time that is certainly over: set the server's clock", c.behind.Round(time.Second))
	}
	return s
}
