package agent

import (
	"context"
	"errors"
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
	Server string    `json:"server,omitempty"` // host:port, of the connection or of the last attempt
	Since  time.Time `json:"since,omitzero"`   // of this state, by the system clock
	Retry  time.Time `json:"retry,omitzero"`   // of the next attempt, by the system clock
	Error  string    `json:"error,omitempty"`  // of the last attempt
	Next   string    `json:"next,omitempty"`   // what somebody can do about it
}

// Up says whether the server can be talked to.
func (s LinkStatus) Up() bool { return s.State == LinkConnected }

// Linked says whether the server can be talked to now.
func (a *Agent) Linked() bool { return a.link.get().Up() }

type linkStatus struct {
	mu     sync.Mutex
	status LinkStatus // guarded by mu
}

func (l *linkStatus) set(s LinkStatus) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.State == l.status.State && s.Server == l.status.Server {
		s.Since = l.status.Since
	} else {
		s.Since = time.Now().UTC().Truncate(time.Second)
	}
	l.status = s
}

func (l *linkStatus) get() LinkStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status
}

// runLink keeps the link until ctx ends.
func (a *Agent) runLink(ctx context.Context, v *vault) {
	loop := a.dog.Loop("link")
	defer loop.End()
	changed, stop := a.Watch()
	defer stop()
	backoff := mqtt.Backoff{Cap: a.cfg.MaxBackoff}
	random := jitter()
	var bundle transport.ID
	for ctx.Err() == nil {
		self, err := v.self()
		switch {
		case err != nil:
			a.link.set(failed("", err))
			a.pause(ctx, v, loop, changed, bundle, backoff.Next(0, random))
		case self == nil:
			a.link.set(LinkStatus{State: LinkUnprovisioned, Next: "take in a bundle: " + a.cfg.Program + " provision BUNDLE"})
			a.rest(ctx, loop, time.Hour, changed)
		case self.spare():
			a.link.set(LinkStatus{State: LinkSpare})
			a.rest(ctx, loop, time.Hour, changed)
		default:
			if bundle != self.newest() { // perhaps other servers, in any case another try
				bundle, backoff = self.newest(), mqtt.Backoff{Cap: a.cfg.MaxBackoff}
			}
			lived, again := a.connect(ctx, v, self, loop, changed)
			if again {
				continue
			}
			a.pause(ctx, v, loop, changed, bundle, backoff.Next(lived, random))
		}
	}
}

// pause waits between two attempts; a new bundle ends it.
func (a *Agent) pause(ctx context.Context, v *vault, loop *systemd.Loop, changed <-chan struct{}, bundle transport.ID, pause time.Duration) {
	until := time.Now().Add(pause)
	s := a.link.get()
	s.Retry = until.UTC().Truncate(time.Second)
	a.link.set(s)
	for left := pause; left > 0 && a.rest(ctx, loop, left, changed); left = time.Until(until) {
		if self, err := v.self(); err == nil && self.newest() != bundle {
			return
		}
	}
}

// connect makes one attempt at every server: it enrolls if this terminal has no
// identity yet (then again is true), or holds a session until that ends.
func (a *Agent) connect(ctx context.Context, v *vault, self *terminalRecord, loop *systemd.Loop, changed <-chan struct{}) (lived time.Duration, again bool) {
	defer self.CommonKey.Wipe()
	chain, err := v.identityChain()
	if err != nil {
		a.link.set(failed("", err))
		return 0, false
	}
	for _, server := range self.Servers {
		t := &trip{Agent: a, vault: v, self: self, chain: chain, server: server, loop: loop, changed: changed}
		if chain == nil {
			err = t.enroll(ctx)
			again = err == nil
		} else {
			lived, again, err = t.session(ctx)
		}
		if ctx.Err() != nil || err == nil {
			return lived, again
		}
		a.link.set(failed(server, err))
		a.log.Warn("link failed", "server", server, "lived", lived.Round(time.Second), "err", err)
		if lived > 0 {
			return lived, again
		}
	}
	return lived, again
}

// failed says what went wrong with the link.
func failed(server string, err error) LinkStatus {
	s := LinkStatus{State: LinkWaiting, Server: server, Error: err.Error(), Next: "nothing to do if the server or the network is down: it connects by itself"}
	if errors.Is(err, mqtt.ErrRefused) {
		s.State = LinkRefused
		s.Next = "have an administrator look at this terminal with `kagimori-server terminal show`; after `kagimori-server terminal reenroll`, provision the bundle it makes"
	}
	if p, ok := errors.AsType[*control.Problem](err); ok {
		s.Next = p.Next
		if p.Kind == control.Refused {
			s.State = LinkRefused
		}
	}
	return s
}
