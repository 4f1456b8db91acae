package tcp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kagimori/kagimori/transport"
)

func TestOrigin(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.7:1000":            "192.0.2.7/32",
		"[::ffff:192.0.2.7]:1000":   "192.0.2.7/32",
		"[2001:db8:1:2:3:4:5:6]:10": "2001:db8:1:2::/64",
		"[fe80::1%eth0]:10":         "fe80::/64",
	} {
		ap := netip.MustParseAddrPort(address)
		if got := origin(net.TCPAddrFromAddrPort(ap)); got.String() != want {
			t.Errorf("%s counts as %s, want %s", address, got, want)
		}
	}
	if got := origin(&net.UnixAddr{Name: "/x"}); got.IsValid() {
		t.Errorf("%s", got)
	}
}

// dialFrom connects from another loopback address.
func dialFrom(t *testing.T, local, address string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
	c, err := d.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// closed waits for the server to close c, or for the deadline.
func closed(c net.Conn, within time.Duration) bool {
	c.SetReadDeadline(time.Now().Add(within))
	_, err := io.Copy(io.Discard, c)
	ne, ok := errors.AsType[net.Error](err)
	return !ok || !ne.Timeout()
}

// A flood of connections that say nothing takes at most four places for each
// address; a Target from elsewhere is served meanwhile.
func TestFloodIsBounded(t *testing.T) {
	f := newFleet(t)
	address := serve(t, f.config(t, nil), echo)
	var idle []net.Conn
	for i := range 60 {
		idle = append(idle, dialFrom(t, fmt.Sprintf("127.0.0.%d", 2+i%3), address))
	}
	var held atomic.Int32
	var wg sync.WaitGroup
	for _, c := range idle {
		wg.Go(func() {
			if !closed(c, time.Second) {
				held.Add(1)
			}
		})
	}
	wg.Wait()
	if held.Load() != 3*maxFrom {
		t.Errorf("%d connections are held, want %d", held.Load(), 3*maxFrom)
	}
	c, err := Dial(t.Context(), address, f.config(t, nil)) // from 127.0.0.1
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.WriteFrame(transport.KeycopyFrame{Type: 1, Body: []byte{1}}, true); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReadFrame(1, time.Second); err != nil {
		t.Fatal(err)
	}
}

// An address whose peer was a stranger is turned away for a second, in TLS or
// after it.
func TestStrangersAreSlowedDown(t *testing.T) {
	f := newFleet(t)
	address := serve(t, f.config(t, nil), func(_ context.Context, c *Conn) error {
		f, err := c.ReadFrame(1, time.Second)
		if err == nil && f.Type == 1 {
			err = fmt.Errorf("wrapped: %w", transport.ErrKeycopyStranger)
		}
		return err
	})
	try := func(typ transport.KeycopyType) error {
		c, err := Dial(t.Context(), address, f.config(t, nil))
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.WriteFrame(transport.KeycopyFrame{Type: typ}, true); err != nil {
			return err
		}
		if _, err := c.ReadFrame(1, time.Second); !errors.Is(err, io.EOF) {
			t.Errorf("%v", err)
		}
		return nil
	}
	for range 3 {
		if err := try(2); err != nil { // not a stranger
			t.Fatal(err)
		}
	}
	if err := try(1); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	refused := 0
	for try(2) != nil {
		if refused++; time.Now().After(deadline) {
			t.Fatal("the address is locked out")
		}
	}
	if refused == 0 {
		t.Error("the stranger's address was served at once")
	}
}

// failing is a listener that fails on command, as one does without descriptors.
type failing struct {
	net.Listener
	mu    sync.Mutex
	times int
}

func (f *failing) Accept() (net.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.times > 0 {
		f.times--
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return f.Listener.Accept()
}

func TestServeSurvivesAcceptErrors(t *testing.T) {
	f := newFleet(t)
	ln, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cfg := f.config(t, nil)
	cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	serveOn(t, &failing{Listener: ln, times: 3}, cfg, echo)
	c, err := Dial(t.Context(), ln.Addr().String(), f.config(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if n := bytes.Count(log.Bytes(), []byte("cannot accept")); n != 3 {
		t.Errorf("logged %d times: %s", n, log.String())
	}
}

// Serve returns when its context ends, and not before its connections have.
func TestServeEndsWithItsContext(t *testing.T) {
	f := newFleet(t)
	ln, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	in, out := make(chan struct{}), make(chan error, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- Serve(ctx, ln, f.config(t, nil), func(_ context.Context, c *Conn) error {
			close(in)
			_, err := c.ReadFrame(1, transport.KeycopyMessageTimeout)
			out <- err
			return err
		})
	}()
	c, err := Dial(t.Context(), ln.Addr().String(), f.config(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	<-in
	cancel()
	if err := <-out; err == nil {
		t.Error("the connection outlived its context")
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := Serve(t.Context(), ln, f.config(t, nil), echo); !errors.Is(err, net.ErrClosed) {
		t.Errorf("on a closed listener: %v", err)
	}
	if _, err := Listen(t.Context(), c.Channel().Remote+"9"); err == nil {
		t.Error("an address that is none")
	}
	if _, err := Dial(t.Context(), ln.Addr().String(), f.config(t, nil)); err == nil {
		t.Error("nobody listens there")
	}
}

// Dial gives up with its context, and after the connect timeout.
func TestDialGivesUp(t *testing.T) {
	f := newFleet(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Dial(ctx, "127.0.0.1:1", f.config(t, nil)); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe() // a peer that never answers
		defer a.Close()
		go io.Copy(io.Discard, a)
		start := time.Now()
		_, err := open(t.Context(), b, f.config(t, nil), false)
		if took := time.Since(start); err == nil || took != transport.KeycopyTLSTimeout {
			t.Errorf("%v after %v", err, took)
		}
		a.Close()
	})
}
