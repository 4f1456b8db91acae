// Package server is the management server. START HERE.
//
// A conversation takes who is at the other end, a message and the time, and
// returns an outcome: the reply, and whom to wake or disconnect. By then its
// effect is in the store. Each noun has a file:
//
//   - enroll.go, enroll_attest.go: how a terminal proves itself, and its TPM,
//     and gets its identity
//   - session.go, command.go: how it asks for orders and reports on them
//   - credential.go: how it gets a credential, and claims one that was copied
//   - service.go: what gates and terminals are told about revoked certificates
//   - terminal.go, bundle.go, remove.go, gate.go: what administrators ask for
//   - recovery.go, recovery_key.go, recovery_decide.go: how a terminal gets the key
//     of its earlier store back
//   - chip.go: which chips keys may go to
//   - credential_order.go, _renew.go, _revoke.go, _list.go: so of credentials
//   - audit.go, revocation.go, identity.go, http.go, http_door.go, init.go
//
// Around them stand link.go, which joins them to the broker, alive.go, and
// control.go, the table of what the control socket offers. Beneath: store (the
// truth), ca (signatures), broker (the wire). server/cmd/kagimori-server is
// the program.
package server

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/attest"
	"github.com/kagimori/kagimori/server/broker"
	"github.com/kagimori/kagimori/server/ca"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/systemd"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// Lifetimes says how long what the CAs sign is good; zero fields take the
// defaults.
type Lifetimes struct {
	Identity, Service, Server, CRL time.Duration
	Backdate                       time.Duration // of notBefore; no default
}

// Config is what a program decides about its server.
type Config struct {
	Version   string
	Lifetimes Lifetimes
	Access    control.Access // who may do what over the control socket
	// EKRoots are the makers of TPMs that are believed; nil: none, and no
	// terminal can be asked to prove a TPM.
	EKRoots *attest.Roots
	// Now and Random are the clock and the source of nonces, serials and ids;
	// nil: the system's.
	Now    func() time.Time
	Random io.Reader
	// Broker may tune the broker; its TLS is set here.
	Broker broker.Config
	// Watchdog is fed by each part of the server that lives; nil: by none.
	Watchdog *systemd.Watchdog
}

func (c Config) withDefaults() Config {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	const day = 24 * time.Hour
	set(&c.Lifetimes.Identity, 365*day)
	set(&c.Lifetimes.Service, 90*day)
	set(&c.Lifetimes.Server, 365*day)
	set(&c.Lifetimes.CRL, day)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Random == nil {
		c.Random = rand.Reader
	}
	return c
}

// Server is the management server of one deployment.
type Server struct {
	cfg        Config
	deployment store.Deployment
	store      *store.Store
	module     hsm.Module
	ca         *ca.CA
	log        *slog.Logger

	broker  *broker.Broker
	control *control.Server
	own     atomic.Pointer[tls.Certificate] // what terminals see; see identity.go
	decoy   *hsm.Secret                     // stands for the common key of unknown terminals

	recovery recoveryKeys // for which terminals wrap their store keys; set by New
	fleet    fleetKey     // approves chips; set by New

	sessions sessions
	settled  settled
	health   health
	turn     chan struct{} // taken by the maintenance loop, to show that it turns
}

// New makes the server of the deployment in st, which Init made. st and module
// stay the caller's to close, after Close.
func New(ctx context.Context, cfg Config, st *store.Store, module hsm.Module, log *slog.Logger) (_ *Server, err error) {
	s := &Server{cfg: cfg.withDefaults(), store: st, module: module, log: log, decoy: hsm.RandomSecret(transport.CommonKeySize), turn: make(chan struct{})}
	s.sessions.by = map[uint64]*session{}
	s.settled.wait = map[transport.ID][]chan struct{}{}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	var authorities []store.Authority
	err = st.View(ctx, func(tx *store.Tx) (err error) {
		if s.deployment, err = tx.Deployment(); err != nil {
			return err
		}
		authorities, err = tx.Authorities()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the deployment: %w", err)
	}
	if s.ca, err = ca.Open(ctx, module, s.caConfig(), materials(authorities), s.cfg.Random); err != nil {
		return nil, err
	}
	if err = s.renewOwn(ctx); err != nil {
		return nil, err
	}
	if err = s.loadRecoveryKeys(ctx); err != nil {
		return nil, err
	}
	if err = s.loadFleetKey(ctx); err != nil {
		return nil, err
	}
	s.cfg.Broker.TLS = &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: s.certificate}
	if s.broker, err = broker.New(s.cfg.Broker, (*link)(s), log); err != nil {
		return nil, err
	}
	s.control, err = control.New(control.Options{Product: "kagimori-server", Version: s.cfg.Version, Access: s.cfg.Access}, log, s.controlInterface())
	return s, err
}

func (s *Server) caConfig() ca.Config {
	return ca.Config{
		Deployment: s.deployment.Name, Hosts: hostsOf(s.deployment.Servers), HTTP: s.deployment.HTTP,
		IdentityLifetime: s.cfg.Lifetimes.Identity, ServiceLifetime: s.cfg.Lifetimes.Service, ServerLifetime: s.cfg.Lifetimes.Server,
		CRLLifetime: s.cfg.Lifetimes.CRL, Backdate: s.cfg.Lifetimes.Backdate,
	}
}

func materials(list []store.Authority) (m []ca.Material) {
	for _, a := range list {
		m = append(m, ca.Material{Name: a.Name, Certificate: a.Certificate, Key: a.Key})
	}
	return m
}

// Close releases the keys. Run has returned by then.
func (s *Server) Close() error {
	s.decoy.Wipe()
	if s.ca == nil {
		return nil
	}
	return s.ca.Close()
}

// Deployment is whom the server serves.
func (s *Server) Deployment() store.Deployment { return s.deployment }

// Listeners are the doors of a server, open already. Run closes them.
type Listeners struct {
	MQTT, HTTP, Control net.Listener
}

// Run serves until ctx ends, and returns when all that it started has ended.
// Call it once.
func (s *Server) Run(ctx context.Context, l Listeners) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	run := func(name string, f func(context.Context) error) {
		wg.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	run("mqtt", func(ctx context.Context) error {
		s.health.mqtt.Store(true)
		defer s.health.mqtt.Store(false)
		return s.broker.Run(ctx, l.MQTT)
	})
	run("http", func(ctx context.Context) error { return s.serveHTTP(ctx, l.HTTP) })
	run("control", func(ctx context.Context) error { return s.control.Serve(ctx, l.Control) })
	run("maintenance", s.maintain)
	if s.cfg.Watchdog != nil {
		wg.Go(func() { s.watch(ctx, l) })
	}
	s.log.Info("server runs", "deployment", s.deployment.Name, "mqtt", l.MQTT.Addr(), "http", l.HTTP.Addr())
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// by names an actor for the store.
func (s *Server) by(actor string) store.By { return store.By{Actor: actor, At: s.cfg.Now()} }

// actorServer is who changes what nobody asked for.
const actorServer = "server"

var _ http.Handler = (*Server)(nil)
