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

func TestDoor(t *testing.T) {
	d := newDoor()
	now := time.Unix(1_800_000_000, 0)
	from := func(i int) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 32)
	}
	for i := range maxFrom {
		if !d.enter(from(1), now) {
			t.Fatalf("connection %d from one address is refused", i+1)
		}
	}
	if d.enter(from(1), now) {
		t.Error("one more from one address")
	}
	for i := range maxOpen - maxFrom {
		if !d.enter(from(2+i), now) {
			t.Fatalf("connection %d is refused", i+maxFrom+1)
		}
	}
	if d.enter(from(100), now) {
		t.Error("one more than fits")
	}
	d.leave(from(1), false, now)
	if !d.enter(from(1), now) {
		t.Error("a place that became free stays taken")
	}
	// A stranger waits a second, no longer, and others do not wait for him.
	d.leave(from(1), true, now)
	if d.enter(from(1), now.Add(strangerPause-1)) {
		t.Error("a stranger is back at once")
	}
	if !d.enter(from(100), now) {
		t.Error("others wait for a stranger")
	}
	d.leave(from(100), false, now)
	if !d.enter(from(1), now.Add(strangerPause)) {
		t.Error("a stranger is locked out")
	}
	for range maxFrom {
		d.leave(from(1), false, now)
	}
	for i := range maxOpen - maxFrom {
		d.leave(from(2+i), false, now)
	}
	// The table of strangers does not grow, and forgets the oldest.
	for i := range 3 * maxStrangers {
		at := now.Add(time.Duration(i) * time.Millisecond)
		if !d.enter(from(1000+i), at) {
			t.Fatal("refused")
		}
		d.leave(from(1000+i), true, at)
	}
	if len(d.strangers) != maxStrangers || len(d.from) != 0 || d.open != 0 {
		t.Errorf("%d strangers, %d addresses, %d open", len(d.strangers), len(d.from), d.open)
	}
	if _, ok := d.strangers[from(1000+3*maxStrangers-1)]; !ok {
		t.Error("the newest stranger is forgotten")
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

// A flood of connections that say nothing takes at most sixteen places, four
// of them from one address; a Target from elsewhere is still served as soon as
// one is free.
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
