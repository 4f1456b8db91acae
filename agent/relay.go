package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/kagimori/kagimori/agent/relay"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

// Relays (req: L5, L15): agent/relay does the work, this file gives it the
// credentials and keeps each one listening.

// relayRetryFirst and relayRetryMost bound the pauses between attempts to
// listen: a port that another program has may become free.
const relayRetryFirst, relayRetryMost = time.Second, 30 * time.Second

// RelayStatus is what status says about one relay.
type RelayStatus struct {
	Service    transport.Name `json:"service"`
	Listen     string         `json:"listen"`
	Listening  bool           `json:"listening"`
	Credential transport.Name `json:"credential,omitempty"` // that it would use now
	Active     int            `json:"active"`               // connections now
	Relayed    uint64         `json:"relayed"`              // connections that reached the service, since the start
	Refused    uint64         `json:"refused"`              // connections that did not
	Error      string         `json:"error,omitempty"`
	ErrorTime  time.Time      `json:"error_time,omitzero"`
}

type relayRun struct {
	relay  *relay.Relay
	listen string

	mu  sync.Mutex
	err error // guarded by mu: why it does not listen
}

// run listens and serves until ctx ends.
func (r *relayRun) run(ctx context.Context, a *Agent) {
	for pause := relayRetryFirst; ctx.Err() == nil; pause = min(2*pause, relayRetryMost) {
		err := r.relay.Run(ctx)
		if ctx.Err() != nil {
			return
		}
		r.mu.Lock()
		r.err = err
		r.mu.Unlock()
		a.log.Error("relay does not listen; trying again", "relay", r.listen, "err", err, "pause", pause)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// credentials gives relays what they may use (relay.Credentials).
type credentials struct{ a *Agent }

var _ relay.Credentials = credentials{}

// Client gives the credential in force, looked up anew for every connection.
func (c credentials) Client(_ context.Context, service transport.Name) (*relay.Dialable, error) {
	v, err := c.a.open()
	if err != nil {
		return nil, err
	}
	found, err := c.a.Credential(service, transport.UsageClient)
	if err != nil {
		return nil, err
	}
	return &relay.Dialable{
		Credential: found.Record.ID, Certificate: found.TLS, ServerName: found.Record.ServerName, Endpoints: found.Record.Endpoints,
		Roots: found.Anchors, JudgedAt: c.a.clock.Judge,
		Revoked: func(chain []*x509.Certificate) error {
			return errors.Join(v.revocations.check(chain), v.withdrawn(found.Record.ID))
		},
	}, nil
}

// withdrawn says why a credential may not be used any more over a connection that
// it has opened: another terminal does, or is about to.
func (v *vault) withdrawn(id transport.Name) error {
	var gone error
	err := v.store.View(func(tx *store.Tx) error {
		h, err := holding(tx, id)
		defer h.wipe()
		switch {
		case err != nil:
		case h == nil:
			gone = fmt.Errorf("credential %s is not on this terminal any more", id)
		case h.Away != nil:
			gone = fmt.Errorf("credential %s is %s", id, h.Away)
		}
		return err
	})
	if err != nil { // that proves nothing
		v.log.Warn("whether a credential is still this terminal's is not known", "credential", id, "err", err)
	}
	return gone
}

// recheck ends what goes through gates that are revoked now, and what credentials
// have opened that have moved away.
func (a *Agent) recheck() {
	for _, r := range a.relays {
		r.relay.Recheck()
	}
}

// Credential gives the credential in force for a service; ErrNoCredential,
// wrapped with the reason and the next step, when there is none.
func (a *Agent) Credential(service transport.Name, usage transport.Usage) (*Credential, error) {
	v, err := a.open()
	if err != nil {
		return nil, err
	}
	var c *Credential
	err = v.store.View(func(tx *store.Tx) (err error) {
		c, err = pick(tx, a.clock, v.module, service, usage)
		return err
	})
	return c, err
}

// Trust is whom a provisioned device belongs to.
type Trust struct {
	Deployment transport.Name
	Terminal   transport.Name // empty on a spare device
	Service    transport.Name // of a gate
	Root       *x509.Certificate
	Roots      *x509.CertPool
}

// Trust gives it; ok is false before provisioning and while key storage is not open.
func (a *Agent) Trust() (t Trust, ok bool) {
	v, err := a.open()
	if err != nil {
		return Trust{}, false
	}
	self, err := v.self()
	if err != nil || self == nil {
		return Trust{}, false
	}
	self.wipe()
	root, err := x509.ParseCertificate(self.Root)
	if err != nil {
		return Trust{}, false
	}
	t = Trust{Deployment: self.Deployment, Terminal: self.Terminal, Service: self.Service, Root: root, Roots: x509.NewCertPool()}
	t.Roots.AddCert(root)
	return t, true
}

// identityCertificate is this device's identity for a TLS connection; nil
// before enrollment.
func (v *vault) identityCertificate() (*tls.Certificate, error) {
	chain, err := v.identityChain()
	if err != nil || chain == nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: chain, PrivateKey: v.identity}, nil
}

// status describes one relay.
func (r *relayRun) status(a *Agent) RelayStatus {
	rs := r.relay.Status()
	r.mu.Lock()
	broken := r.err
	r.mu.Unlock()
	s := RelayStatus{
		Service: rs.Service, Listen: r.listen, Listening: rs.Listen != "", Active: rs.Active,
		Relayed: rs.Relayed, Refused: rs.Refused, Error: rs.LastWhy, ErrorTime: rs.LastTime,
	}
	if rs.Listen != "" {
		s.Listen = rs.Listen
	} else if s.Error, s.ErrorTime = "starting", (time.Time{}); broken != nil {
		s.Error = broken.Error()
	} else if _, closed := a.open(); closed != nil {
		s.Error = "waits for key storage"
	}
	if c, err := a.Credential(rs.Service, transport.UsageClient); err == nil {
		s.Credential = c.Record.ID
	} else if s.Error == "" {
		s.Error = err.Error()
	}
	return s
}
