package agent

import (
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/agent/relay"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

func parsed(t testing.TB, der [][]byte) []*x509.Certificate {
	t.Helper()
	chain, err := transport.ParseChain(der)
	if err != nil {
		t.Fatal(err)
	}
	return chain
}

// What the server has revoked is known at once, and after a restart without it.
// req: L10
func TestRevokedGatesAreKnown(t *testing.T) {
	c := newConversation(t)
	ca := c.server.ca
	gone, stays := parsed(t, ca.gate(newTestKey(t).Public(), "a.example")), parsed(t, ca.gate(newTestKey(t).Public(), "a.example"))
	if c.vault.revocations.check(gone) != nil || c.vault.revocations.status() != nil {
		t.Error("something is known before a list came")
	}
	c.push(ca.revoked(1))
	if err := c.vault.revocations.check(gone); err != nil {
		t.Error(err)
	}
	c.push(ca.revoked(2, gone[0].Raw))
	for range 2 {
		if err := c.vault.revocations.check(gone); !errors.Is(err, transport.ErrCertificate) || !strings.Contains(err.Error(), "revoked") {
			t.Errorf("the revoked one: %v", err)
		}
		if err := c.vault.revocations.check(stays); err != nil {
			t.Errorf("the other one: %v", err)
		}
		if s := c.vault.revocations.status(); s == nil || s.Number != 2 || s.Revoked != 1 || s.Problem != "" {
			t.Errorf("%+v", s)
		}
		c.restart()
	}
	c.noErrors()
	// The same serial by somebody else is somebody else's.
	other := newAuthority(t)
	twin := other.sign(&x509.Certificate{Subject: gone[0].Subject}, other.issuing, newTestKey(t).Public(), other.key)
	twin.SerialNumber = gone[0].SerialNumber
	if err := c.vault.revocations.check([]*x509.Certificate{twin}); err != nil {
		t.Error(err)
	}
}

// Lists that prove nothing change nothing, and status says so until a good one comes.
func TestRevocationListsThatAreRefused(t *testing.T) {
	c := newConversation(t)
	ca, foreign := c.server.ca, newAuthority(t)
	leaf := ca.gate(newTestKey(t).Public(), "a.example")
	c.push(ca.revoked(5, leaf[0]))
	c.noErrors()
	bent := ca.revoked(6)
	bent.CRL[len(bent.CRL)-5] ^= 1
	misnumbered := ca.revoked(6)
	misnumbered.Number = 7
	mixed := ca.revoked(6)
	mixed.CRL = foreign.revoked(6).CRL
	leafIssuer := ca.revoked(6)
	leafIssuer.Issuer = leaf[0]
	large := ca.revoked(6)
	large.CRL = append(large.CRL, make([]byte, transport.MaxPushedCRL)...)
	for name, m := range map[string]*transport.ServiceRevoked{
		"older": ca.revoked(4), "same number, empty": ca.revoked(5), "foreign": foreign.revoked(6), "signature": bent, "number": misnumbered,
		"another's list": mixed, "a leaf for issuer": leafIssuer, "too large": large, "no issuer": {Number: 6, CRL: bent.CRL}, "older, announced": {Number: 4, Issuer: ca.issuing.Raw},
	} {
		before := len(c.errs)
		c.push(m)
		if len(c.errs) != before+1 {
			t.Errorf("%s: taken", name)
		}
		if s := c.vault.revocations.status(); s.Number != 5 || s.Revoked != 1 || s.Problem == "" {
			t.Errorf("%s: %+v", name, s)
		}
		if c.vault.revocations.check(parsed(t, leaf)) == nil {
			t.Errorf("%s: the revoked one is good again", name)
		}
	}
	// Too large for a message: what is held holds on, and it is said, also later.
	c.errs = nil
	c.push(&transport.ServiceRevoked{Number: 8, URL: "http://kagimori.test:8880/crl/server", Issuer: ca.issuing.Raw})
	c.restart()
	if s := c.vault.revocations.status(); s.Number != 5 || s.Revoked != 1 || !strings.Contains(s.Problem, "too large") {
		t.Errorf("%+v", s)
	}
	c.push(ca.revoked(9))
	if s := c.vault.revocations.status(); s.Number != 9 || s.Revoked != 0 || s.Problem != "" {
		t.Errorf("%+v", s)
	}
	c.noErrors()
}

// A list whose issuer is the CA for credentials says nothing about gates: the
// usage in its certificate decides.
func TestRevocationListOfAnotherKind(t *testing.T) {
	c := newConversation(t)
	ca := c.server.ca
	ca.issuing = ca.sign(&x509.Certificate{Subject: ca.issuing.Subject, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, ca.root, ca.key.Public(), ca.rootKey)
	c.push(ca.revoked(1))
	if len(c.errs) != 1 || !errors.Is(c.errs[0], transport.ErrRevocationList) {
		t.Errorf("%v", c.errs)
	}
}

// The relay asks at each new connection, and live ones are cut. req: L10
func TestRelayLeavesARevokedGate(t *testing.T) {
	ca := newAuthority(t)
	a := running(t, Config{Relays: []relay.Config{{Service: "maps", Listen: "127.0.0.1:0"}}})
	mustProvision(t, a, ca.bundle(transport.BundleSpare, ""))
	address, leaf := gatewayLeaf(t, ca)
	r := ca.record("maps-1")
	r.Endpoints = []string{address}
	if err := a.Update(func(tx *store.Tx) error { return hold(tx, &holdingRecord{Record: r, Origin: OriginIssue}) }); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the relay listens", func() bool { return a.Status().Relays[0].Listening })
	local := a.Status().Relays[0].Listen
	if got := get(t, local); !strings.Contains(got, "200 OK") {
		t.Fatalf("before: %q", got)
	}
	live, err := net.Dial("tcp", local)
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	if _, err := io.WriteString(live, "GET / HTTP/1.1\r\n"); err != nil { // and the gate waits for more
		t.Fatal(err)
	}
	eventually(t, "it is under way", func() bool { return a.Status().Relays[0].Active == 1 })
	v, err := a.open()
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.root)
	if err := v.takeRevoked(ca.revoked(1, leaf), roots); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the live connection is gone", func() bool { return a.Status().Relays[0].Active == 0 })
	if got := get(t, local); !strings.Contains(got, "503") || !strings.Contains(got, "revoked") {
		t.Errorf("after: %q", got)
	}
	if s := a.Status(); s.Revoked == nil || s.Revoked.Revoked != 1 || s.Relays[0].Relayed != 1 {
		t.Errorf("%+v", s)
	}
}
