// Package tcp carries the frames of a key copy over TLS 1.3. START HERE: Serve
// and Dial make a Conn; conn.go frames, tls.go says whom TLS lets in, door.go
// keeps a flood of strangers small.
//
// TLS gives secrecy, also against a recording that is opened by a quantum
// computer later (X25519MLKEM768 and nothing else), and a name to those that
// have an identity certificate. It does not say whether the peer may have a
// key: that is proven by the protocol above, bound to Channel().
package tcp

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// Config is how an end shows itself and whom it believes.
type Config struct {
	// Certificate is this terminal's identity with its chain, an ECDSA P-256
	// key. Without one the Source shows a certificate made for the moment, or the
	// one of Shown that is here, and the Target none.
	Certificate *tls.Certificate
	// Verify judges a peer's identity certificate, leaf first; it is
	// transport.VerifyTerminal with the root that this terminal trusts. It is
	// not asked about certificates without a name.
	Verify func(chain []*x509.Certificate) (transport.Name, error)
	// SourceKey, if set, is the KeyHash of the certificate that the Source must
	// show to Dial; another one is ErrOtherKey.
	SourceKey *[sha256.Size]byte
	// Modes are those that a Source speaks, or the one that a Target asks for;
	// none is transport.KeycopyPAKE. There is no choosing between them: a Source
	// that does not speak a Target's is transport.KeycopyModeRefused, at both ends.
	Modes []transport.KeycopyMode
	// Refused, if set, is told by Serve of a peer with which TLS did not come
	// about because of an identity, ErrForeign or Unaccepted, or because of
	// its mode, transport.KeycopyModeRefused.
	Refused func(remote string, err error)
	Log     *slog.Logger
}

// acceptPause paces Accept after an error such as too many open files.
const acceptPause = 100 * time.Millisecond

// noKeepAlive turns TCP's probes off: every wait here has a deadline.
const noKeepAlive = -1

// Listen opens a TCP port for Serve.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	ln, err := (&net.ListenConfig{KeepAlive: noKeepAlive}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for key copies: %w; choose another address, or stop what uses it", err)
	}
	return ln, nil
}

// Serve accepts connections until ctx ends, and returns when every handle has.
// It closes ln. handle's Conn breaks when ctx ends and is closed after handle; an
// error that is transport.ErrKeycopyStranger slows the peer's address down. When
// too many come, those who have not sent their first frame make room; if TLS is
// through they are told transport.KeycopyBusy.
func Serve(ctx context.Context, ln net.Listener, cfg Config, handle func(context.Context, *Conn) error) error {
	defer ln.Close()
	var err error
	if cfg.Certificate, err = Shown(cfg.Certificate); err != nil {
		return fmt.Errorf("serve key copies: %w", err)
	}
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	var wg sync.WaitGroup
	defer wg.Wait()
	d := newDoor()
	for {
		raw, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				raw.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("serve key copies: %w", err)
		case err != nil:
			cfg.Log.Warn("cannot accept a key copy connection", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(acceptPause):
			}
			continue
		}
		s := d.enter(raw, origin(raw.RemoteAddr()), time.Now())
		if s == nil {
			raw.Close()
			continue
		}
		wg.Go(func() {
			stranger, hangUp := serveOne(ctx, s, cfg, handle)
			d.leave(s, stranger, time.Now()) // before a stranger sees the end and comes back
			hangUp()
		})
	}
}

// serveOne tells whether the peer turned out to be a stranger, and how to hang up.
func serveOne(ctx context.Context, s *seat, cfg Config, handle func(context.Context, *Conn) error) (stranger bool, hangUp func() error) {
	c, err := open(ctx, s.conn, cfg, true)
	if err != nil {
		if s.lost() {
			err = errDisplaced
		}
		cfg.Log.Info("key copy connection refused", "remote", s.conn.RemoteAddr().String(), "err", err)
		if cfg.Refused != nil && (errors.Is(err, ErrForeign) || errors.Is(err, transport.KeycopyModeRefused) || Unaccepted(err)) {
			cfg.Refused(s.conn.RemoteAddr().String(), err)
		}
		return true, s.conn.Close
	}
	c.seat = s
	err = handle(ctx, c)
	if s.lost() {
		_ = c.busy() // a courtesy: the connection ends either way
	}
	return errors.Is(err, transport.ErrKeycopyStranger), c.Close
}

// Dial connects to a Source at host:port. The Conn breaks when ctx ends.
func Dial(ctx context.Context, address string, cfg Config) (*Conn, error) {
	var err error
	if cfg.Certificate, err = parsed(cfg.Certificate); err != nil {
		return nil, fmt.Errorf("connect to the old terminal: %w", err)
	}
	d := net.Dialer{Timeout: transport.KeycopyConnectTimeout, KeepAlive: noKeepAlive}
	raw, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("connect to the old terminal: %w; check the address, and that it still waits", err)
	}
	c, err := open(ctx, raw, cfg, false)
	if err != nil {
		raw.Close()
		return nil, fmt.Errorf("connect to the old terminal at %s: %w", address, err)
	}
	return c, nil
}

// open makes a Conn of raw, which is the caller's to close if that fails.
func open(ctx context.Context, raw net.Conn, cfg Config, server bool) (*Conn, error) {
	var h findings
	config := cfg.tls(server, &h)
	w := &wire{Conn: raw}
	t := tls.Client(w, config)
	if server {
		t = tls.Server(w, config)
	}
	until := time.Now().Add(transport.KeycopySessionTimeout)
	if err := handshake(ctx, t); err != nil {
		return nil, h.blame(err)
	}
	ch, err := channel(t, cfg, server)
	if err != nil {
		return nil, err
	}
	ch.Peer, ch.Mode = h.peer, h.mode
	return newConn(ctx, t, w, ch, until), nil
}

func handshake(ctx context.Context, t *tls.Conn) error {
	limited, cancel := context.WithTimeoutCause(ctx, transport.KeycopyTLSTimeout, os.ErrDeadlineExceeded)
	defer cancel()
	if err := t.HandshakeContext(limited); err != nil {
		if limited.Err() != nil {
			err = context.Cause(limited)
		}
		return fmt.Errorf("TLS: %w", err)
	}
	return nil
}

// channel says what the key copy has to know of t.
func channel(t *tls.Conn, cfg Config, server bool) (transport.KeycopyChannel, error) {
	state := t.ConnectionState()
	ch := transport.KeycopyChannel{Remote: t.RemoteAddr().String()}
	exporter, err := state.ExportKeyingMaterial(transport.KeycopyExporterLabel, nil, transport.KeycopyExporterSize)
	if err != nil {
		return ch, fmt.Errorf("TLS exporter: %w", err)
	}
	copy(ch.Exporter[:], exporter)
	var own, other []byte
	if cfg.Certificate != nil {
		own = cfg.Certificate.Leaf.RawSubjectPublicKeyInfo
		ch.Identified = !nameless([]*x509.Certificate{cfg.Certificate.Leaf})
	}
	if len(state.PeerCertificates) > 0 {
		other = state.PeerCertificates[0].RawSubjectPublicKeyInfo
	}
	ch.TargetKey, ch.SourceKey = own, other
	if server {
		ch.TargetKey, ch.SourceKey = other, own
	}
	return ch, nil
}
