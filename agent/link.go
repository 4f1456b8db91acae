package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/kagimori/kagimori/systemd"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/mqtt"
)

// The link is the one connection to the management server: this file decides
// when there is one. trip.go makes it and moves the payloads of enroll.go and
// session.go.

// LinkState is where the link is.
type LinkState string

// Where the link may be.
const (
	LinkStarting      LinkState = "starting"      // the store is not open yet
	LinkUnprovisioned LinkState = "unprovisioned" // no bundle has been taken in
	LinkSpare         LinkState = "spare"         // a spare device knows no server: nothing is wrong
	LinkConnecting    LinkState = "connecting"
	LinkEnrolling     LinkState = "enrolling"
	LinkConnected     LinkState = "connected"
	LinkWaiting       LinkState = "waiting" // the last attempt failed, another follows
	LinkRefused       LinkState = "refused" // the server does not accept this identity
)

// LinkStatus is what status says about the link.
type LinkStatus struct {
	State  LinkState `json:"state"`
	Server string    `json:"server,omitempty"`        // host:port, of the connection or of the last attempt
	Since  time.Time `json:"since,omitzero"`          // of this state
	Retry  int       `json:"retry_seconds,omitempty"` // until the next attempt
	Error  string    `json:"error,omitempty"`         // of the last attempt
	Next   string    `json:"next,omitempty"`          // what somebody can do about it

	since, retry time.Time // by the system clock's monotonic reading
}

// Up says whether the server can be talked to.
func (s LinkStatus) Up() bool { return s.State == LinkConnected }

// Linked says whether the server can be talked to now.
func (a *Agent) Linked() bool { return a.link.get(a.clock).Up() }

type linkStatus struct {
	mu     sync.Mutex
	status LinkStatus           // guarded by mu
	failed LinkStatus           // guarded by mu: the last that had an error since the link was up
	told   map[string]time.Time // guarded by mu: when a server's state was last worth a line
}

// news says whether a failure is worth a line in the log: the first of its
// sort, and one in an hour. A server may be away for weeks.
func (l *linkStatus) news(s LinkStatus, lived time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := string(s.State) + " " + s.Server
	if lived == 0 && time.Since(l.told[key]) < time.Hour {
		return false
	}
	if l.told == nil || lived > 0 {
		l.told = map[string]time.Time{}
	}
	l.told[key] = time.Now()
	return true
}

func (l *linkStatus) set(s LinkStatus) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.since = time.Now()
	if s.State == l.status.State && s.Server == l.status.Server {
		s.since = l.status.since
	}
	switch l.status = s; {
	case s.Up():
		l.failed = LinkStatus{}
	case s.Error != "" && s.State != LinkStarting:
		l.failed = s
	}
}

// lastTrouble is the last attempt that failed, if none has worked since.
func (l *linkStatus) lastTrouble() LinkStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

// retryAt notes when the next attempt follows.
func (l *linkStatus) retryAt(t time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.status.retry = t
}

// get tells times by the agent's clock: the system's may say 1970.
func (l *linkStatus) get(clock *Clock) LinkStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.status
	s.Since = clock.Now().Add(-time.Since(s.since)).UTC().Truncate(time.Second)
	if !s.retry.IsZero() {
		s.Retry = max(0, int(time.Until(s.retry).Round(time.Second)/time.Second))
	}
	return s
}

// A linker is what outlives a connection.
type linker struct {
	*Agent
	vault   *vault
	loop    *systemd.Loop
	changed <-chan struct{}
	backoff mqtt.Backoff
	random  *rand.Rand
	bundle  transport.ID // that the backoff is for
	renewal renewal
}

