package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"testing"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// talk is one connection to the conversations, without the wire.
type talk struct {
	r   *rig
	ses *session
	out outcome // of the last message
}

// stranger is a connection without certificate.
func (r *rig) stranger(exporter string) *talk {
	return &talk{r: r, ses: &session{enroll: &enrollment{exporter: []byte(exporter)}}}
}

// as is a connection of a terminal with its identity.
func (r *rig) as(terminal transport.Name, b *box) *talk {
	r.t.Helper()
	ses, err := newSession(rand.Reader, terminal, b.id())
	if err != nil {
		r.t.Fatal(err)
	}
	return &talk{r: r, ses: ses}
}

// say sends a message and returns the reply's envelope.
func (k *talk) say(m transport.Body) *transport.Envelope {
	k.r.t.Helper()
	payload, err := transport.Pack(rand.Reader, time.Now(), nil, m)
	if err != nil {
		k.r.t.Fatal(err)
	}
	return k.raw(payload)
}

func (k *talk) raw(payload []byte) *transport.Envelope {
	k.r.t.Helper()
	e, out, err := k.r.s.answer(context.Background(), k.ses, payload)
	if err != nil {
		k.r.t.Fatal(err)
	}
	k.r.s.carry(context.Background(), out)
	k.out = out
	if out.reply == nil {
		return nil
	}
	packed, err := transport.Pack(rand.Reader, time.Now(), e, out.reply)
	if err != nil {
		k.r.t.Fatal(err)
	}
	reply, err := transport.Unpack(packed, transport.MaxEnvelope)
	if err != nil {
		k.r.t.Fatal(err)
	}
	return reply
}

// want opens a reply of one type.
func want[T any, P interface {
	*T
	transport.Body
}](t testing.TB, e *transport.Envelope) P {
	t.Helper()
	if e == nil {
		t.Fatal("no reply")
	}
	m, err := transport.Open[T, P](e)
	if err != nil {
		if f, e := transport.Open[transport.Fault](e); e == nil {
			t.Fatalf("refused: %v", f)
		}
		t.Fatal(err)
	}
	return m
}

// fault checks that a reply refuses with a code.
func fault(t testing.TB, what string, e *transport.Envelope, code transport.FaultCode) {
	t.Helper()
	if e == nil {
		t.Fatalf("%s: no reply", what)
	}
	f, err := transport.Open[transport.Fault](e)
	if err != nil {
		t.Errorf("%s: not refused: %s", what, e.Type)
		return
	}
	if f.Code != code {
		t.Errorf("%s: %v, want code %d", what, f, code)
	}
}

// hello makes the first two messages of an enrollment.
func (k *talk) hello(name transport.Name, b *box) (*transport.EnrollHello, *transport.EnrollChallenge) {
	k.r.t.Helper()
	h := &transport.EnrollHello{Terminal: name, Device: b.id()}
	rand.Read(h.Nonce[:])
	return h, want[transport.EnrollChallenge](k.r.t, k.say(h))
}

// proof makes the third one.
func proof(t testing.TB, commonKey []byte, exporter string, h *transport.EnrollHello, c *transport.EnrollChallenge, request []byte) *transport.EnrollRequest {
	t.Helper()
	hello, err := transport.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	challenge, err := transport.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	m := &transport.EnrollRequest{CSR: request, Level: "file"}
	if m.MAC, err = transport.EnrollTerminalMAC(commonKey, []byte(exporter), hello, challenge, *m); err != nil {
		t.Fatal(err)
	}
	return m
}

// enrollReply runs the whole of it as a terminal does, and returns the answer.
func (r *rig) enrollReply(b *transport.Bundle, x *box) *transport.Envelope {
	r.t.Helper()
	k := r.stranger("x")
	h, c := k.hello(b.Terminal, x)
	raw, err := transport.Marshal(h)
	if err != nil {
		r.t.Fatal(err)
	}
	if mac, err := transport.EnrollServerMAC(b.CommonKey, []byte("x"), raw, *c); err != nil || mac != c.MAC {
		r.t.Fatalf("the server does not prove the common key: %v", err)
	}
	uri := transport.URI{Deployment: b.Deployment, Terminal: b.Terminal}
	return k.say(proof(r.t, b.CommonKey, "x", h, c, csr(r.t, x.key, uri)))
}

// enroll enrolls and returns the chain.
func (r *rig) enroll(b *transport.Bundle, x *box) [][]byte {
	r.t.Helper()
	return want[transport.EnrollCertificate](r.t, r.enrollReply(b, x)).Chain
}

// terminal adds and enrolls one.
func (r *rig) terminal(name string) (*box, [][]byte) {
	r.t.Helper()
	x := newBox(r.t)
	return x, r.enroll(r.addTerminal(name), x)
}

// held is a credential with its private key.
type held struct {
	id    transport.Name
	key   *ecdsa.PrivateKey
	chain []*x509.Certificate
	order *transport.CredentialOrder
	got   *transport.CredentialCertificate
}

// next polls and opens the order that must be there.
func (k *talk) next() (*transport.Command, *transport.CredentialOrder) {
	k.r.t.Helper()
	n := want[transport.CommandNext](k.r.t, k.say(&transport.CommandPoll{}))
	if n.Command == nil {
		k.r.t.Fatal("no command")
	}
	o := new(transport.CredentialOrder)
	if err := transport.Unmarshal(n.Command.Body, o, transport.MaxEnvelope); err != nil {
		k.r.t.Fatal(err)
	}
	return n.Command, o
}

// obey does what the next command orders, as an agent does.
func (k *talk) obey() held {
	k.r.t.Helper()
	c, o := k.next()
	h := held{id: o.Credential, key: newKey(k.r.t), order: o}
	uri := transport.URI{Deployment: "demo", Service: o.Service, Credential: o.Credential}
	request := csr(k.r.t, h.key, uri)
	if o.Usage == transport.UsageServer {
		request = csr(k.r.t, h.key, transport.URI{}, o.DNS...)
	}
	h.got = want[transport.CredentialCertificate](k.r.t, k.say(&transport.CredentialRequest{Command: c.ID, CSR: request}))
	var err error
	if h.chain, err = transport.ParseChain(h.got.Chain); err != nil {
		k.r.t.Fatal(err)
	}
	want[transport.CommandAck](k.r.t, k.say(&transport.CommandResult{Command: c.ID, State: transport.CommandDone}))
	return h
}

func (r *rig) order(terminal, service string) OrderProgress {
	r.t.Helper()
	var p OrderProgress
	err := r.admin.Stream(context.Background(), Interface+".CredentialIssue", CredentialIssueParams{Terminal: terminal, Service: service}, into(&p))
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}
