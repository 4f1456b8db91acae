package gate

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kagimori/kagimori/systemd"
	"github.com/kagimori/kagimori/transport"
)

// source stands in for the agent; it does what a test tells it to.
type source struct {
	mu          sync.Mutex
	place       Place
	unready     error
	certificate tls.Certificate
	linked      bool
	ahead       time.Duration // of the system clock
}

func (s *source) Place() (Place, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.place, s.unready
}

func (s *source) Certificate() (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.certificate
	return &c, nil
}

func (s *source) Time() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Add(s.ahead)
}

func (s *source) Linked() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.linked
}

func (s *source) set(change func(*source)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

// house is a deployment with a running gate for the service maps and something
// behind it.
type house struct {
	*deployment
	t       testing.TB
	source  *source
	gate    *Gate
	address string
	log     *logBuffer
	stop    func() // ends Run and waits
}

// echo answers with what it was told about the terminal, and the body.
func echo(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "%s %s ", r.Header.Get("Kagimori-Credential"), r.Header.Get("Kagimori-Subject"))
	io.Copy(w, r.Body)
}

// newHouse starts a gate in front of a service that echoes. It has its first
// list, and nothing is revoked.
func newHouse(t testing.TB) *house {
	t.Helper()
	service := httptest.NewServer(http.HandlerFunc(echo))
	t.Cleanup(service.Close)
	h := buildHouse(t, Config{Upstream: service.URL})
	h.push(1)
	return h
}

// buildHouse starts a gate that has no list yet.
func buildHouse(t testing.TB, cfg Config) *house {
	t.Helper()
	d := newDeployment(t, "demo")
	h := &house{deployment: d, t: t, log: &logBuffer{}}
	h.source = &source{place: Place{Deployment: d.name, Service: "maps", Roots: d.roots}, certificate: d.gateCertificate(t), linked: true}
	if cfg.CRLMaxAge == 0 {
		cfg.CRLMaxAge = 24 * time.Hour
	}
	if cfg.CRLFetch == 0 {
		cfg.CRLFetch = time.Hour
	}
	if cfg.CRLFile == "" {
		cfg.CRLFile = filepath.Join(t.TempDir(), "revoked")
	}
	log := newLog(h.log)
	g, err := New(cfg, h.source, systemd.NewWatchdog(systemd.NewNotifier(log), 0, log), log)
	if err != nil {
		t.Fatal(err)
	}
	h.gate = g
	h.start(listen(t))
	return h
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// start runs the gate until the test ends, and checks then that nothing is left.
func (h *house) start(l net.Listener) {
	h.address = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- h.gate.Run(ctx, l) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				h.t.Errorf("Run: %v", err)
			}
		case <-time.After(shutdownGrace + 5*time.Second):
			h.t.Errorf("Run does not end")
			return
		}
		r := h.gate.sessions
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.live)+len(r.pending)+len(r.by) > 0 {
			h.t.Errorf("connections are left: %d admitted, %d pending, %v", len(r.live), len(r.pending), r.by)
		}
		if strings.Contains(h.log.String(), "panic") {
			h.t.Errorf("a panic: %s", h.log)
		}
	})
	h.t.Cleanup(func() { h.stop() })
}

// push sends a list over the link, as the management server does.
func (h *house) push(number int64, revoked ...tls.Certificate) {
	h.t.Helper()
	if err := h.send(&transport.ServiceRevoked{Number: number, CRL: h.service.list(h.t, number, revoked...), Issuer: h.service.cert.Raw}); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) send(m *transport.ServiceRevoked) error {
	h.t.Helper()
	payload, err := transport.Pack(rand.Reader, time.Now(), nil, m)
	if err != nil {
		h.t.Fatal(err)
	}
	e, err := transport.Unpack(payload, len(payload))
	if err != nil {
		h.t.Fatal(err)
	}
	return h.gate.Receive(h.t.Context(), e)
}

// config is a terminal's: it trusts the deployment and shows the certificate,
// whatever the gate says that it wants.
func (h *house) config(certificate tls.Certificate) *tls.Config {
	return &tls.Config{
		RootCAs: h.roots, ServerName: "localhost", MinVersion: tls.VersionTLS12,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil },
	}
}

func (h *house) client(certificate tls.Certificate) *http.Client {
	h.t.Helper()
	transport := &http.Transport{TLSClientConfig: h.config(certificate)}
	h.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 10 * time.Second}
}

// get asks once on a connection of its own: status and body, or the error.
func (h *house) get(certificate tls.Certificate) (int, string, error) {
	h.t.Helper()
	client := h.client(certificate)
	defer client.CloseIdleConnections()
	return fetch(client, "https://"+h.address+"/")
}

func fetch(client *http.Client, url string) (int, string, error) {
	resp, err := client.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data), err
}

// dial opens a TLS connection on which a test speaks HTTP by hand.
func (h *house) dial(certificate tls.Certificate) *tls.Conn {
	h.t.Helper()
	c, err := tls.Dial("tcp", h.address, h.config(certificate))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// knock does a handshake, sends a request and gives the error that the terminal sees.
func (h *house) knock(config *tls.Config) error {
	h.t.Helper()
	c, err := tls.Dial("tcp", h.address, config)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: gate\r\n\r\n"); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 1))
	return err
}

// admits fails the test unless a request with the certificate reaches the service.
func (h *house) admits(certificate tls.Certificate) {
	h.t.Helper()
	if status, body, err := h.get(certificate); err != nil || status != http.StatusOK {
		h.t.Fatalf("not admitted: %d %q %v\n%s", status, body, err, h.log)
	}
}

// logs waits until the log says all of it.
func (h *house) logs(says ...string) {
	h.t.Helper()
	eventually(h.t, fmt.Sprintf("the log says %q", says), 5*time.Second, func() bool {
		log := h.log.String()
		return !slices.ContainsFunc(says, func(s string) bool { return !strings.Contains(log, s) })
	})
}

// eventually polls a real condition.
func eventually(t testing.TB, what string, within time.Duration, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !holds(); {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", within, what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// logBuffer is where a gate logs to in a test.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// reset empties it and gives what was there.
func (b *logBuffer) reset() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.buf.Reset()
	return b.buf.String()
}

func newLog(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

var errUnready = errors.New("not provisioned")

// sent is the chain that a client sends: leaf first.
func sent(leaf tls.Certificate, chain ...*x509.Certificate) tls.Certificate {
	leaf.Certificate = leaf.Certificate[:1:1]
	for _, c := range chain {
		leaf.Certificate = append(leaf.Certificate, c.Raw)
	}
	return leaf
}
