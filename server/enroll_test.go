package server

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/server/broker"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// into decodes the pieces of a stream.
func into(v any) func(json.RawMessage) error {
	return func(raw json.RawMessage) error { return json.Unmarshal(raw, v) }
}

// known asks what the broker's door would say to a certificate.
func (r *rig) known(name transport.Name, chain [][]byte) (err error) {
	r.t.Helper()
	c, e := transport.ParseChain(chain)
	if e != nil {
		r.t.Fatal(e)
	}
	r.view(func(tx *store.Tx) error { err = known(tx, name, c[0]); return nil })
	return err
}

// req: L3, L4
func TestEnrollmentPinsTheDevice(t *testing.T) {
	r := newRig(t)
	b := r.addTerminal("nav-001")
	x := newBox(t)
	answer := want[transport.EnrollCertificate](t, r.enrollReply(b, x))
	chain, err := transport.ParseChain(answer.Chain)
	if err != nil {
		t.Fatal(err)
	}
	if name, err := transport.VerifyTerminal(chain, r.s.ca.Roots(), "demo", r.now()); err != nil || name != "nav-001" {
		t.Errorf("%s, %v", name, err)
	}
	if !x.key.PublicKey.Equal(chain[0].PublicKey) {
		t.Error("another key is certified")
	}
	year := int64(365 * 24 * time.Hour / time.Second)
	if answer.Remaining < year-60 || answer.Remaining > year || answer.Time < r.now().Unix()-60 {
		t.Errorf("remaining %d, time %d", answer.Remaining, answer.Time)
	}
	if err := r.known("nav-001", answer.Chain); err != nil {
		t.Error(err)
	}
	var d TerminalDetail
	r.call("TerminalShow", NameParams{Name: "nav-001"}, &d)
	if d.Terminal.State != store.TerminalEnrolled || d.Terminal.Device != x.id().String() || d.Terminal.Level != "file" || d.Serial == "" {
		t.Errorf("%+v", d)
	}

	// The reply was lost: the same key gets the same certificate.
	if again := r.enroll(b, x); string(again[0]) != string(answer.Chain[0]) {
		t.Error("another certificate for the same key")
	}
	// Another key is told so, and changes nothing.
	fault(t, "another device", r.enrollReply(b, newBox(t)), transport.FaultDevice)
	if err := r.known("nav-001", answer.Chain); err != nil {
		t.Error(err)
	}
	// Near its end the same key gets a new one.
	r.advance(300 * 24 * time.Hour)
	if again := r.enroll(b, x); string(again[0]) == string(answer.Chain[0]) {
		t.Error("not renewed")
	}
}

// req: L3
func TestReenrollmentReplacesTheDevice(t *testing.T) {
	r := newRig(t)
	b := r.addTerminal("nav-001")
	first, second := newBox(t), newBox(t)
	old := r.enroll(b, first)
	fresh, _ := r.reenroll("nav-001")
	if err := r.known("nav-001", old); !errors.Is(err, broker.ErrRefused) {
		t.Errorf("the earlier identity is taken: %v", err)
	}
	fault(t, "the earlier bundle", r.rawEnroll(b, second), transport.FaultRefused)
	chain := r.enroll(fresh, second)
	if err := r.known("nav-001", chain); err != nil {
		t.Error(err)
	}
	if err := r.known("nav-001", old); !errors.Is(err, broker.ErrRefused) {
		t.Errorf("the earlier identity is taken again: %v", err)
	}
	fault(t, "the earlier device", r.enrollReply(fresh, first), transport.FaultDevice)
}

// rawEnroll enrolls without checking that the server proves itself.
func (r *rig) rawEnroll(b *transport.Bundle, x *box) *transport.Envelope {
	r.t.Helper()
	k := r.stranger("x")
	h, c := k.hello(b.Terminal, x)
	return k.say(proof(r.t, b.CommonKey, "x", h, c, csr(r.t, x.key, transport.URI{})))
}

// spoiler makes of a good hello and challenge the third message that must fail.
type spoiler func(*transport.EnrollHello, *transport.EnrollChallenge) transport.Body

