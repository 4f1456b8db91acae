package gate

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/transport/control"
)

// upgradeEcho is a service that speaks something like a websocket.
func upgradeEcho(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") == "" {
		w.WriteHeader(http.StatusUpgradeRequired)
		return
	}
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer c.Close()
	fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", r.Header.Get("Upgrade"))
	rw.Flush()
	io.Copy(c, rw)
}

func TestUpgradedConnectionsWork(t *testing.T) {
	service := httptest.NewServer(http.HandlerFunc(upgradeEcho))
	defer service.Close()
	h := buildHouse(t, Config{Upstream: service.URL})
	h.push(1)
	c := h.dial(h.credential(t, "maps", "cr-1"))
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: g\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\r\n")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%+v %v", resp, err)
	}
	for _, word := range []string{"first", "second", "third"} {
		io.WriteString(c, word)
		got := make([]byte, len(word))
		if _, err := io.ReadFull(r, got); err != nil || string(got) != word {
			t.Fatalf("%q %v, want %q", got, err, word)
		}
	}
}

// A service that would agree to h2c must not be asked: the terminal would then
// speak to it past the gate, and could say that it is anybody.
func TestOnlyWebsocketUpgradesPass(t *testing.T) {
	service := httptest.NewServer(http.HandlerFunc(upgradeEcho))
	defer service.Close()
	h := buildHouse(t, Config{Upstream: service.URL})
	h.push(1)
	for _, upgrade := range []string{
		"Upgrade: h2c", "Upgrade: TLS/1.3", "Upgrade: websocket, h2c", "Upgrade: h2c, websocket", "Upgrade: websocket\r\nUpgrade: h2c",
		"Upgrade: h2c\r\nUpgrade: websocket", "upgrade: H2C\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA",
	} {
		c := h.dial(h.credential(t, "maps", "cr-1"))
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: g\r\nConnection: Upgrade, HTTP2-Settings\r\n%s\r\n\r\n", upgrade)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != http.StatusUpgradeRequired {
			t.Errorf("%q: %+v %v", upgrade, resp, err)
		}
	}
}

func TestUpstreamOverAUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "service.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	service := httptest.NewUnstartedServer(http.HandlerFunc(echo))
	service.Listener.Close()
	service.Listener = l
	service.Start()
	defer service.Close()
	h := buildHouse(t, Config{Upstream: "unix:" + path})
	h.push(1)
	h.admits(h.credential(t, "maps", "cr-1"))
}

func TestUpstreamOverHTTPS(t *testing.T) {
	service := httptest.NewUnstartedServer(http.HandlerFunc(echo))
	own := newDeployment(t, "backend")
	service.Config.ErrorLog = log.New(io.Discard, "", 0)
	service.TLS = &tls.Config{Certificates: []tls.Certificate{own.gateCertificate(t)}}
	service.StartTLS()
	defer service.Close()
	h := buildHouse(t, Config{Upstream: service.URL, UpstreamRoots: own.roots})
	h.push(1)
	h.admits(h.credential(t, "maps", "cr-1"))

	stranger := buildHouse(t, Config{Upstream: service.URL, UpstreamRoots: newDeployment(t, "backend").roots})
	stranger.push(1)
	if status, body, err := stranger.get(stranger.credential(t, "maps", "cr-1")); err != nil || status != http.StatusBadGateway {
		t.Errorf("a service with a foreign certificate: %d %q %v", status, body, err)
	}
}

func TestUpstreamsThatAGateMayNotHave(t *testing.T) {
	for _, address := range []string{
		"", "127.0.0.1:8080", "http://192.0.2.1:8080", "http://example.com", "ftp://127.0.0.1", "unix:relative",
		"https://", "https://user:secret@host", "https://host/base", "http://127.0.0.1/base/", "https://host?x=1", "https://host#x", "http://localhost.example.com",
	} {
		if _, err := New(Config{Upstream: address}, nil, nil, nil); !errors.Is(err, &control.Problem{Kind: control.Config}) {
			t.Errorf("%q: %v", address, err)
		}
	}
	for _, address := range []string{"http://127.0.0.1:8080", "http://127.0.0.1", "http://[::1]:8080/", "http://localhost:80", "https://maps.example.com", "unix:/run/maps.sock"} {
		if _, err := newUpstream(address, nil); err != nil {
			t.Errorf("%q: %v", address, err)
		}
	}
}

