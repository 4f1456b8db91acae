package agent

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/kagimori/kagimori/agent/relay"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

// gateway stands for a gate: it answers with the credential that came in.
func gateway(t *testing.T, ca *authority) (address string) {
	t.Helper()
	address, _ = gatewayLeaf(t, ca)
	return address
}

// gatewayLeaf also gives its certificate.
func gatewayLeaf(t *testing.T, ca *authority) (address string, leaf []byte) {
	t.Helper()
	key := newTestKey(t)
	chain := ca.gate(key.Public(), "maps.example")
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAnyClientCert, NextProtos: []string{"http/1.1"},
		Certificates: []tls.Certificate{{Certificate: chain, PrivateKey: key}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
					return
				}
				name := c.(*tls.Conn).ConnectionState().PeerCertificates[0].URIs[0]
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(name.String()), name)
			})
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().String(), chain[0]
}

func get(t *testing.T, address string) string {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: maps\r\nConnection: close\r\n\r\n")
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Error(err)
	}
	return string(answer)
}

// req: L5 (the terminal's side: an unchanged program, with the credential in force)
func TestRelayUsesTheCredentialInForce(t *testing.T) {
	ca := newAuthority(t)
	a := running(t, Config{Relays: []relay.Config{{Service: "maps", Listen: "127.0.0.1:0"}}})
	mustProvision(t, a, ca.bundle(transport.BundleSpare, ""))
	eventually(t, "the relay listens", func() bool { return a.Status().Relays[0].Listening })
	address := a.Status().Relays[0].Listen
	if got := get(t, address); !strings.Contains(got, "503") || !strings.Contains(got, "holds none") {
		t.Errorf("without a credential the program is told %q", got)
	}
	for _, id := range []transport.Name{"maps-1", "maps-2"} {
		r := ca.record(id)
		r.Endpoints = []string{gateway(t, ca)}
		// the second one lasts longer
		if id == "maps-2" {
			r.Expires++
		}
		if err := a.Update(func(tx *store.Tx) error { return hold(tx, &holdingRecord{Record: r, Origin: OriginIssue}) }); err != nil {
			t.Fatal(err)
		}
		if got := get(t, address); !strings.HasSuffix(got, "kagimori://demo/service/maps/credential/"+string(id)) {
			t.Errorf("with %s the gate sees %q", id, got)
		}
	}
	if s := a.Status().Relays[0]; s.Credential != "maps-2" || s.Relayed != 2 || s.Refused != 1 {
		t.Errorf("status %+v", s)
	}
}

// A port that something else has: the rest of the agent lives, and it is said.
func TestRelayPortInUse(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a := running(t, Config{Relays: []relay.Config{{Service: "maps", Listen: ln.Addr().String()}}})
	eventually(t, "it is said", func() bool { return strings.Contains(a.Status().Relays[0].Error, "in use") })
	if s := a.Status(); s.Relays[0].Listening || !s.Keys.Open {
		t.Errorf("%+v", s)
	}
	ln.Close()
	eventually(t, "the port is free and taken", func() bool { return a.Status().Relays[0].Listening })
}

func TestRelayThatIsNone(t *testing.T) {
	for _, c := range []relay.Config{{Service: "Maps!", Listen: "127.0.0.1:0"}, {Service: "maps", Listen: "nowhere"}, {Service: "maps", Listen: "0.0.0.0:1"}} {
		if _, err := New(Config{Relays: []relay.Config{c}}, nil, nil, nil); err == nil {
			t.Errorf("%+v: taken", c)
		}
	}
}
