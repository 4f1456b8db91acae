package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// enrollRig is a terminal that has a bundle, and its server.
type enrollRig struct {
	server *server
	vault  *vault
	order  enrollOrder
}

func newEnrollRig(t testing.TB) *enrollRig {
	t.Helper()
	r := &enrollRig{server: newServer(t), vault: testVault(t, t.TempDir())}
	b := r.server.expect()
	self := terminalRecord{Root: b.Root}
	roots, err := self.roots()
	if err != nil {
		t.Fatal(err)
	}
	r.order = enrollOrder{
		terminal: b.Terminal, deployment: b.Deployment, device: r.vault.device, commonKey: b.CommonKey, roots: roots, identity: r.vault.identity,
		level: "file", exporter: bytes.Repeat([]byte{7}, transport.EnrollExporterSize), judge: r.vault.clock.Judge, random: rand.Reader,
	}
	return r
}

// run carries the payloads of one enrollment; change sees each reply.
func (r *enrollRig) run(order enrollOrder, change func(n int, reply []byte) []byte) (*enrolled, error) {
	peer := &enrolling{s: r.server, exporter: bytes.Repeat([]byte{7}, transport.EnrollExporterSize)}
	conversation, payload, err := order.hello()
	if err != nil {
		return nil, err
	}
	for n := 1; ; n++ {
		reply, err := peer.receive(payload)
		if err != nil {
			return nil, err
		}
		if change != nil {
			reply = change(n, reply)
		}
		var result *enrolled
		if payload, result, err = conversation.answer(context.Background(), reply); err != nil || result != nil {
			return result, err
		}
	}
}

// req: L3, L4
func TestEnroll(t *testing.T) {
	r := newEnrollRig(t)
	got, err := r.run(r.order, nil)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := transport.ParseChain(got.chain)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkIdentity(chain, r.order.roots, testDeployment, "nav-001", r.vault.identity.Public(), time.Now()); err != nil {
		t.Error(err)
	}
	if d := time.Since(got.serverTime); d.Abs() > time.Minute {
		t.Errorf("server time is off by %v", d)
	}
	if r.server.device != r.vault.device {
		t.Error("the server pinned another device")
	}
}

// The reply with the certificate is lost: the same terminal with the same key
// asks again and gets the same certificate. req: L4
func TestEnrollAgainAfterALostReply(t *testing.T) {
	r := newEnrollRig(t)
	r.server.lose = func(reply string) bool { return reply == "enroll.certificate" }
	if _, err := r.run(r.order, nil); err == nil {
		t.Fatal("the reply was not lost")
	}
	r.server.lose = nil
	first := r.server.identity
	got, err := r.run(r.order, nil)
	if err != nil || !slices.EqualFunc(got.chain, first, bytes.Equal) {
		t.Errorf("another certificate (%v)", err)
	}
}

// req: L3
func TestEnrollRefusesAFalseServer(t *testing.T) {
	for name, spoil := range map[string]func(*enrollRig, *enrollOrder){
		"without the common key": func(r *enrollRig, o *enrollOrder) { o.commonKey = make(transport.Sensitive, transport.CommonKeySize) },
		"over another channel":   func(r *enrollRig, o *enrollOrder) { o.exporter = make([]byte, transport.EnrollExporterSize) },
	} {
		r := newEnrollRig(t)
		o := r.order
		spoil(r, &o)
		sent := 0
		_, err := r.run(o, func(n int, reply []byte) []byte { sent = n; return reply })
		if !errors.Is(err, &control.Problem{Kind: control.Refused}) || control.AsProblem(err).Next == "" {
			t.Errorf("%s: %v", name, err)
		}
		if sent != 1 {
			t.Errorf("%s: went on after the challenge", name)
		}
		if r.server.device != (transport.DeviceID{}) {
			t.Errorf("%s: enrolled", name)
		}
	}
}

