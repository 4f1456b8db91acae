package gate

import (
	"crypto/tls"
	"errors"
	"sync"
	"time"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// agentSource is the Source of a running gate: its agent. What it gives out is
// kept until the agent says that something changed, since each handshake asks.
type agentSource struct {
	agent   *agent.Agent
	changed <-chan struct{}

	mu          sync.Mutex
	place       *Place           // guarded by mu; nil: ask the agent
	certificate *tls.Certificate // guarded by mu; nil: ask the agent
}

var _ Source = (*agentSource)(nil)

// FromAgent makes the Source; stop frees it.
func FromAgent(a *agent.Agent) (s Source, stop func()) {
	changed, stop := a.Watch()
	return &agentSource{agent: a, changed: changed}, stop
}

// refresh forgets what has changed. mu is held.
func (s *agentSource) refresh() {
	select {
	case <-s.changed:
		s.place, s.certificate = nil, nil
	default:
	}
}

// Place implements Source.
func (s *agentSource) Place() (Place, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refresh()
	if s.place != nil {
		return *s.place, nil
	}
	t, ok := s.agent.Trust()
	if !ok {
		if err := s.agent.View(func(*store.Tx) error { return nil }); err != nil {
			return Place{}, err // key storage is not open
		}
		return Place{}, control.Problemf(control.Unavailable, "take in the bundle that `kagimori-server gate add` made: kagimori-gate provision BUNDLE",
			"this gate is not provisioned")
	}
	s.place = &Place{Deployment: t.Deployment, Service: t.Service, Roots: t.Roots}
	return *s.place, nil
}

// Certificate implements Source.
func (s *agentSource) Certificate() (*tls.Certificate, error) {
	place, err := s.Place()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refresh()
	if s.certificate != nil && s.Time().Before(s.certificate.Leaf.NotAfter) {
		return s.certificate, nil
	}
	c, err := s.agent.Credential(place.Service, transport.UsageServer)
	switch {
	case errors.Is(err, agent.ErrNoCredential):
		if problem := s.expired(place.Service); problem != nil {
			return nil, problem
		}
		return nil, control.Problemf(control.Unavailable,
			"keep the gate connected: the management server orders its certificate by itself; where it does not come, look at `kagimori-server credential list` and the server's log",
			"this gate has no certificate for service %s yet", place.Service)
	case err != nil:
		return nil, err
	}
	s.certificate = &c.TLS
	return s.certificate, nil
}

// expired says that the gate's certificate has, and how to get another; nil: it
// never had one.
func (s *agentSource) expired(service transport.Name) error {
	status := s.agent.Status()
	for _, c := range status.Credentials.Expired {
		if c.Service == service {
			return control.Problemf(control.Unavailable, status.Credentials.Next,
				"the gate's own certificate for service %s has expired on %s: terminals refuse it", service, c.Since.UTC().Format(time.DateOnly))
		}
	}
	return nil
}

// Time implements Source. An untrusted clock is taken as it is, if it is not
// before the floor: judging at the floor, as a terminal may (DESIGN D12), would
// admit credentials that have expired since.
func (s *agentSource) Time() time.Time { return s.agent.Clock().Now() }

// Linked implements Source.
func (s *agentSource) Linked() bool { return s.agent.Linked() }
