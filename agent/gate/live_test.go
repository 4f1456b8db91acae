package gate

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// promptly is how soon a live connection must be gone (DESIGN §5).
const promptly = time.Second

// A terminal on one connection, in each of the three ways in which one can be
// there: idle, in the middle of an answer, and past a protocol upgrade.
func busyHouse(t *testing.T) (h *house, enter map[string]func(tls.Certificate) net.Conn) {
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/stream":
			for r.Context().Err() == nil {
				if _, err := io.WriteString(w, "tick\n"); err != nil || http.NewResponseController(w).Flush() != nil {
					return
				}
				<-time.After(10 * time.Millisecond)
			}
		case "/upgrade":
			upgradeEcho(w, r)
		default:
			echo(w, r)
		}
	}))
	t.Cleanup(service.Close)
	h = buildHouse(t, Config{Upstream: service.URL})
	h.push(1)
	ask := func(cred tls.Certificate, request string, answer string) net.Conn {
		t.Helper()
		c := h.dial(cred)
		fmt.Fprintf(c, "%s", request)
		r := bufio.NewReader(c)
		line, err := r.ReadString('\n')
		if err != nil || !strings.Contains(line, answer) {
			t.Fatalf("answer %q %v\n%s", line, err, h.log)
		}
		return c
	}
	return h, map[string]func(tls.Certificate) net.Conn{
		"idle": func(c tls.Certificate) net.Conn { return ask(c, "GET / HTTP/1.1\r\nHost: g\r\n\r\n", "200") },
		"in an answer": func(c tls.Certificate) net.Conn {
			return ask(c, "GET /stream HTTP/1.1\r\nHost: g\r\n\r\n", "200")
		},
		"in a body": func(c tls.Certificate) net.Conn {
			return ask(c, "POST / HTTP/1.1\r\nHost: g\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n", "100")
		},
		"upgraded": func(c tls.Certificate) net.Conn {
			return ask(c, "GET /upgrade HTTP/1.1\r\nHost: g\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "101")
		},
		"before its first request": func(c tls.Certificate) net.Conn { return h.dial(c) },
	}
}

// gone reads to the end of the connection, which must not be a clean one in
// the middle of an answer.
func gone(c net.Conn) error {
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, err := io.Copy(io.Discard, c)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return err
	}
	return nil
}

// req: L10
func TestRevokedWhileConnected(t *testing.T) {
	h, enter := busyHouse(t)
	number := int64(1)
	for name, enter := range enter {
		t.Run(name, func(t *testing.T) {
			stays, goes := h.credential(t, "maps", "cr-1"), h.credential(t, "maps", "cr-2")
			bystander, c := h.dial(stays), enter(goes)
			eventually(t, "two connections", 5*time.Second, func() bool { return h.gate.Status().Connections == 2 })

			number++
			began := time.Now()
			h.push(number, goes)
			if err := gone(c); err != nil {
				t.Fatalf("the connection of a revoked credential lives on: %v", err)
			}
			if took := time.Since(began); took > promptly {
				t.Errorf("dropped after %s, want at most %s", took, promptly)
			} else {
				t.Logf("dropped after %s", took)
			}
			h.logs("connection dropped", "reason=revoked", "credential=cr-2")
			if err := h.knock(h.config(goes)); err == nil || !strings.Contains(err.Error(), "tls:") {
				t.Errorf("it comes in again: %v", err)
			}
			fmt.Fprintf(bystander, "GET / HTTP/1.1\r\nHost: g\r\n\r\n")
			if line, err := bufio.NewReader(bystander).ReadString('\n'); err != nil || !strings.Contains(line, "200") {
				t.Errorf("another terminal's connection: %q %v", line, err)
			}
			bystander.Close()
			eventually(t, "no connection", 5*time.Second, func() bool { return h.gate.Status().Connections == 0 })
		})
	}
}

