package relay

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// closedPort is an address where nobody listens.
func closedPort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// Whom the relay takes for the gate, and whom not. Nobody else must ever see a
// byte of what the program sends. req: L5, L18
func TestWhoMayBeTheGate(t *testing.T) {
	ca, foreign := newCA(t, "ca"), newCA(t, "ca") // of the same name
	old := func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-48*time.Hour), time.Now().Add(-24*time.Hour)
	}
	early := func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(24*time.Hour), time.Now().Add(48*time.Hour)
	}
	forClients := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }
	at := func(d time.Duration) func([]*x509.Certificate) time.Time {
		return func([]*x509.Certificate) time.Time { return time.Now().Add(d) }
	}
	for _, c := range []struct {
		name     string
		cert     tls.Certificate
		judgedAt func([]*x509.Certificate) time.Time
		want     string // in the answer
	}{
		{"the gate", ca.server(t, gateName), nil, "credential cred-1 "},
		{"another name", ca.server(t, "other.example"), nil, "certificate is valid for other.example, not " + gateName},
		{"a foreign CA", foreign.server(t, gateName), nil, "certificate signed by unknown authority"},
		{"expired", ca.server(t, gateName, old), nil, "certificate has expired"},
		{"not yet valid", ca.server(t, gateName, early), nil, "wait, or set the clock"},
		{"a client's", ca.server(t, gateName, forClients), nil, "incompatible key usage"},
		{"a terminal's credential", ca.client(t, "maps", "cred-2"), nil, "503"},
		// The clock is judged by the agent, not by the system (DESIGN D12).
		{"expired by the judged time only", ca.server(t, gateName), at(100 * time.Hour), "certificate has expired"},
		{"the clock stands before all", ca.server(t, gateName, early), func(chain []*x509.Certificate) time.Time {
			return transport.LatestStart(chain)
		}, "credential cred-1 "},
		{"expired, whatever the clock", ca.server(t, gateName, old), at(0), "certificate has expired"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := gateTLS(t, ca, ca)
			cfg.Certificates = []tls.Certificate{c.cert}
			r := newRig(t, ca, Config{}, newHTTPGate(t, cfg).addr)
			d := *r.creds.dialable
			d.JudgedAt = c.judgedAt
			r.creds.set(&d, nil)
			got := r.ask(t)
			if !strings.Contains(got, c.want) {
				t.Errorf("got %q", got)
			}
			if admitted := strings.HasPrefix(got, "HTTP/1.1 200 "); admitted != strings.HasPrefix(c.want, "credential") {
				t.Errorf("admitted: %v", admitted)
			}
			if r.creds.released != 1 {
				t.Errorf("the credential was released %d times", r.creds.released)
			}
		})
	}
}

