package relay

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
)

// A gate whose certificate is revoked gets no byte of a program's, and the
// program is told why. req: L10
func TestRevokedGateIsRefused(t *testing.T) {
	ca := newCA(t, "ca")
	gate := newHTTPGate(t, gateTLS(t, ca, ca))
	r := newRig(t, ca, Config{}, gate.addr)
	if got := r.ask(t); !strings.Contains(got, "credential cred-1 ") {
		t.Fatalf("before: %q", got)
	}
	d := *r.creds.dialable
	d.Revoked = func(chain []*x509.Certificate) error {
		if chain[0].DNSNames[0] != gateName {
			t.Errorf("asked about %v", chain[0].DNSNames)
		}
		return errors.New("it is revoked, ask the administrator")
	}
	r.creds.set(&d, nil)
	if got := r.ask(t); !strings.HasPrefix(got, "HTTP/1.1 503 ") || !strings.Contains(got, "it is revoked") {
		t.Errorf("got %q", got)
	}
	if s := r.relay.Status(); s.Relayed != 1 || s.Refused != 1 || !strings.Contains(s.LastWhy, "revoked") {
		t.Errorf("%+v", s)
	}
}

// A connection that lives when its gate is revoked is cut; others stay. req: L10
func TestRevokedGateIsCutOff(t *testing.T) {
	ca := newCA(t, "ca")
	echo := func(c *tls.Conn) { _, _ = io.Copy(c, c) }
	r := newRig(t, ca, Config{}, newGate(t, gateTLS(t, ca, ca), echo).addr)
	var revoked atomic.Bool
	d := *r.creds.dialable
	d.Revoked = func([]*x509.Certificate) error {
		if revoked.Load() {
			return errors.New("it is revoked")
		}
		return nil
	}
	r.creds.set(&d, nil)
	b := make([]byte, 4)
	c := r.dial(t)
	if _, err := io.WriteString(c, "ping"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	r.relay.Recheck()
	if _, err := io.WriteString(c, "pong"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "pong" {
		t.Errorf("nothing was revoked: %q, %v", b, err)
	}
	revoked.Store(true)
	r.relay.Recheck()
	if _, err := io.ReadFull(c, b); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the connection ended with %v, want a reset", err)
	}
	until(t, "the connection is gone", func() bool { s := r.relay.Status(); return s.Active == 0 && s.Refused == 1 })
	if s := r.relay.Status(); s.LastWhy != "it is revoked" {
		t.Errorf("%+v", s)
	}
}

// What is revoked between handshake and passage is not missed: nothing of the
// program's goes out.
func TestRevokedRightAfterTheHandshake(t *testing.T) {
	ca := newCA(t, "ca")
	r := newRig(t, ca, Config{}, newHTTPGate(t, gateTLS(t, ca, ca)).addr)
	var asked atomic.Int32
	d := *r.creds.dialable
	d.Revoked = func([]*x509.Certificate) error {
		if asked.Add(1) > 1 {
			return errors.New("it is revoked")
		}
		return nil
	}
	r.creds.set(&d, nil)
	if got := r.ask(t); !strings.HasPrefix(got, "HTTP/1.1 503 ") || !strings.Contains(got, "it is revoked") {
		t.Errorf("got %q", got)
	}
}
