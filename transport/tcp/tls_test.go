package tcp

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/url"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// Both ends see the same exporter and the same two keys.
func TestChannelIsTheSameOnBothEnds(t *testing.T) {
	f := newFleet(t)
	for name, tt := range map[string]struct {
		source, target *tls.Certificate
		names          [2]transport.Name // as the Source and the Target see each other
	}{
		"no identities":   {nil, nil, [2]transport.Name{}},
		"source only":     {f.identity(t, "nav-001", nil), nil, [2]transport.Name{"", "nav-001"}},
		"target only":     {nil, f.identity(t, "nav-002", nil), [2]transport.Name{"nav-002", ""}},
		"both identities": {f.identity(t, "nav-001", nil), f.identity(t, "nav-002", nil), [2]transport.Name{"nav-002", "nav-001"}},
	} {
		got := make(chan transport.KeycopyChannel, 1)
		address := serve(t, f.config(t, tt.source), func(_ context.Context, c *Conn) error {
			got <- c.Channel()
			return nil
		})
		c, err := Dial(t.Context(), address, f.config(t, tt.target))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		s, g := <-got, c.Channel()
		c.Close()
		if s.Exporter != g.Exporter || s.Exporter == ([64]byte{}) || !bytes.Equal(s.SourceKey, g.SourceKey) || !bytes.Equal(s.TargetKey, g.TargetKey) || len(s.SourceKey) == 0 {
			t.Errorf("%s: the ends disagree", name)
		}
		if (len(s.TargetKey) == 0) != (tt.target == nil) || [2]transport.Name{s.Peer, g.Peer} != tt.names || s.Remote == "" || g.Remote != address {
			t.Errorf("%s: source %+v, target %+v", name, s, g)
		}
	}
}

// A certificate without a name says nothing, also from a Target.
func TestEphemeralTargetIsNobody(t *testing.T) {
	f := newFleet(t)
	cert, err := ephemeral()
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan transport.KeycopyChannel, 1)
	address := serve(t, f.config(t, nil), func(_ context.Context, c *Conn) error { got <- c.Channel(); return nil })
	c, err := Dial(t.Context(), address, f.config(t, cert))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if s := <-got; s.Peer != "" || len(s.TargetKey) == 0 {
		t.Errorf("%+v", s)
	}
}

// An identity that does not hold ends the run: it never counts as none.
func TestBadIdentityIsRefused(t *testing.T) {
	f, other := newFleet(t), newFleet(t)
	bad := map[string]*tls.Certificate{
		"another root": other.identity(t, "nav-002", nil),
		"expired": f.identity(t, "nav-002", func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		}),
		"server too":     f.identity(t, "nav-002", func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) }),
		"a credential":   f.identity(t, "nav-002", func(c *x509.Certificate) { c.URIs[0].Path = "/service/maps/credential/cr-1" }),
		"deployment":     f.identity(t, "nav-002", func(c *x509.Certificate) { c.URIs[0].Host = "other" }),
		"no name at all": f.identity(t, "nav-002", func(c *x509.Certificate) { c.URIs = nil }),
	}
	self := newKey(t)
	template := &x509.Certificate{URIs: []*url.URL{{Scheme: "kagimori", Host: "demo", Path: "/terminal/nav-002"}}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	bad["self-signed with a name"] = &tls.Certificate{Certificate: [][]byte{issue(t, template, template, self.Public(), self).Raw}, PrivateKey: self}
	good := f.identity(t, "nav-001", nil)
	for name, cert := range bad {
		served := make(chan struct{}, 1)
		handle := func(_ context.Context, c *Conn) error { served <- struct{}{}; return nil }
		c, err := Dial(t.Context(), serve(t, f.config(t, good), handle), f.config(t, cert))
		if err == nil { // TLS 1.3: the client hears of it with its first read
			if _, err = c.ReadFrame(100, transport.KeycopyMessageTimeout); err == nil {
				t.Errorf("%s: the Source served the Target", name)
			}
			c.Close()
		}
		if c, err := Dial(t.Context(), serve(t, f.config(t, cert), handle), f.config(t, good)); err == nil {
			t.Errorf("%s: the Target took the Source", name)
			c.Close()
		}
		select {
		case <-served:
			t.Errorf("%s: served", name)
		default:
		}
	}
	blind := f.config(t, nil)
	blind.Verify = nil
	if c, err := Dial(t.Context(), serve(t, f.config(t, good), echo), blind); err == nil {
		t.Error("an identity was taken on trust")
		c.Close()
	}
}