// spoilers are all about who has the key and lies about something else.
func spoilers(t *testing.T, key []byte, x *box) map[string]spoiler {
	request := csr(t, x.key, transport.URI{})
	return map[string]spoiler{
		"another TLS connection": func(h *transport.EnrollHello, c *transport.EnrollChallenge) transport.Body {
			return proof(t, key, "y", h, c, request)
		},
		"another hello": func(h *transport.EnrollHello, c *transport.EnrollChallenge) transport.Body {
			changed := *h
			changed.Nonce[0] ^= 1
			return proof(t, key, "x", &changed, c, request)
		},
		"another challenge": func(h *transport.EnrollHello, c *transport.EnrollChallenge) transport.Body {
			changed := *c
			changed.Nonce[0] ^= 1
			return proof(t, key, "x", h, &changed, request)
		},
		"another request": func(h *transport.EnrollHello, c *transport.EnrollChallenge) transport.Body {
			m := proof(t, key, "x", h, c, request)
			m.CSR = csr(t, x.key, transport.URI{})
			return m
		},
		"the server's own MAC": func(h *transport.EnrollHello, c *transport.EnrollChallenge) transport.Body {
			m := proof(t, key, "x", h, c, request)
			m.MAC = c.MAC
			return m
		},
		"hello twice": func(h *transport.EnrollHello, _ *transport.EnrollChallenge) transport.Body { return h },
		"poll instead": func(*transport.EnrollHello, *transport.EnrollChallenge) transport.Body {
			return &transport.CommandPoll{}
		},
	}
}

// Until the common key is proven, every refusal is the same bytes.
// req: L3
func TestStrangersLearnNothing(t *testing.T) {
	r := newRig(t)
	b := r.addTerminal("nav-001")
	r.addTerminal("nav-002")
	gone := r.addTerminal("nav-003")
	r.call("TerminalRemove", NameParams{Name: "nav-003"}, nil)
	r.enroll(r.addTerminal("nav-004"), newBox(t))
	x := newBox(t)
	request := csr(t, x.key, transport.URI{})
	attempt := func(name transport.Name, key []byte) *transport.Envelope {
		k := r.stranger("x")
		h, c := k.hello(name, x)
		return k.say(proof(t, key, "x", h, c, request))
	}
	zero := make([]byte, transport.CommonKeySize)
	refusals := map[string]*transport.Envelope{
		"unknown terminal":       attempt("nav-999", b.CommonKey),
		"not even a name":        attempt("Nav 999\n", b.CommonKey),
		"removed terminal":       attempt("nav-003", gone.CommonKey),
		"another terminal's key": attempt("nav-002", b.CommonKey),
		"enrolled, wrong key":    attempt("nav-004", zero),
		"zero key":               attempt("nav-001", zero),
		"request first":          r.stranger("x").say(&transport.EnrollRequest{CSR: request, Level: "file"}),
		"poll first":             r.stranger("x").say(&transport.CommandPoll{}),
		"claim as nobody":        r.stranger("x").say(&transport.CredentialClaim{Credential: "cr-1"}),
	}
	for name, spoil := range spoilers(t, b.CommonKey, x) {
		k := r.stranger("x")
		refusals[name] = k.say(spoil(k.hello("nav-001", x)))
	}
	var first []byte
	for name, e := range refusals {
		fault(t, name, e, transport.FaultRefused)
		if first == nil {
			first = e.Body
		}
		if string(e.Body) != string(first) {
			t.Errorf("%s: refused with other bytes: %x, %x", name, e.Body, first)
		}
	}
	if len(refusals) != 16 {
		t.Errorf("%d cases", len(refusals))
	}
	// None of this has spoilt the name for its owner.
	r.enroll(b, x)
}

func TestEnrollmentIsOneAttemptPerConnection(t *testing.T) {
	r := newRig(t)
	b := r.addTerminal("nav-001")
	x := newBox(t)
	k := r.stranger("x")
	h, c := k.hello("nav-001", x)
	wrong := proof(t, make([]byte, 32), "x", h, c, csr(t, x.key, transport.URI{}))
	fault(t, "wrong proof", k.say(wrong), transport.FaultRefused)
	right := proof(t, b.CommonKey, "x", h, c, csr(t, x.key, transport.URI{}))
	fault(t, "right proof, too late", k.say(right), transport.FaultRefused)
	fault(t, "hello again", k.say(h), transport.FaultRefused)
	if k.ses.enroll.key.Len() != 0 {
		t.Error("the common key is still in memory")
	}
}

