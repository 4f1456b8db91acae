package relay

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// A program that knows nothing of certificates reaches the service as the
// credential. req: L5, L15
func TestForeignProgramThroughRelay(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Fatal("curl is missing: run scripts/setup.sh")
	}
	ca := newCA(t, "ca")
	gate := newHTTPGate(t, gateTLS(t, ca, ca))
	want := "credential cred-1 host tiles.example path /tile body 5 proto HTTP/1.1/http/1.1\n"
	t.Run("port", func(t *testing.T) {
		r := newRig(t, ca, Config{}, gate.addr)
		out, err := exec.Command(curl, "-sS", "-d", "hello", "-H", "Host: tiles.example", "http://"+r.addr+"/tile").CombinedOutput()
		if string(out) != want || err != nil {
			t.Errorf("got %q, %v", out, err)
		}
		if s := r.relay.Status(); s.Relayed != 1 || s.Refused != 0 || s.Listen != r.addr {
			t.Errorf("status %+v", s)
		}
	})
	t.Run("socket", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "maps.sock")
		r := newRig(t, ca, Config{Listen: "unix:" + path}, gate.addr)
		out, err := exec.Command(curl, "-sS", "-d", "hello", "--unix-socket", path, "http://tiles.example/tile").CombinedOutput()
		if string(out) != want || err != nil {
			t.Errorf("got %q, %v", out, err)
		}
		if s := r.relay.Status(); s.Listen != "unix:"+path {
			t.Errorf("status %+v", s)
		}
	})
}

// What goes over the wire to the gate is encrypted. req: L5
func TestNothingInClearOnTheWire(t *testing.T) {
	ca := newCA(t, "ca")
	gate := newHTTPGate(t, gateTLS(t, ca, ca))
	ln, err := net.Listen("tcp", "127.0.0.1:0") // a tap between relay and gate
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var tapped syncBuffer
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		g, err := net.Dial("tcp", gate.addr)
		if err != nil {
			return
		}
		defer g.Close()
		wg.Go(func() { _, _ = io.Copy(io.MultiWriter(g, &tapped), c) })
		_, _ = io.Copy(io.MultiWriter(c, &tapped), g)
	})
	r := newRig(t, ca, Config{}, ln.Addr().String())
	if got := r.ask(t); !strings.Contains(got, "credential cred-1 host tiles.example") {
		t.Errorf("got %q", got)
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	for _, clear := range []string{"HTTP/1.1 ", "tiles.example", "cred-1", "/tile"} {
		if strings.Contains(tapped.String(), clear) {
			t.Errorf("%q can be read on the wire", clear)
		}
	}
	if !strings.Contains(tapped.String(), gateName) { // the name in the hello is not secret
		t.Error("the tap saw nothing")
	}
}

// sum answers everything that comes, once it is all there, with its hash.
func sum(c *tls.Conn) {
	h := sha256.New()
	if _, err := io.Copy(h, c); err == nil {
		_, _ = c.Write(h.Sum(nil))
	}
}

func TestHalfClose(t *testing.T) {
	ca := newCA(t, "ca")
	for _, listen := range []string{"127.0.0.1:0", "unix:" + filepath.Join(t.TempDir(), "s")} {
		t.Run("the program ends first "+listen[:4], func(t *testing.T) {
			r := newRig(t, ca, Config{Listen: listen}, newGate(t, gateTLS(t, ca, ca), sum).addr)
			c := r.dial(t)
			if _, err := io.WriteString(c, "all there is"); err != nil {
				t.Fatal(err)
			}
			closeWrite(c)
			got, err := io.ReadAll(c)
			if want := sha256.Sum256([]byte("all there is")); err != nil || !bytes.Equal(got, want[:]) {
				t.Errorf("got %x, %v", got, err)
			}
		})
	}
	t.Run("the gate ends first", func(t *testing.T) {
		heard := make(chan string, 1)
		r := newRig(t, ca, Config{}, newGate(t, gateTLS(t, ca, ca), func(c *tls.Conn) {
			_, _ = c.Write([]byte("I am done"))
			_ = c.CloseWrite()
			b, _ := io.ReadAll(c)
			heard <- string(b)
		}).addr)
		c := r.dial(t)
		if got, err := io.ReadAll(c); string(got) != "I am done" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
		if _, err := io.WriteString(c, "I am not"); err != nil {
			t.Error(err)
		}
		closeWrite(c)
		if got := <-heard; got != "I am not" {
			t.Errorf("the gate got %q", got)
		}
	})
}

func TestBigTransfer(t *testing.T) {
	const size = 64 << 20
	ca := newCA(t, "ca")
	t.Run("up", func(t *testing.T) {
		r := newRig(t, ca, Config{}, newGate(t, gateTLS(t, ca, ca), sum).addr)
		c, h, start := r.dial(t), sha256.New(), time.Now()
		source := io.LimitReader(rand.NewChaCha8([32]byte{1}), size)
		if n, err := io.Copy(io.MultiWriter(c, h), source); n != size || err != nil {
			t.Fatal(n, err)
		}
		closeWrite(c)
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, h.Sum(nil)) {
			t.Errorf("got %x, %v", got, err)
		}
		t.Logf("%.0f MiB/s", size/float64(1<<20)/time.Since(start).Seconds())
	})
	t.Run("down", func(t *testing.T) {
		r := newRig(t, ca, Config{}, newGate(t, gateTLS(t, ca, ca), func(c *tls.Conn) {
			_, _ = io.Copy(c, io.LimitReader(rand.NewChaCha8([32]byte{2}), size))
		}).addr)
		got, want := sha256.New(), sha256.New()
		if n, err := io.Copy(got, r.dial(t)); n != size || err != nil {
			t.Fatal(n, err)
		}
		_, _ = io.Copy(want, io.LimitReader(rand.NewChaCha8([32]byte{2}), size))
		if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
			t.Error("the bytes differ")
		}
	})
}