// A service server whose certificate comes from another CA than ours will do,
// if the credential says so. req: L5
func TestForeignServiceServer(t *testing.T) {
	ours, theirs := newCA(t, "ours"), newCA(t, "theirs")
	r := newRig(t, ours, Config{}, newHTTPGate(t, gateTLS(t, theirs, ours)).addr)
	if got := r.ask(t); !strings.Contains(got, "unknown authority") {
		t.Errorf("before: got %q", got)
	}
	d := *r.creds.dialable
	d.Roots = theirs.roots()
	r.creds.set(&d, nil)
	if got := r.ask(t); !strings.Contains(got, "credential cred-1 ") {
		t.Errorf("got %q", got)
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	ca := newCA(t, "ca")
	cfg := gateTLS(t, ca, ca)
	cfg.MinVersion, cfg.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	r := newRig(t, ca, Config{}, newHTTPGate(t, cfg).addr)
	if got := r.ask(t); !strings.HasPrefix(got, "HTTP/1.1 503 ") || !strings.Contains(got, "protocol version") {
		t.Errorf("got %q", got)
	}
}

func TestEndpointsInOrder(t *testing.T) {
	ca := newCA(t, "ca")
	good := newHTTPGate(t, gateTLS(t, ca, ca))
	wrong := gateTLS(t, ca, ca)
	wrong.Certificates = []tls.Certificate{ca.server(t, "other.example")}
	r := newRig(t, ca, Config{}, closedPort(t), newHTTPGate(t, wrong).addr, good.addr)
	if got := r.ask(t); !strings.Contains(got, "credential cred-1 ") {
		t.Errorf("got %q", got)
	}
}

func TestSilentEndpointIsPassedOver(t *testing.T) {
	t.Parallel() // it waits for dialWait
	ca := newCA(t, "ca")
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	r := newRig(t, ca, Config{}, silent.Addr().String(), newHTTPGate(t, gateTLS(t, ca, ca)).addr)
	start := time.Now()
	if got := r.ask(t); !strings.Contains(got, "credential cred-1 ") {
		t.Errorf("got %q", got)
	}
	if took := time.Since(start); took < dialWait || took > 3*dialWait {
		t.Errorf("it took %v", took)
	}
}

func TestIncompleteCredential(t *testing.T) {
	ca := newCA(t, "ca")
	r := newRig(t, ca, Config{}, newHTTPGate(t, gateTLS(t, ca, ca)).addr)
	for name, change := range map[string]func(*Dialable){
		"no anchors":   func(d *Dialable) { d.Roots = nil }, // must not mean: those of the system
		"no name":      func(d *Dialable) { d.ServerName = "" },
		"no endpoints": func(d *Dialable) { d.Endpoints = nil },
	} {
		d := *r.creds.dialable
		change(&d)
		creds := &testCredentials{dialable: &d}
		relay, err := New(Config{Service: "maps", Listen: "127.0.0.1:0"}, creds, r.relay.log)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := relay.dial(t.Context()); err == nil || !strings.Contains(err.Error(), "issued again") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What is taken away at run time is gone for the next connection; those that
// stand go on until they end.
func TestCredentialIsRemoved(t *testing.T) {
	ca := newCA(t, "ca")
	r := newRig(t, ca, Config{}, newGate(t, gateTLS(t, ca, ca), func(c *tls.Conn) { _, _ = io.Copy(c, c) }).addr)
	open := r.dial(t)
	echo := func() error {
		if _, err := open.Write([]byte("x")); err != nil {
			return err
		}
		_, err := io.ReadFull(open, make([]byte, 1))
		return err
	}
	if err := echo(); err != nil {
		t.Fatal(err)
	}
	r.creds.set(nil, errors.New("no credential for service maps: ask the operator to issue one"))
	for range 3 {
		got := r.ask(t)
		if !strings.HasPrefix(got, "HTTP/1.1 503 ") || !strings.HasSuffix(got, "kagimori relay, service maps: no credential for service maps: ask the operator to issue one\n") {
			t.Errorf("got %q", got)
		}
	}
	if err := echo(); err != nil {
		t.Errorf("the connection that stood: %v", err)
	}
	if n := strings.Count(r.log.String(), "relay refuses connections"); n != 1 {
		t.Errorf("logged %d times in a minute", n)
	}
	if s := r.relay.Status(); s.Refused != 3 || !strings.HasPrefix(s.LastWhy, "no credential") || s.LastTime.IsZero() {
		t.Errorf("status %+v", s)
	}
}

// A new credential is shown to the next gate, with no session from before.
func TestCredentialIsReplaced(t *testing.T) {
	ca := newCA(t, "ca")
	r := newRig(t, ca, Config{}, newHTTPGate(t, gateTLS(t, ca, ca)).addr)
	for _, id := range []transport.Name{"cred-1", "cred-7"} {
		d := *r.creds.dialable
		d.Certificate = ca.client(t, "maps", id)
		r.creds.set(&d, nil)
		if got := r.ask(t); !strings.Contains(got, "credential "+string(id)+" ") {
			t.Errorf("got %q", got)
		}
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	ca := newCA(t, "ca")
	r := newRig(t, ca, Config{}, closedPort(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.relay.dial(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