// Expiry needs nobody to do anything, also on a connection that is open.
//
// req: L17
func TestExpiredWhileConnected(t *testing.T) {
	t.Parallel()
	h, enter := busyHouse(t)
	c := h.template("maps", "cr-1", "place-1")
	c.NotAfter = time.Now().Add(2 * time.Second).Truncate(time.Second)
	short := h.service.leaf(t, c)
	h.admits(short)
	open := map[string]net.Conn{}
	for name, enter := range enter {
		open[name] = enter(short)
	}
	for name, conn := range open {
		if err := gone(conn); err != nil {
			t.Errorf("%s: lives on after its credential's expiry: %v", name, err)
		}
	}
	if late := time.Since(c.NotAfter); late < 0 || late > 2*sweepEvery {
		t.Errorf("dropped %s after expiry", late)
	}
	h.logs("connection dropped", "reason=expired", "credential=cr-1")
	if err := h.knock(h.config(short)); err == nil || !strings.Contains(err.Error(), "tls:") {
		t.Errorf("it comes in again: %v", err)
	}
}

// Before the next sweep comes by, each request is judged by itself. The keep
// loop is not running here, so only the request's own check can refuse.
//
// req: L10, L17
func TestEachRequestIsJudged(t *testing.T) {
	h := newHouse(t)
	cred := h.credential(t, "maps", "cr-1")
	who, err := h.gate.identify([]*x509.Certificate{cred.Leaf, h.service.cert})
	if err != nil {
		t.Fatal(err)
	}
	s := &session{who: who, Conn: h.dial(cred).NetConn()}
	ask := func() (int, string) {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		w := httptest.NewRecorder()
		h.gate.handler.ServeHTTP(w, r.WithContext(newSessionContext(r.Context(), s)))
		if ct := w.Header().Get("Content-Type"); w.Code != http.StatusOK && ct != "application/problem+json" {
			t.Errorf("refusal of type %q", ct)
		}
		return w.Code, w.Body.String()
	}
	if code, body := ask(); code != http.StatusOK {
		t.Fatalf("%d %s", code, body)
	}
	h.source.set(func(s *source) { s.ahead = 2 * time.Hour })
	if code, body := ask(); code != http.StatusForbidden || !strings.Contains(body, `"reason":"expired"`) {
		t.Errorf("expired: %d %s", code, body)
	}
	h.source.set(func(s *source) { s.ahead = -2 * time.Hour })
	if code, body := ask(); code != http.StatusForbidden || !strings.Contains(body, `"reason":"not-yet-valid"`) {
		t.Errorf("not yet valid: %d %s", code, body)
	}
	h.source.set(func(s *source) { s.ahead = 0 })
	h.push(2, cred)
	if code, body := ask(); code != http.StatusForbidden || !strings.Contains(body, `"reason":"revoked"`) {
		t.Errorf("revoked: %d %s", code, body)
	}
	h.push(3)
	if code, body := ask(); code != http.StatusOK {
		t.Errorf("enabled again: %d %s", code, body)
	}
}

// The server may enable a credential again (L7): a newer list without it.
func TestEnabledAgain(t *testing.T) {
	h := newHouse(t)
	cred := h.credential(t, "maps", "cr-1")
	h.push(2, cred)
	if err := h.knock(h.config(cred)); err == nil {
		t.Error("revoked, and admitted")
	}
	h.push(3)
	h.admits(cred)
}

// The drop does not wait for a terminal that does not read.
func TestADropDoesNotWaitForTheTerminal(t *testing.T) {
	h, _ := busyHouse(t)
	cred := h.credential(t, "maps", "cr-1")
	c := h.dial(cred)
	fmt.Fprintf(c, "GET /stream HTTP/1.1\r\nHost: g\r\n\r\n")
	eventually(t, "a request on its way", 5*time.Second, func() bool { return h.gate.Status().Passed > 0 })
	began := time.Now()
	h.push(2, cred)
	if s := h.gate.Status(); s.Connections != 0 || time.Since(began) > promptly {
		t.Errorf("%d connections after %s", s.Connections, time.Since(began))
	}
}
