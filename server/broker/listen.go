package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// Listen opens a TCP address such as ":8883". Its errors say what to do.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err == nil {
		return ln, nil
	}
	_, port, _ := net.SplitHostPort(address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("listen for terminals on %s: port %s is in use by another program; "+
			"find it with `ss -ltnp 'sport = :%s'` and stop it, or configure another port: %w", address, port, port, err)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("listen for terminals on %s: not allowed to use port %s; "+
			"configure a port above 1023, or let systemd open it (kagimori-server.socket): %w", address, port, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("listen for terminals on %s: this machine does not have that address; "+
			"see `ip address`, or configure only the port, as in %q: %w", address, ":"+port, err)
	}
	return nil, fmt.Errorf("listen for terminals on %q: want an address like \":8883\": %w", address, err)
}

// How long accept waits after an error, doubled each time.
const (
	acceptPauseMin = 5 * time.Millisecond
	acceptPauseMax = time.Second
)

// accept calls take for every connection until the listener is closed. No other
// error ends it: out of file descriptors or memory passes, and a listener that
// gave up is a dead server.
func (b *Broker) accept(ctx context.Context, ln net.Listener, take func(net.Conn)) error {
	pause, failed := acceptPauseMin, 0
	for {
		select {
		case b.turned <- struct{}{}:
		default:
		}
		conn, err := ln.Accept()
		switch {
		case err == nil:
			if failed > 0 {
				b.log.Info("accepting connections again", "failed", failed)
			}
			pause, failed = acceptPauseMin, 0
			take(conn)
			continue
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept: %w", err)
		}
		if failed == 0 {
			b.log.Error("cannot accept connections, trying again", "err", err)
		}
		failed++
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, acceptPauseMax)
	}
}

// maxEarly bounds what a stranger can make TLS collect: a hello and a full chain.
const maxEarly = 8<<10 + transport.MaxChain*transport.MaxCertificate

// A wire is the socket under TLS. It knows whether it waits for its client, and
// during the handshake it holds one of the broker's slots whenever it does not:
// so at most maxHandshake handshakes compute at once, and a silent client
// occupies none.
type wire struct {
	net.Conn
	slots   chan struct{}
	over    <-chan struct{}
	waiting atomic.Bool // for the client

	// Of the reading goroutine.
	pacing, held bool
	early        int // bytes of the handshake
}

func (w *wire) pace() { w.pacing = true }

// unpace ends the handshake.
func (w *wire) unpace() {
	w.release()
	w.pacing = false
}

func (w *wire) release() {
	if w.held {
		<-w.slots
		w.held = false
	}
}

func (w *wire) Read(p []byte) (int, error) {
	w.release()
	w.waiting.Store(true)
	n, err := w.Conn.Read(p)
	w.waiting.Store(false)
	if err != nil || !w.pacing {
		return n, err
	}
	if w.early += n; w.early > maxEarly {
		return 0, fmt.Errorf("%w: more than %d bytes of handshake", ErrTooLarge, maxEarly)
	}
	select {
	case w.slots <- struct{}{}:
		w.held = true
		return n, nil
	case <-w.over:
		return 0, net.ErrClosed
	}
}
