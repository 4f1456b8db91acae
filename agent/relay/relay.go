// Package relay lets an unchanged local program use a credential: it listens on
// a local port or socket, and what comes in there goes, authenticated and
// encrypted, to the gate of a service (req: L5, L15). START HERE; then dial.go
// (who the gate must be, who we are) and refuse.go (what the program is told
// when it does not work).
//
// The relay passes bytes and understands none. A gate speaks HTTP/1.1, so the
// program does; its requests arrive as it wrote them, Host header included. Only
// when there is nobody to pass bytes to, and the program seems to speak HTTP,
// the relay itself answers, once, with 503 and the reason.
//
// Whoever can reach the listener uses the credential. A port on the loopback
// address is open to every local user, web browsers and what they show included;
// a unix socket (0660) only to its group.
package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// Limits.
const (
	// MaxConnections is how many local connections one relay carries at once.
	MaxConnections = 256
	// DefaultIdle ends a connection over which nothing went in either direction.
	DefaultIdle = 10 * time.Minute

	// maxRefusing bounds the connections beyond MaxConnections that are told why
	// they are refused; more are just closed.
	maxRefusing = 32
	// bufferSize is a TLS record's, so that one read takes a whole record.
	bufferSize = 16 << 10
	// minPause and maxPause bound the wait after an accept that failed.
	minPause, maxPause = 5 * time.Millisecond, time.Second
)

var errFull = fmt.Errorf("%d connections are open already: close some, or wait", MaxConnections)

// Config says what to relay.
type Config struct {
	// Service is whose credential is used.
	Service transport.Name
	// Listen is "127.0.0.1:port", "[::1]:port", "localhost:port" or "unix:/path".
	Listen string
	// Public allows Listen to be an address that other machines can reach.
	Public bool
	// Idle is DefaultIdle if 0.
	Idle time.Duration
}

// A Relay serves one local address. It is made by New.
type Relay struct {
	cfg         Config
	network     string
	address     string
	credentials Credentials
	log         *slog.Logger
	buffers     sync.Pool

	mu       sync.Mutex // guards all below
	status   Status
	refusing int // connections beyond MaxConnections that are being told so
	live     map[*passage]struct{}
	quiet    limiter
}

// Status is what the relay is doing, for people.
type Status struct {
	Service  transport.Name `json:"service"`
	Listen   string         `json:"listen"`             // as bound; empty while not listening
	Active   int            `json:"active"`             // connections now
	Relayed  uint64         `json:"relayed"`            // connections that a gate answered, since the start
	Refused  uint64         `json:"refused"`            // connections that found none, were refused by it, or cut because it is revoked
	LastWhy  string         `json:"last_why,omitempty"` // why the last one was refused; empty once another got through
	LastTime time.Time      `json:"last_time,omitzero"` // when that was
}

// New checks cfg. Nothing is opened before Listen or Run.
func New(cfg Config, credentials Credentials, log *slog.Logger) (*Relay, error) {
	network, address, err := parseListen(cfg.Listen, cfg.Public)
	if err != nil {
		return nil, err
	}
	if _, err := transport.ParseName(string(cfg.Service)); err != nil {
		return nil, fmt.Errorf("relay: service: %w", err)
	}
	if cfg.Idle == 0 {
		cfg.Idle = DefaultIdle
	}
	r := &Relay{
		cfg: cfg, network: network, address: address, credentials: credentials,
		log:    log.With("relay", cfg.Listen, "service", cfg.Service),
		status: Status{Service: cfg.Service}, live: map[*passage]struct{}{},
	}
	r.buffers.New = func() any { return new([bufferSize]byte) }
	return r, nil
}

// Run listens and serves until ctx ends. It returns nil then, and an error
// only if it cannot listen or accept.
func (r *Relay) Run(ctx context.Context) error {
	ln, err := r.Listen(ctx)
	if err != nil {
		return err
	}
	return r.Serve(ctx, ln)
}

// Status is a copy of the present state.
func (r *Relay) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}

// Serve takes over ln and returns when ctx has ended and every connection with
// it; ln is closed then.
func (r *Relay) Serve(ctx context.Context, ln net.Listener) error {
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
	defer ln.Close()
	r.bound(boundAddress(ln))
	defer r.bound("")
	var wg sync.WaitGroup
	defer wg.Wait()
	connections, cancel := context.WithCancel(ctx)
	defer cancel() // before the wait
	var pause time.Duration
	for {
		c, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = c.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("relay %s: %w", r.cfg.Listen, err)
		case err != nil: // such as too many open files: it passes
			pause = min(max(2*pause, minPause), maxPause)
			r.log.Warn("relay cannot accept a connection", "err", err, "pause", pause)
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			continue
		}
		pause = 0
		r.admit(connections, &wg, c)
	}
}

// admit starts the goroutine of a connection, if it may have one.
func (r *Relay) admit(ctx context.Context, wg *sync.WaitGroup, local net.Conn) {
	r.mu.Lock()
	full := r.status.Active >= MaxConnections
	mute := full && r.refusing >= maxRefusing
	switch {
	case mute:
	case full:
		r.refusing++
	default:
		r.status.Active++
	}
	r.mu.Unlock()
	if full {
		r.refused(errFull)
	}
	if mute {
		_ = local.Close()
		return
	}
	wg.Go(func() {
		stop := context.AfterFunc(ctx, func() { reset(local) }) // an end would look like all there is
		defer stop()
		defer local.Close()
		if full {
			r.refuse(local, nil, errFull)
		} else {
			r.carry(ctx, local)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if full {
			r.refusing--
		} else {
			r.status.Active--
		}
	})
}

// carry does all for one connection.
func (r *Relay) carry(ctx context.Context, local net.Conn) {
	var head []byte
	remote, err := r.dial(ctx)
	if err == nil {
		stop := context.AfterFunc(ctx, func() { _ = remote.NetConn().Close() })
		head, err = r.pass(local, remote)
		stop()
	}
	if err != nil && ctx.Err() == nil {
		r.refused(err)
		r.refuse(local, head, err)
	}
}

// reached takes note of a connection that a gate answered: what was refused
// before it is history.
func (r *Relay) reached() {
	r.mu.Lock()
	r.status.Relayed++
	r.status.LastWhy, r.status.LastTime = "", time.Time{}
	r.mu.Unlock()
}

func (r *Relay) bound(address string) {
	r.mu.Lock()
	r.status.Listen = address
	r.mu.Unlock()
	if address != "" {
		r.log.Info("relay listens", "address", address)
	}
}

func (r *Relay) buffer() *[bufferSize]byte { return r.buffers.Get().(*[bufferSize]byte) }

// release wipes what passed through: it was encrypted on the wire for a reason.
func (r *Relay) release(b *[bufferSize]byte) {
	clear(b[:])
	r.buffers.Put(b)
}
