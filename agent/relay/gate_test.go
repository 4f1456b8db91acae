package relay

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// A testCA issues what the tests need.
type testCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(t testing.TB, name string) *testCA {
	t.Helper()
	ca := &testCA{}
	ca.cert, ca.key = ca.issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-1000 * time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
	})
	return ca
}

func (ca *testCA) issue(t testing.TB, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	parent, signer := template, key
	if ca.cert != nil {
		parent, signer = ca.cert, ca.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func (ca *testCA) roots() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(ca.cert)
	return p
}

func (ca *testCA) server(t testing.TB, name string, change ...func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{DNSNames: []string{name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, c := range change {
		c(template)
	}
	cert, key := ca.issue(t, template)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

func (ca *testCA) client(t testing.TB, service, id transport.Name) tls.Certificate {
	t.Helper()
	uri := transport.URI{Deployment: "acme", Service: service, Credential: id}.URL()
	cert, key := ca.issue(t, &x509.Certificate{URIs: []*url.URL{uri}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

// A testGate admits credentials for the service "maps" of deployment "acme" and
// hands each connection to serve.
type testGate struct {
	addr  string
	close func() // returns when all it started has ended
}

const gateName = "gate.example"

// gateTLS is what a gate demands of those who come: a certificate that it
// verifies after the handshake is over for them.
func gateTLS(t testing.TB, server, clients *testCA) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}, ClientAuth: tls.RequireAnyClientCert,
		Certificates: []tls.Certificate{server.server(t, gateName)},
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := transport.VerifyCredential(cs.PeerCertificates, clients.roots(), "acme", "maps", time.Now())
			return err
		},
	}
}

func newGate(t testing.TB, cfg *tls.Config, serve func(*tls.Conn)) *testGate {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			raw, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[raw] = true
			mu.Unlock()
			wg.Go(func() {
				defer raw.Close()
				c := tls.Server(raw, cfg)
				if c.Handshake() == nil {
					serve(c)
					c.Close()
				}
			})
		}
	})
	g := &testGate{addr: ln.Addr().String(), close: sync.OnceFunc(func() {
		ln.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})}
	t.Cleanup(g.close)
	return g
}

// newHTTPGate tells every request what the gate knows of it.
func newHTTPGate(t testing.TB, cfg *tls.Config) *testGate {
	t.Helper()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		u, err := transport.ParseURI(q.TLS.PeerCertificates[0].URIs[0].String())
		if err != nil {
			t.Error(err)
		}
		n, _ := io.Copy(io.Discard, q.Body)
		fmt.Fprintf(w, "credential %s host %s path %s body %d proto %s/%s\n", u.Credential, q.Host, q.URL.Path, n, q.Proto, q.TLS.NegotiatedProtocol)
	})}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ln) })
	g := &testGate{addr: ln.Addr().String(), close: sync.OnceFunc(func() { srv.Close(); wg.Wait() })}
	t.Cleanup(g.close)
	return g
}

// testCredentials is a store of one credential, which can be taken away.
type testCredentials struct {
	mu       sync.Mutex
	dialable *Dialable
	err      error
	released int
	hold     chan struct{} // if set, Client waits until it is closed
}

func (c *testCredentials) Client(ctx context.Context, service transport.Name) (*Dialable, error) {
	c.mu.Lock()
	hold := c.hold
	c.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if service != "maps" {
		return nil, fmt.Errorf("asked for service %s", service)
	}
	if c.err != nil {
		return nil, c.err
	}
	d := *c.dialable
	d.Release = func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.released++
	}
	return &d, nil
}

func (c *testCredentials) set(d *Dialable, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dialable, c.err = d, err
}

// A rig is a relay at work with all around it.
type rig struct {
	ca    *testCA
	creds *testCredentials
	relay *Relay
	addr  string
	log   *syncBuffer
	stop  func() error // ends the relay and waits for it
}

// newRig starts a relay towards addr. The credential names "cred-1".
func newRig(t testing.TB, ca *testCA, cfg Config, endpoints ...string) *rig {
	t.Helper()
	r := &rig{ca: ca, log: &syncBuffer{}, creds: &testCredentials{dialable: &Dialable{Credential: "cr-7q3mz5xk2a",
		Certificate: ca.client(t, "maps", "cred-1"), ServerName: gateName, Endpoints: endpoints, Roots: ca.roots(),
	}}}
	cfg.Service = "maps"
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	var err error
	r.relay, err = New(cfg, r.creds, slog.New(slog.NewTextHandler(r.log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ln, err := r.relay.Listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.relay.Serve(ctx, ln) }()
	r.stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(10 * time.Second):
			return errors.New("the relay does not end")
		}
	})
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		if s := r.relay.Status(); s.Active != 0 || s.Listen != "" {
			t.Errorf("after the end: %+v", s)
		}
	})
	return r
}

// dial connects as a local program does.
func (r *rig) dial(t testing.TB) net.Conn {
	t.Helper()
	network := "tcp"
	if r.relay.network == "unix" {
		network = "unix"
	}
	c, err := net.Dial(network, r.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

// ask sends one request and gives the whole answer.
func (r *rig) ask(t testing.TB) string {
	t.Helper()
	c := r.dial(t)
	defer c.Close()
	if _, err := io.WriteString(c, "GET /tile HTTP/1.1\r\nHost: tiles.example\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil {
		t.Errorf("after %q: %v", b, err)
	}
	return string(b)
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// until waits for a condition that other goroutines bring about.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(10 * time.Second); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}
