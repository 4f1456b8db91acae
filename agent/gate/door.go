package gate

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"sync"
	"time"
)

// The door takes connections in, and hands those whose terminal has proved who
// it is to the HTTP server.

// accept takes connections until ctx ends, and survives errors of Accept: out
// of descriptors is a reason to wait, not to stop.
func (g *Gate) accept(ctx context.Context, l net.Listener, in *inner) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	pause := acceptPause
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				c.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil:
			g.log.Warn("gate cannot accept connections", "err", err, "pause", pause)
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			pause = min(2*pause, acceptPauseMax)
			continue
		}
		pause = acceptPause
		s, crowded := g.sessions.enter(c)
		if crowded != nil {
			g.counts.refused(ctx, Crowded, "terminal refused", crowded.RemoteAddr(), identity{}, nil)
			crowded.drop()
		}
		wg.Go(func() { g.greet(ctx, s, in) })
	}
}

// greet does the handshake.
func (g *Gate) greet(ctx context.Context, s *session, in *inner) {
	s.SetDeadline(time.Now().Add(handshakeTime))
	c := tls.Server(s, g.tlsConfig(s))
	if err := c.HandshakeContext(ctx); err != nil {
		if ctx.Err() == nil && !errors.Is(err, net.ErrClosed) { // else it was dropped, and counted
			g.counts.refused(ctx, reasonOf(err), "terminal refused", s.RemoteAddr(), identity{}, err)
		}
		s.linger()
		return
	}
	s.SetDeadline(time.Time{})
	if !g.sessions.admit(s) {
		g.counts.refused(ctx, Busy, "terminal refused", s.RemoteAddr(), s.who, nil)
		c.Close()
		return
	}
	g.counts.admit(ctx, s)
	in.offer(ctx, c)
}

// reasonOf a handshake that failed.
func reasonOf(err error) Reason {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r.reason
	}
	if strings.Contains(err.Error(), "didn't provide a certificate") {
		return NoCertificate // crypto/tls has no other sign of it
	}
	return Handshake
}

// linger closes a connection whose terminal is refused so that the TLS alert
// reaches it: closed with unread bytes, which a TLS 1.3 client has sent by
// then, the kernel would send a reset in its place.
func (s *session) linger() {
	defer s.Close()
	half, ok := s.Conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || s.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	buf := make([]byte, 4<<10)
	for left := lingerBytes; left > 0; {
		n, err := s.Read(buf)
		if err != nil {
			return
		}
		left -= n
	}
}

// inner is the listener of the HTTP server: it gives connections that are
// admitted already.
type inner struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

var _ net.Listener = (*inner)(nil)

func newInner(addr net.Addr) *inner {
	return &inner{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *inner) offer(ctx context.Context, c net.Conn) {
	select {
	case l.conns <- c:
	case <-l.done:
		c.Close()
	case <-ctx.Done():
		c.Close()
	}
}

// Accept implements net.Listener.
func (l *inner) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *inner) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr implements net.Listener.
func (l *inner) Addr() net.Addr { return l.addr }
