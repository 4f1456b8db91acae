package tcp

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// dialTLS is a client that speaks TLS right and may then say anything.
func dialTLS(t testing.TB, address string, cfg Config) *tls.Conn {
	t.Helper()
	var seen findings
	c, err := tls.Dial("tcp", address, cfg.tls(false, &seen))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func frame(typ byte, body []byte) []byte {
	return append(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), typ), body...)
}

func TestFramesOfEverySize(t *testing.T) {
	f := newFleet(t)
	address := serve(t, f.config(t, nil), func(_ context.Context, c *Conn) error {
		for {
			f, err := c.ReadFrame(transport.MaxKeycopyGrant, transport.KeycopyMessageTimeout)
			if err != nil {
				return err
			}
			if err := c.WriteFrame(f, f.Type != 5); err != nil {
				return err
			}
		}
	})
	c, err := Dial(t.Context(), address, f.config(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sizes := []int{0, 1, 4091, 4092, 4096, 16379, 16384, 65536, transport.MaxKeycopyGrant}
	for typ := byte(5); typ <= 6; typ++ { // 5 is held back until a 6 follows
		for i, size := range sizes {
			body := bytes.Repeat([]byte{byte(i)}, size)
			if err := c.WriteFrame(transport.KeycopyFrame{Type: transport.KeycopyType(typ), Body: body}, i == len(sizes)-1); err != nil {
				t.Fatal(err)
			}
		}
	}
	for typ := byte(5); typ <= 6; typ++ {
		for i, size := range sizes {
			f, err := c.ReadFrame(size, transport.KeycopyMessageTimeout)
			if err != nil || f.Type != transport.KeycopyType(typ) || !bytes.Equal(f.Body, bytes.Repeat([]byte{byte(i)}, size)) {
				t.Fatalf("%d bytes: %s of %d, %v", size, f.Type, len(f.Body), err)
			}
		}
	}
}

// Golden wire bytes of the framing itself.
func TestFrameBytes(t *testing.T) {
	f := newFleet(t)
	got := make(chan []byte, 1)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", sourceTLS(t, f))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b, _ := io.ReadAll(c)
		got <- b
	}()
	c, err := Dial(t.Context(), ln.Addr().String(), f.config(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WriteFrame(transport.KeycopyFrame{Type: transport.KeycopyTypeError, Body: []byte{0xa1, 1, 5}}, true); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if b := <-got; !bytes.Equal(b, []byte{0, 0, 0, 3, 0x0f, 0xa1, 1, 5}) {
		t.Errorf("% x", b)
	}
}

// sourceTLS is the listening side's configuration without Serve around it.
func sourceTLS(t testing.TB, f *fleet) *tls.Config {
	t.Helper()
	cert, err := ephemeral()
	if err != nil {
		t.Fatal(err)
	}
	var seen findings
	return f.config(t, cert).tls(true, &seen)
}

// Whatever comes, a frame is within its limit and is what was sent.
func FuzzReadFrame(f *testing.F) {
	f.Add(frame(1, []byte("body")), 4)
	f.Add(frame(1, []byte("body")), 3)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1}, transport.MaxKeycopyGrant)
	f.Add([]byte{0, 0, 0, 9, 1, 2}, 9)
	f.Fuzz(func(t *testing.T, sent []byte, limit int) {
		limit &= 0xfffff
		got, err := readFrame(bytes.NewReader(sent), limit)
		if err != nil {
			return
		}
		if again := frame(byte(got.Type), got.Body); len(got.Body) > limit || !bytes.HasPrefix(sent, again) {
			t.Errorf("%d bytes of %s", len(got.Body), got.Type)
		}
	})
}

// What a peer sends that is not a frame, or too large a one, or half of one.
func TestBadFrames(t *testing.T) {
	f := newFleet(t)
	for name, tt := range map[string]struct {
		sent []byte
		want error
	}{
		"garbage":      {[]byte("GET / HTTP/1.1\r\n\r\n"), transport.ErrMalformed},
		"oversize":     {frame(1, make([]byte, transport.MaxKeycopyHandshake+1)), transport.ErrMalformed},
		"4 GiB":        {[]byte{0xff, 0xff, 0xff, 0xff, 1}, transport.ErrMalformed},
		"half a frame": {frame(1, make([]byte, 100))[:50], io.ErrUnexpectedEOF},
		"half a head":  {[]byte{0, 0}, io.ErrUnexpectedEOF},
		"nothing":      {nil, io.EOF},
	} {
		got := make(chan error, 1)
		address := serve(t, f.config(t, nil), func(_ context.Context, c *Conn) error {
			_, err := c.ReadFrame(transport.MaxKeycopyHandshake, transport.KeycopyMessageTimeout)
			got <- err
			return err
		})
		c := dialTLS(t, address, f.config(t, nil))
		if _, err := c.Write(tt.sent); err != nil && tt.want != transport.ErrMalformed { // there the Source may be gone by now
			t.Fatal(err)
		}
		c.Close()
		if err := <-got; !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
	// Garbage in place of TLS, and a server that is none.
	address := serve(t, f.config(t, nil), func(context.Context, *Conn) error { t.Error("served"); return nil })
	raw, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	raw.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
	if _, err := io.ReadAll(raw); err != nil && !errors.Is(err, net.ErrClosed) && !isReset(err) {
		t.Error(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		if c, err := ln.Accept(); err == nil {
			c.Write([]byte("SSH-2.0-OpenSSH\r\n"))
			c.Close()
		}
	}()
	if c, err := Dial(t.Context(), ln.Addr().String(), f.config(t, nil)); err == nil {
		t.Error("an SSH server will do")
		c.Close()
	}
}

func isReset(err error) bool {
	var op *net.OpError
	return errors.As(err, &op)
}

// pipes is a listener in memory, whose connections keep virtual time.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) dial() net.Conn {
	a, b := net.Pipe()
	p.conns <- a
	return b
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// Whoever is slow on purpose, at whatever step, is cut off when that step's
// deadline passes.
func TestSlowPeersAreCutOff(t *testing.T) {
	f := newFleet(t)
	hello := frame(1, make([]byte, 300))
	for name, tt := range map[string]struct {
		tls   bool
		drip  []byte // one byte a second
		after time.Duration
	}{
		"silent":               {false, nil, transport.KeycopyTLSTimeout},
		"TLS byte by byte":     {false, []byte{22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3, 0, 0, 0}, transport.KeycopyTLSTimeout},
		"silent after TLS":     {true, nil, helloTime},
		"a frame byte by byte": {true, hello, helloTime},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(context.Background())
				ln := newPipes()
				var wg sync.WaitGroup
				ended := make(chan error, 1)
				wg.Go(func() {
					err := Serve(ctx, ln, f.config(t, nil), func(_ context.Context, c *Conn) error {
						_, err := c.ReadFrame(transport.MaxKeycopyHandshake, transport.KeycopyMessageTimeout)
						ended <- err
						return err
					})
					if err != nil {
						t.Error(err)
					}
				})
				raw := ln.dial()
				start := time.Now()
				out := io.Writer(raw)
				if tt.tls {
					var seen findings
					c := tls.Client(raw, f.config(t, nil).tls(false, &seen))
					if err := c.Handshake(); err != nil {
						t.Fatal(err)
					}
					out = c
				}
				wg.Go(func() { // the pipe has no buffer: somebody has to read
					io.Copy(io.Discard, raw)
				})
				for _, b := range tt.drip {
					if _, err := out.Write([]byte{b}); err != nil {
						break
					}
					<-time.After(time.Second) // virtual
				}
				if tt.tls {
					if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
						t.Errorf("ended by %v", err)
					}
				}
				synctest.Wait()
				for { // the connection is closed: the pipe says so
					if _, err := raw.Write(nil); err != nil {
						break
					}
					<-time.After(time.Second) // virtual
				}
				if took := time.Since(start); took < tt.after || took > tt.after+2*time.Second {
					t.Errorf("cut off after %v, want %v", took, tt.after)
				}
				raw.Close()
				cancel()
				wg.Wait()
			})
		})
	}
}

// However chatty a peer is, its session ends.
func TestSessionEnds(t *testing.T) {
	f := newFleet(t)
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		type end struct {
			c   *Conn
			err error
		}
		cert, err := ephemeral()
		if err != nil {
			t.Fatal(err)
		}
		if cert, err = parsed(cert); err != nil {
			t.Fatal(err)
		}
		got := make(chan end, 1)
		go func() {
			c, err := open(t.Context(), a, f.config(t, cert), true)
			got <- end{c, err}
		}()
		client, err := open(t.Context(), b, f.config(t, nil), false)
		if err != nil {
			t.Fatal(err)
		}
		server := <-got
		if server.err != nil {
			t.Fatal(server.err)
		}
		start := time.Now()
		go func() {
			for client.WriteFrame(transport.KeycopyFrame{Type: 1, Body: []byte{1}}, true) == nil {
				<-time.After(time.Second) // virtual
			}
		}()
		for err == nil {
			_, err = server.c.ReadFrame(1, transport.KeycopyMessageTimeout)
		}
		if took := time.Since(start); !errors.Is(err, os.ErrDeadlineExceeded) || took != transport.KeycopySessionTimeout {
			t.Errorf("%v after %v", err, took)
		}
		server.c.Close()
		client.Close()
	})
}