// Everybody who is not a current peer is refused in TLS, both ways round: no
// group without ML-KEM, no older TLS, no other protocol.
func TestOtherTLSIsRefused(t *testing.T) {
	f := newFleet(t)
	cert, err := ephemeral()
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*tls.Config){
		"X25519 only": func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519} },
		"P-256 only":  func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.CurveP256} },
		"TLS 1.2":     func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 },
		"no ALPN":     func(c *tls.Config) { c.NextProtos = nil },
		"another mode": func(c *tls.Config) {
			c.NextProtos = []string{transport.KeycopyDirect.ALPN(), transport.KeycopyKEK.ALPN()}
		},
		"good": func(*tls.Config) {},
	} {
		var seen findings
		config := f.config(t, cert).tls(true, &seen)
		config.VerifyConnection = nil
		change(config)
		served := make(chan struct{}, 1)
		address := serve(t, f.config(t, nil), func(_ context.Context, c *Conn) error { served <- struct{}{}; return nil })
		c, err := tls.Dial("tcp", address, config)
		if err == nil {
			_, err = c.Read(make([]byte, 1)) // an alert, or the end after being served
			c.Close()
		}
		if good := name == "good"; good != (len(served) == 1) {
			t.Errorf("%s as client: %v", name, err)
		}
		ln, err := tls.Listen("tcp", "127.0.0.1:0", config)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			if c, err := ln.Accept(); err == nil {
				c.(*tls.Conn).Handshake()
				c.Close()
			}
		}()
		ours, err := Dial(t.Context(), ln.Addr().String(), f.config(t, nil))
		if (name == "good") != (err == nil) {
			t.Errorf("%s as server: %v", name, err)
		}
		if err == nil {
			ours.Close()
		}
		<-done
		ln.Close()
	}
}

// The same with a foreign implementation, which knows no ML-KEM or is told to
// leave it.
func TestOpenSSLWithoutMLKEMIsRefused(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Fatal("openssl is missing: run scripts/setup.sh")
	}
	f := newFleet(t)
	served := make(chan struct{}, 1)
	address := serve(t, f.config(t, nil), func(_ context.Context, c *Conn) error { served <- struct{}{}; return nil })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "openssl", "s_client", "-connect", address, "-tls1_3", "-groups", "X25519:P-256", "-alpn", transport.KeycopyPAKE.ALPN())
	cmd.Stdin = strings.NewReader("")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "handshake failure") || len(served) > 0 {
		t.Errorf("s_client: %v\n%s", err, out)
	}

	dir := t.TempDir()
	if out, err := exec.CommandContext(ctx, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/",
		"-keyout", dir+"/key", "-out", dir+"/crt", "-days", "1").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	port := freePort(t)
	server := exec.CommandContext(ctx, "openssl", "s_server", "-accept", port, "-key", dir+"/key", "-cert", dir+"/crt", "-tls1_3", "-groups", "X25519:P-256",
		"-alpn", transport.KeycopyPAKE.ALPN())
	stdin, err := server.StdinPipe() // it ends when its input does
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer server.Wait()
	defer server.Process.Kill()
	for {
		c, err := Dial(ctx, port, f.config(t, nil))
		if err == nil {
			c.Close()
			t.Fatal("a server without ML-KEM will do")
		}
		if errors.Is(err, syscall.ECONNREFUSED) && ctx.Err() == nil {
			continue // it does not listen yet
		}
		if !strings.Contains(err.Error(), "handshake failure") {
			t.Error(err)
		}
		return
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// No ticket is given, so no session is resumed past a certificate check.
func TestSessionsAreNotResumed(t *testing.T) {
	f := newFleet(t)
	address := serve(t, f.config(t, nil), echo)
	cache := tls.NewLRUClientSessionCache(1)
	for range 2 {
		var seen findings
		config := f.config(t, nil).tls(false, &seen)
		config.ClientSessionCache, config.ServerName, config.SessionTicketsDisabled = cache, "source", false
		c, err := tls.Dial("tcp", address, config)
		if err != nil {
			t.Fatal(err)
		}
		conn := newConn(t.Context(), c, &wire{}, transport.KeycopyChannel{}, time.Now().Add(time.Minute))
		if err := conn.WriteFrame(transport.KeycopyFrame{Type: 1, Body: []byte{1}}, true); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.ReadFrame(1, time.Second); err != nil {
			t.Fatal(err)
		}
		if c.ConnectionState().DidResume {
			t.Error("resumed")
		}
		conn.Close()
	}
	if s, ok := cache.Get("source"); ok {
		t.Errorf("a ticket was given: %v", s)
	}
}

// Whoever has read a QR code gets that Source or none, with an identity or not.
func TestSourceKeyIsPinned(t *testing.T) {
	f := newFleet(t)
	one, err := ephemeral()
	if err != nil {
		t.Fatal(err)
	}
	other, err := ephemeral()
	if err != nil {
		t.Fatal(err)
	}
	named, err := parsed(f.identity(t, "nav-001", nil))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name        string
		shown, want *tls.Certificate
		good        bool
	}{{"as read", one, one, true}, {"an identity as read", named, named, true}, {"another", other, one, false}, {"an identity where another key was read", named, one, false}} {
		hash := KeyHash(tt.want.Leaf)
		cfg := f.config(t, nil)
		cfg.SourceKey = &hash
		c, err := Dial(t.Context(), serve(t, f.config(t, tt.shown), echo), cfg)
		if err == nil {
			if ch := c.Channel(); (ch.Peer == "") == (tt.shown == named) {
				t.Errorf("%s: peer %q", tt.name, ch.Peer)
			}
			c.Close()
		}
		if (err == nil) != tt.good || !tt.good && !errors.Is(err, ErrOtherKey) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}