// runLink keeps the link until ctx ends.
func (a *Agent) runLink(ctx context.Context, v *vault) {
	loop := a.dog.Loop("link")
	defer loop.End()
	changed, stop := a.Watch()
	defer stop()
	l := &linker{Agent: a, vault: v, loop: loop, changed: changed, random: jitter()}
	l.renewal.spread = l.random.Float64()
	for ctx.Err() == nil {
		self, err := v.self()
		switch {
		case err != nil:
			a.link.set(failed("", "", err))
			l.pause(ctx, 0)
		case self == nil || self.spare():
			a.link.set(a.waitsFor(self))
			a.rest(ctx, loop, time.Hour, changed)
		default:
			if l.bundle != self.newest() { // perhaps other servers, in any case another try
				l.bundle, l.backoff, l.renewal.tried = self.newest(), mqtt.Backoff{Cap: a.cfg.MaxBackoff}, time.Time{}
			}
			if lived, again := l.connect(ctx, self); !again {
				l.pause(ctx, lived)
			}
		}
	}
}

// waitsFor is the link's state before it does anything.
func (a *Agent) waitsFor(self *terminalRecord) LinkStatus {
	switch {
	case self == nil:
		return LinkStatus{State: LinkUnprovisioned, Next: "take in a bundle: " + a.cfg.Program + " provision BUNDLE"}
	case self.spare():
		return LinkStatus{State: LinkSpare}
	}
	return LinkStatus{State: LinkConnecting, Server: self.Servers[0]}
}

// pause waits between two attempts; a new bundle ends it.
func (l *linker) pause(ctx context.Context, lived time.Duration) {
	pause := l.backoff.Next(lived, l.random)
	until := time.Now().Add(pause)
	l.link.retryAt(until)
	for left := pause; left > 0 && l.rest(ctx, l.loop, left, l.changed); left = time.Until(until) {
		if self, err := l.vault.self(); err == nil && self.newest() != l.bundle {
			return
		}
	}
}

// connect makes one attempt at every server: it enrolls if this terminal has no
// identity yet or is to renew it, and holds a session until that ends. again is
// true when the next attempt should follow at once.
func (l *linker) connect(ctx context.Context, self *terminalRecord) (lived time.Duration, again bool) {
	defer self.wipe()
	chain, err := l.vault.identityChain()
	if err != nil {
		l.link.set(failed("", "", err))
		return 0, false
	}
	for _, server := range self.Servers {
		t := &trip{linker: l, self: self, chain: chain, server: server}
		if chain == nil || l.renewal.due(chain, l.clock, l.clock.raw()) {
			l.renewal.attempt(l.clock.raw())
			if err = t.enroll(ctx); err == nil {
				return 0, true
			}
			l.complain(ctx, server, self.Terminal, 0, err)
		}
		if chain == nil {
			continue
		}
		lived, again, err = t.session(ctx)
		if ctx.Err() != nil || err == nil {
			return lived, again
		}
		l.renewal.refused = errors.Is(err, mqtt.ErrRefused)
		l.complain(ctx, server, self.Terminal, lived, err)
		if lived > 0 {
			return lived, again
		}
	}
	return lived, again
}

// complain shows and logs a failure.
func (l *linker) complain(ctx context.Context, server string, terminal transport.Name, lived time.Duration, err error) {
	if ctx.Err() != nil {
		return
	}
	status := failed(server, terminal, err)
	level := slog.LevelDebug
	if l.link.news(status, lived) {
		level = slog.LevelWarn
	}
	l.link.set(status)
	l.log.Log(ctx, level, "link failed", "server", server, "lived", lived.Round(time.Second), "err", err)
}

// failed says what went wrong with the link.
func failed(server string, terminal transport.Name, err error) LinkStatus {
	s := LinkStatus{State: LinkWaiting, Server: server, Error: err.Error(), Next: "nothing to do if the server or the network is down: it connects by itself"}
	if errors.Is(err, mqtt.ErrRefused) {
		s.State = LinkRefused
		s.Error = fmt.Sprintf("the server does not know %s any more, or knows it by another device: was it removed? (%v)", terminal, err)
		s.Next = fmt.Sprintf("have an administrator look at it with `kagimori-server terminal show %[1]s`; if it is to go on, `kagimori-server terminal reenroll %[1]s` makes a bundle to provision here", terminal)
	}
	if p, ok := errors.AsType[*control.Problem](err); ok {
		s.Next = p.Next
		if p.Kind == control.Refused {
			s.State = LinkRefused
		}
	}
	return s
}
