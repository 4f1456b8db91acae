// Package gate stands in front of a service and admits terminals to it by
// their credentials (req: L5). A gate is an agent that stands on the service's
// side: package agent enrolls it, keeps its keys and obeys commands; this
// package is the door. START HERE, then in the order of a connection:
//
//   - door.go: accepting, and the TLS handshake
//   - admit.go: who may pass, asked at the handshake and at each request
//   - session.go: the connections that are open, and how they are dropped
//   - crl.go, crls.go, kept.go, fetch.go: which certificates are revoked, how we know
//   - handler.go, header.go, upstream.go: the way to the service and what it is told
//   - refusal.go: why not, in words for the terminal (RFC 9457)
//   - count.go, status.go, control.go: what people see
//   - source.go: what the gate takes from its agent
//
// Rules, each held by a test:
//
//	[GATE-1] A terminal passes with a credential of this very service: chain to the deployment's root, clientAuth
//	         only, one name, within its validity, not revoked.
//	[GATE-2] All of it is asked at the handshake; validity and revocation again at each request and each second.
//	[GATE-3] No list of revoked certificates for the issuer, or one that nobody confirmed for crl_max_age: nobody passes.
//	[GATE-4] A list is taken only if the issuer signed it, and never an older one in the place of a newer one.
//	[GATE-5] Only the gate speaks Kagimori-* headers to the service, under whatever spelling.
//	[GATE-6] A terminal gets a class of reason and a next step, never an address or an error text from behind the gate.
package gate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kagimori/kagimori/systemd"
	"github.com/kagimori/kagimori/transport"
)

// A Source is what the gate takes from the agent that it stands on.
type Source interface {
	// Place says who this gate is. It fails while the gate is not provisioned;
	// the error says what to do.
	Place() (Place, error)
	// Certificate is the server certificate in force for the gate's service.
	// It is asked at each handshake, so a renewed one is used at once. The
	// error says why there is none.
	Certificate() (*tls.Certificate, error)
	// Time is when certificates are judged (DESIGN D12).
	Time() time.Time
	// Linked says whether the link to the management server is up.
	Linked() bool
}

// A Place is who a gate is: what its provisioning bundle said.
type Place struct {
	Deployment, Service transport.Name
	Roots               *x509.CertPool
}

// Config is what the operator chooses. Zero limits mean the defaults of limits.go.
type Config struct {
	// Upstream is the protected service: http:// on loopback, unix:/path or https://.
	Upstream string
	// UpstreamRoots are trusted for an https upstream; nil: the system's.
	UpstreamRoots *x509.CertPool
	// CRLMaxAge is how long the last good list serves after it was last
	// confirmed; CRLFetch is how often one is fetched.
	CRLMaxAge, CRLFetch time.Duration
	// CRLFile keeps the last good lists over a restart.
	CRLFile string
	// MaxSessions bounds the admitted connections, MaxPerCredential those of
	// one credential.
	MaxSessions, MaxPerCredential int
}

// A Gate is the door of one service.
type Gate struct {
	cfg      Config
	source   Source
	dog      *systemd.Watchdog
	log      *slog.Logger
	crls     *crls
	fetcher  *fetcher
	sessions *sessions
	counts   *counts
	upstream *upstream
	handler  http.Handler
	listen   atomic.Pointer[string] // where Run listens
}

// New makes a gate. It fails when the upstream is not one that a gate may have.
func New(cfg Config, source Source, dog *systemd.Watchdog, log *slog.Logger) (*Gate, error) {
	cfg.setDefaults()
	up, err := newUpstream(cfg.Upstream, cfg.UpstreamRoots)
	if err != nil {
		return nil, err
	}
	g := &Gate{
		cfg: cfg, source: source, dog: dog, log: log, upstream: up,
		crls:     newCRLs(cfg.CRLFile, cfg.CRLMaxAge, log),
		fetcher:  newFetcher(),
		sessions: newSessions(cfg.MaxSessions, cfg.MaxPerCredential),
		counts:   newCounts(log),
	}
	g.handler = g.newHandler(up)
	return g, nil
}

func (c *Config) setDefaults() {
	if c.MaxSessions == 0 {
		c.MaxSessions = defaultSessions
	}
	if c.MaxPerCredential == 0 {
		c.MaxPerCredential = defaultPerCredential
	}
}

// Run admits terminals that come in through l until ctx ends; then it gives
// running requests shutdownGrace and returns when all it started has ended. It
// takes l over.
func (g *Gate) Run(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer g.upstream.close()
	defer func() { g.crls.flush(g.now()) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	listen := l.Addr().String()
	g.listen.Store(&listen)
	g.prepare()
	in := newInner(l.Addr())
	server := g.newServer(ctx)
	wg.Go(func() { server.Serve(in) }) // ends with an error when in is closed, always
	wg.Go(func() { g.keep(ctx) })
	wg.Go(func() { g.fetchAll(ctx) })
	err := g.accept(ctx, l, in)

	cancel()
	g.shutdown(server, in)
	return err
}

// keep looks at everything that passes with time, each second.
func (g *Gate) keep(ctx context.Context) {
	loop := g.dog.Loop("gate")
	defer loop.End()
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		g.prepare()
		g.crls.confirm(g.now(), g.source.Linked())
		g.sweep()
		g.crls.flush(g.now())
		loop.Beat()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// prepare loads the kept lists once it is known whom to trust.
func (g *Gate) prepare() {
	if place, err := g.source.Place(); err == nil {
		g.crls.load(place.Roots, g.now())
	}
}

func (g *Gate) shutdown(server *http.Server, in *inner) {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownGrace)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		g.log.Warn("requests were cut off at shutdown", "err", err)
	}
	in.Close()
	g.sessions.dropAll()
	server.Close()
	g.sessions.wait()
}

// moment is one instant on two clocks. judged may be corrected by the server
// or stand still (DESIGN D12); steady always counts on.
type moment struct{ judged, steady time.Time }

func (g *Gate) now() moment { return moment{judged: g.source.Time(), steady: time.Now()} }