// Somebody who cuts the wire must not be able to shorten an answer unnoticed.
func TestCutAnswerIsNotAnEnd(t *testing.T) {
	ca := newCA(t, "ca")
	through := make(chan struct{})
	r := newRig(t, ca, Config{}, newGate(t, gateTLS(t, ca, ca), func(c *tls.Conn) {
		<-through // the reset can overtake the program's connect, which fails then
		_, _ = c.Write([]byte("half of"))
		_ = c.NetConn().Close() // without saying so
	}).addr)
	c := r.dial(t)
	close(through)
	b, err := io.ReadAll(c)
	if err == nil {
		t.Errorf("got %q and a clean end", b)
	}
}

// A program that goes away takes its connection to the gate with it.
func TestProgramGoesAway(t *testing.T) {
	ca := newCA(t, "ca")
	ended := make(chan error, 1)
	r := newRig(t, ca, Config{}, newGate(t, gateTLS(t, ca, ca), func(c *tls.Conn) {
		_, _ = c.Write([]byte("x"))
		_, err := io.ReadAll(c)
		ended <- err
	}).addr)
	c := r.dial(t)
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	reset(c)
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the gate keeps a connection without a program")
	}
	until(t, "no connection is active", func() bool { return r.relay.Status().Active == 0 })
	if s := r.relay.Status(); s.Refused != 0 {
		t.Errorf("a program that went away counts as refused: %+v", s)
	}
}

func TestIdleConnectionEnds(t *testing.T) {
	ca := newCA(t, "ca")
	r := newRig(t, ca, Config{Idle: 150 * time.Millisecond}, newGate(t, gateTLS(t, ca, ca), func(c *tls.Conn) {
		_, _ = io.Copy(c, c)
	}).addr)
	c, b := r.dial(t), make([]byte, 1)
	for range 5 { // traffic keeps it open for longer than Idle in all
		pause := time.NewTimer(50 * time.Millisecond)
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatal(err)
		}
		<-pause.C
	}
	if _, err := c.Read(b); err == nil || isTimeout(err) {
		t.Errorf("an idle connection stays open: %v", err)
	}
}

func TestCancelEndsEverything(t *testing.T) {
	ca := newCA(t, "ca")
	gate := newGate(t, gateTLS(t, ca, ca), func(c *tls.Conn) { _, _ = io.Copy(c, c) })
	before := runtime.NumGoroutine()
	r := newRig(t, ca, Config{}, gate.addr)
	var open []net.Conn
	for range 20 {
		c := r.dial(t)
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	for range 5 { // and some whose dialling is under way, towards nobody who answers
		open = append(open, r.dial(t))
	}
	start := time.Now()
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
	for i, c := range open {
		if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Errorf("connection %d is open: %v", i, err)
		}
	}
	gate.close()
	until(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before })
}

func TestCancelWhileDialling(t *testing.T) {
	ca := newCA(t, "ca")
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	r := newRig(t, ca, Config{}, silent.Addr().String())
	c := r.dial(t)
	until(t, "the relay dials", func() bool { return r.relay.Status().Active == 1 })
	start := time.Now()
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
	if b, err := io.ReadAll(c); err == nil && len(b) > 0 {
		t.Errorf("got %q", b)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	ca := newCA(t, "ca")
	r := newRig(t, ca, Config{}, newHTTPGate(t, gateTLS(t, ca, ca)).addr)
	hold := make(chan struct{})
	r.creds.mu.Lock()
	r.creds.hold = hold
	r.creds.mu.Unlock()
	var held []net.Conn
	for range MaxConnections {
		held = append(held, r.dial(t))
	}
	until(t, "all are taken in", func() bool { return r.relay.Status().Active == MaxConnections })
	if got := r.ask(t); !strings.HasPrefix(got, "HTTP/1.1 503 ") || !strings.Contains(got, "256 connections are open already") {
		t.Errorf("one too many got %q", got)
	}
	for range 2 * maxRefusing { // silent ones: half of them wait to be told, half are closed
		held = append(held, r.dial(t))
	}
	until(t, "all have been turned away", func() bool { return r.relay.Status().Refused == 1+2*maxRefusing })
	if s := r.relay.Status(); s.Active != MaxConnections {
		t.Errorf("status %+v", s)
	}
	r.creds.set(nil, errors.New("none: enroll"))
	r.creds.mu.Lock()
	r.creds.hold = nil
	r.creds.mu.Unlock()
	for _, c := range held {
		c.Close()
	}
	close(hold)
	until(t, "there is room", func() bool { return r.relay.Status().Active == 0 })
	if got := r.ask(t); !strings.Contains(got, "none: enroll") {
		t.Errorf("with room again: %q", got)
	}
}

func TestRunReportsWhatEndsIt(t *testing.T) {
	ca := newCA(t, "ca")
	r := newRig(t, ca, Config{}, "127.0.0.1:1")
	second, err := New(Config{Service: "maps", Listen: r.addr}, r.creds, r.relay.log)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "[[relay]] listen") {
		t.Errorf("port in use: %v", err)
	}
	third, err := New(Config{Service: "maps", Listen: "127.0.0.1:0"}, r.creds, r.relay.log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := third.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	ln, err := third.Listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if err := third.Serve(t.Context(), ln); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed listener: %v", err)
	}
}