// A proven terminal hears what is wrong.
func TestProvenRequestsThatAreRefused(t *testing.T) {
	r := newRig(t)
	b := r.addTerminal("nav-001")
	x := newBox(t)
	try := func(change func(*transport.EnrollHello, *transport.EnrollRequest)) *transport.Envelope {
		k := r.stranger("x")
		h := &transport.EnrollHello{Terminal: "nav-001", Device: x.id()}
		m := &transport.EnrollRequest{CSR: csr(t, x.key, transport.URI{Deployment: "demo", Terminal: "nav-001"}), Level: "file"}
		change(h, m)
		c := want[transport.EnrollChallenge](t, k.say(h))
		p := proof(t, b.CommonKey, "x", h, c, m.CSR)
		p.Level = m.Level
		hello, _ := transport.Marshal(h)
		challenge, _ := transport.Marshal(c)
		p.MAC, _ = transport.EnrollTerminalMAC(b.CommonKey, []byte("x"), hello, challenge, *p)
		return k.say(p)
	}
	type hr = func(*transport.EnrollHello, *transport.EnrollRequest)
	fault(t, "no request", try(hr(func(_ *transport.EnrollHello, m *transport.EnrollRequest) { m.CSR = []byte("rubbish") })), transport.FaultRequest)
	fault(t, "another key", try(hr(func(_ *transport.EnrollHello, m *transport.EnrollRequest) { m.CSR = csr(t, newKey(t), transport.URI{}) })), transport.FaultRequest)
	fault(t, "another name", try(hr(func(_ *transport.EnrollHello, m *transport.EnrollRequest) {
		m.CSR = csr(t, x.key, transport.URI{Deployment: "demo", Terminal: "nav-002"})
	})), transport.FaultRequest)
	fault(t, "server name", try(hr(func(_ *transport.EnrollHello, m *transport.EnrollRequest) {
		m.CSR = csr(t, x.key, transport.URI{}, "server.test")
	})), transport.FaultRequest)
	fault(t, "device of somebody else", try(hr(func(h *transport.EnrollHello, _ *transport.EnrollRequest) { rand.Read(h.Device[:]) })), transport.FaultRequest)
	fault(t, "no level", try(hr(func(_ *transport.EnrollHello, m *transport.EnrollRequest) { m.Level = "" })), transport.FaultMalformed)
	fault(t, "long level", try(hr(func(_ *transport.EnrollHello, m *transport.EnrollRequest) { m.Level = strings.Repeat("x", 33) })), transport.FaultMalformed)
	want[transport.EnrollCertificate](t, try(func(*transport.EnrollHello, *transport.EnrollRequest) {}))
}

func TestOneDeviceHasOneName(t *testing.T) {
	r := newRig(t)
	x, _ := r.terminal("nav-001")
	second := r.addTerminal("nav-002")
	fault(t, "a second name", r.enrollReply(second, x), transport.FaultRefused)
	r.call("TerminalRemove", NameParams{Name: "nav-001"}, nil)
	r.enroll(second, x) // the first name is free
}

// What counts is the state at the request, not at the hello.
func TestReenrollDuringAnEnrollment(t *testing.T) {
	r := newRig(t)
	b := r.addTerminal("nav-001")
	x := newBox(t)
	k := r.stranger("x")
	h, c := k.hello("nav-001", x)
	r.reenroll("nav-001")
	fault(t, "reenrolled meanwhile", k.say(proof(t, b.CommonKey, "x", h, c, csr(t, x.key, transport.URI{}))), transport.FaultRefused)

	b = r.addTerminal("nav-002")
	k = r.stranger("x")
	h, c = k.hello("nav-002", x)
	r.call("TerminalRemove", NameParams{Name: "nav-002"}, nil)
	fault(t, "removed meanwhile", k.say(proof(t, b.CommonKey, "x", h, c, csr(t, x.key, transport.URI{}))), transport.FaultRefused)
}

// Two devices with one bundle: exactly one is pinned, whoever is first.
func TestConcurrentEnrollmentsPinOneDevice(t *testing.T) {
	r := newRig(t)
	b := r.addTerminal("nav-001")
	const n = 8
	results := make(chan string, n)
	for range n {
		x := newBox(t)
		k := r.stranger("x")
		h, c := k.hello("nav-001", x)
		m := proof(t, b.CommonKey, "x", h, c, csr(t, x.key, transport.URI{}))
		go func() { results <- k.say(m).Type }()
	}
	var got []string
	for range n {
		got = append(got, <-results)
	}
	slices.Sort(got)
	if got[0] != "enroll.certificate" || got[1] != "fault" {
		t.Errorf("%v", got)
	}
}
