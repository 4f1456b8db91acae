package gate

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kagimori/kagimori/systemd"
)

// Everything that only time ends, in virtual time. Real sockets would stop the
// clock, so these houses have pipes.

// pipes is a listener whose connections never leave the process.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) dial(context.Context, string, string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case p.conns <- far:
		return near, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8443} }

// pipeHouse is a house of pipes, in front of this service.
func pipeHouse(t *testing.T, service http.HandlerFunc) (*house, *pipes) {
	t.Helper()
	inside := newPipes()
	server := &http.Server{Handler: service}
	go server.Serve(inside)
	t.Cleanup(func() { server.Close() })
	d := newDeployment(t, "demo")
	h := &house{deployment: d, t: t, log: &logBuffer{}}
	h.source = &source{place: Place{Deployment: d.name, Service: "maps", Roots: d.roots}, certificate: d.gateCertificate(t), linked: true}
	g, err := New(Config{Upstream: "http://127.0.0.1:1", CRLMaxAge: 24 * time.Hour, CRLFetch: time.Hour, CRLFile: filepath.Join(t.TempDir(), "revoked")},
		h.source, systemd.NewWatchdog(systemd.NewNotifier(discard), 0, discard), newLog(h.log))
	if err != nil {
		t.Fatal(err)
	}
	g.upstream.transport.DialContext = inside.dial
	h.gate = g
	door := newPipes()
	h.start(door)
	h.push(1)
	return h, door
}

// enter opens a connection, and does the handshake.
func enter(t *testing.T, h *house, door *pipes) *tls.Conn {
	t.Helper()
	raw, err := door.dial(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	template := h.template("maps", "cr-1", "place-1")
	template.NotAfter = time.Now().Add(24 * time.Hour)
	c := tls.Client(raw, h.config(h.service.leaf(t, template)))
	t.Cleanup(func() { raw.Close() })
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	return c
}

// ends waits until the other side ends the connection, and says how long that took.
func ends(c net.Conn) time.Duration {
	began := time.Now()
	io.Copy(io.Discard, c)
	return time.Since(began)
}

func near(got, want time.Duration) bool { return got >= want && got <= want+2*time.Second }

func TestWhoSaysNothingIsShownOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, door := pipeHouse(t, echo)
		silent, err := door.dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		if took := ends(silent); !near(took, handshakeTime) {
			t.Errorf("before the handshake: after %s", took)
		}
		if took := ends(enter(t, h, door)); !near(took, headerTime) {
			t.Errorf("before the first request: after %s", took)
		}
		slow := enter(t, h, door)
		io.WriteString(slow, "GET / HTTP/1.1\r\nHost: g\r\nX: ")
		if took := ends(slow); !near(took, headerTime) {
			t.Errorf("in the middle of a head: after %s", took)
		}
		idle := enter(t, h, door)
		io.WriteString(idle, "GET / HTTP/1.1\r\nHost: g\r\n\r\n")
		if took := ends(idle); !near(took, idleTime) {
			t.Errorf("between two requests: after %s", took)
		}
	})
}

func TestABodyThatStandsStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, door := pipeHouse(t, echo)
		c := enter(t, h, door)
		began := time.Now()
		// As long as something comes it may take all day.
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: g\r\nContent-Length: 1000\r\n\r\n")
		for range 20 {
			<-time.After(stallTime - time.Second)
			io.WriteString(c, "x")
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != http.StatusRequestTimeout || !near(time.Since(began), 20*(stallTime-time.Second)+stallTime) {
			t.Errorf("after %s: %+v %v", time.Since(began), resp, err)
		}
		ends(c)
		h.logs("reason=stalled")
	})
}

// A service that refuses a body without reading it must not have the gate wait
// for the rest of it.
func TestABodyThatNobodyWants(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, door := pipeHouse(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusForbidden) })
		c := enter(t, h, door)
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: g\r\nContent-Length: 1000\r\n\r\nx")
		if took := ends(c); took > stallTime+2*time.Second {
			t.Errorf("gone after %s", took)
		}
	})
}

// One that is refused gets its answer although it has not sent its body.
func TestARefusalDoesNotWaitForTheBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, door := pipeHouse(t, echo)
		h.source.set(func(s *source) { s.linked = false })
		h.gate.crls.maxAge = time.Hour
		<-time.After(2 * time.Hour)
		c := enter(t, h, door)
		began := time.Now()
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: g\r\nContent-Length: 1000\r\n\r\nx")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != http.StatusServiceUnavailable || time.Since(began) > 2*lingerTime {
			t.Errorf("after %s: %+v %v", time.Since(began), resp, err)
		}
	})
}

func TestATerminalThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone := make(chan time.Duration, 1)
		h, door := pipeHouse(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000000000") // or else a mutex in httputil, which waits too, would stop the clock
			began := time.Now()
			for {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					gone <- time.Since(began)
					return
				}
			}
		})
		c := enter(t, h, door)
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: g\r\n\r\n")
		if took := <-gone; !near(took, stallTime) {
			t.Errorf("the service is rid of it after %s", took)
		}
	})
}

func TestAServiceThatDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, door := pipeHouse(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		c := enter(t, h, door)
		began := time.Now()
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: g\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusGatewayTimeout || !strings.Contains(string(body), string(UpstreamTimeout)) || !near(time.Since(began), answerTime) {
			t.Errorf("after %s: %+v %s", time.Since(began), resp, body)
		}
	})
}

// A day goes by on an open, busy connection; then the credential's time is up.
//
// req: L17
func TestADayLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, door := pipeHouse(t, func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := fmt.Fprintln(w, "tick"); err != nil || http.NewResponseController(w).Flush() != nil {
					return
				}
				select {
				case <-r.Context().Done():
				case <-time.After(time.Minute):
				}
			}
		})
		c := enter(t, h, door)
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: g\r\n\r\n")
		if took := ends(c); !near(took, 24*time.Hour) {
			t.Errorf("lives %s", took)
		}
		h.logs("connection dropped", "reason=expired")
	})
}

// With the link down, whoever is inside is shown out when crl_max_age is over.
func TestLiveConnectionsEndWithTheList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, door := pipeHouse(t, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusOK)
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
		})
		h.gate.crls.maxAge = 6 * time.Hour
		h.source.set(func(s *source) { s.linked = false })
		c := enter(t, h, door)
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: g\r\n\r\n")
		if took := ends(c); !near(took, 6*time.Hour) {
			t.Errorf("lives %s", took)
		}
		late := enter(t, h, door)
		io.WriteString(late, "GET / HTTP/1.1\r\nHost: g\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(late), nil)
		if err != nil || resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
			t.Errorf("%+v %v", resp, err)
		}
	})
}