// A server that holds the key but answers with a certificate that is not this
// terminal's identity.
func TestEnrollRefusesAForeignCertificate(t *testing.T) {
	for name, chain := range map[string]func(*enrollRig) [][]byte{
		"another key": func(r *enrollRig) [][]byte {
			return r.server.ca.client(transport.URI{Deployment: testDeployment, Terminal: "nav-001"}, newTestKey(t).Public())
		},
		"another terminal": func(r *enrollRig) [][]byte {
			return r.server.ca.client(transport.URI{Deployment: testDeployment, Terminal: "nav-002"}, r.vault.identity.Public())
		},
		"a service's": func(r *enrollRig) [][]byte {
			return r.server.ca.client(transport.URI{Deployment: testDeployment, Service: "maps", Credential: "nav-001"}, r.vault.identity.Public())
		},
		"another root": func(r *enrollRig) [][]byte {
			return newAuthority(t).client(transport.URI{Deployment: testDeployment, Terminal: "nav-001"}, r.vault.identity.Public())
		},
		"none": func(*enrollRig) [][]byte { return [][]byte{} },
	} {
		r := newEnrollRig(t)
		r.server.device, r.server.identity = r.vault.device, chain(r)
		if got, err := r.run(r.order, nil); err == nil {
			t.Errorf("%s: accepted %v", name, got)
		}
	}
}

func TestEnrollSaysWhoseTurnItIs(t *testing.T) {
	r := newEnrollRig(t)
	r.server.device = transport.DeviceID{1} // pinned by another device
	_, err := r.run(r.order, nil)
	p := control.AsProblem(err)
	if p == nil || p.Kind != control.Refused || !bytes.Contains([]byte(p.Next), []byte("reenroll nav-001")) || !bytes.HasPrefix([]byte(p.Next), []byte("if this is the wrong bundle")) {
		t.Errorf("%v: %+v, want the verb that helps", err, p)
	}
	r = newEnrollRig(t)
	_, err = r.run(r.order, func(n int, _ []byte) []byte {
		b, _ := transport.Pack(rand.Reader, time.Now(), nil, &transport.Fault{Code: transport.FaultLater})
		return b
	})
	if p := control.AsProblem(err); p == nil || p.Kind != control.Unavailable {
		t.Errorf("%v, want try again", err)
	}
}

// Every byte of what the server says is proven: altered, the terminal stops.
func TestEnrollNoticesEveryAlteredByte(t *testing.T) {
	r := newEnrollRig(t)
	for message, name := range map[int]string{1: "challenge", 2: "certificate"} {
		size := 1
		for at := 0; at < size; at++ {
			_, err := r.run(r.order, func(n int, reply []byte) []byte {
				if n != message {
					return reply
				}
				env, err := transport.Unpack(reply, transport.MaxEnrollEnvelope)
				if err != nil {
					t.Fatal(err)
				}
				if message == 2 { // the chain; server time and remaining time are TLS's to protect
					size = bytes.LastIndex(env.Body, r.server.ca.issuing.Raw) + len(r.server.ca.issuing.Raw)
				} else {
					size = len(env.Body)
				}
				env.Body[at] ^= 1
				altered, err := transport.Marshal(env)
				if err != nil {
					return env.Body // not even CBOR
				}
				return altered
			})
			if err == nil {
				t.Fatalf("byte %d of the %s was altered, and the terminal went on", at, name)
			}
		}
		if size < 70 {
			t.Errorf("only %d bytes of the %s tried", size, name)
		}
	}
}

func FuzzEnrollAnswer(f *testing.F) {
	r := newEnrollRig(f)
	for _, body := range []transport.Body{&transport.EnrollChallenge{}, &transport.EnrollCertificate{}, &transport.EnrollCertificate{Code: &transport.WrappedCode{}}, &transport.EnrollAttest{}, &transport.EnrollActivate{},
		&transport.Fault{Code: transport.FaultDevice}, &transport.CommandReady{}} {
		seed, err := transport.Pack(rand.Reader, time.Now(), nil, body)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		for _, second := range [][]byte{nil, []byte("\xa0")} {
			c, _, err := r.order.hello()
			if err != nil {
				t.Fatal(err)
			}
			c.second = second
			reply, result, err := c.answer(t.Context(), payload)
			// The one thing that it says to a fault of its own: that it cannot prove a TPM.
			if err == nil || result != nil || reply != nil && !errors.Is(err, &control.Problem{Kind: control.Refused}) {
				t.Fatalf("went on: %x, %+v", reply, result)
			}
		}
	})
}