// What the service answers when it is not there tells a terminal nothing about it.
func TestUpstreamDown(t *testing.T) {
	l := listen(t)
	address := l.Addr().String()
	_, port, _ := net.SplitHostPort(address)
	h := buildHouse(t, Config{Upstream: "http://" + address})
	h.push(1)
	cred := h.credential(t, "maps", "cr-1")
	check := func(what string, status int, reason Reason) {
		t.Helper()
		client := h.client(cred)
		resp, err := client.Get("https://" + h.address + "/private?token=1")
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		defer resp.Body.Close()
		data, _ := io.ReadAll(resp.Body)
		var p problem
		if err := json.Unmarshal(data, &p); err != nil || resp.StatusCode != status || p.Status != status || p.Reason != reason ||
			p.Type != "about:blank" || p.Title != http.StatusText(status) || resp.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %s %v", what, resp.StatusCode, data, err)
		}
		var head bytes.Buffer
		resp.Header.Write(&head)
		for _, needle := range []string{port, "127.0.0.1", "dial", "connect", "refused", "EOF", "token"} {
			if strings.Contains(head.String()+string(data), needle) {
				t.Errorf("%s: the terminal is told of %q: %s %s", what, needle, head.String(), data)
			}
		}
	}
	answers, served := oddService(l)
	answers <- "SMTP ready\r\n"
	check("nonsense", http.StatusBadGateway, UpstreamDown)
	answers <- "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
	check("an upgrade that nobody asked for", http.StatusBadGateway, UpstreamDown)
	close(answers)
	<-served
	l.Close()
	check("nobody there", http.StatusBadGateway, UpstreamDown)
	h.logs("request failed", "reason=upstream", "connection refused")
	if s := h.gate.Status(); s.Refused[string(UpstreamDown)] != 3 {
		t.Errorf("status: %+v", s)
	}
}

// oddService gives each answer to one request, until there are no more.
func oddService(l net.Listener) (chan<- string, <-chan struct{}) {
	answers, served := make(chan string, 2), make(chan struct{})
	go func() {
		defer close(served)
		for answer := range answers {
			for range 2 { // the proxy may try an idempotent request again
				c, err := l.Accept()
				if err != nil {
					return
				}
				http.ReadRequest(bufio.NewReader(c))
				io.WriteString(c, answer)
				c.Close()
				if answer != "" {
					break
				}
			}
		}
	}()
	return answers, served
}

// A camera's pictures: large bodies both ways, neither kept in memory nor cut.
func TestLargeBodiesStream(t *testing.T) {
	const size = 8 << 20
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		n, err := io.Copy(h, r.Body)
		w.Header().Set("Trailer", "Digest")
		fmt.Fprintf(w, "%d %x %v\n", n, h.Sum(nil), err)
		io.Copy(w, io.LimitReader(rand.NewChaCha8([32]byte{1}), size))
		w.Header().Set("Digest", "done")
	}))
	defer service.Close()
	h := buildHouse(t, Config{Upstream: service.URL})
	h.push(1)
	client := h.client(h.credential(t, "maps", "cr-1"))
	client.Timeout = time.Minute
	for _, length := range []int64{size, -1} {
		req, err := http.NewRequest(http.MethodPut, "https://"+h.address+"/", io.LimitReader(rand.NewChaCha8([32]byte{2}), size))
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = length
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(resp.Body)
		line, _ := r.ReadString('\n')
		want := sha256.New()
		io.CopyN(want, rand.NewChaCha8([32]byte{2}), size)
		if line != fmt.Sprintf("%d %x <nil>\n", size, want.Sum(nil)) {
			t.Errorf("the service got %q", line)
		}
		got, expect := sha256.New(), sha256.New()
		n, err := io.Copy(got, r)
		io.CopyN(expect, rand.NewChaCha8([32]byte{1}), size)
		if n != size || err != nil || !bytes.Equal(got.Sum(nil), expect.Sum(nil)) || resp.Trailer.Get("Digest") != "done" {
			t.Errorf("the terminal got %d bytes, %v, trailer %v\n%s", n, err, resp.Trailer, h.log)
		}
		resp.Body.Close()
	}
}

func TestMethodsThatDoNotPass(t *testing.T) {
	h := newHouse(t)
	for _, request := range []string{"CONNECT other:443 HTTP/1.1\r\nHost: other:443\r\n\r\n", "TRACE / HTTP/1.1\r\nHost: g\r\n\r\n"} {
		c := h.dial(h.credential(t, "maps", "cr-1"))
		io.WriteString(c, request)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != http.StatusNotImplemented {
			t.Errorf("%q: %+v %v", request, resp, err)
		}
	}
	c := h.dial(h.credential(t, "maps", "cr-1"))
	io.WriteString(c, "OPTIONS * HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
	if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("OPTIONS *: %+v %v", resp, err)
	}
	if s := h.gate.Status(); s.Passed != 1 {
		t.Errorf("status: %+v", s)
	}
}
