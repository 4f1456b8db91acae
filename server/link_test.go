package server

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/kagimori/kagimori/server/ca"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/mqtt"
)

// wire is a terminal's real connection to the real broker.
type wire struct {
	t    testing.TB
	conn *mqtt.Conn
}

// connect connects a terminal with its identity.
func (r *rig) connect(name string, key *ecdsa.PrivateKey, chain [][]byte) *wire {
	r.t.Helper()
	c, err := r.dial(name, key, chain)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(c.Close)
	return &wire{r.t, c}
}

const patience = 10 * time.Second

func (w *wire) send(m transport.Body) {
	w.t.Helper()
	payload, err := transport.Pack(rand.Reader, time.Now(), nil, m)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.conn.Send(w.t.Context(), payload); err != nil {
		w.t.Fatal(err)
	}
}

// receive waits for a message of a type; others that come before are dropped.
func (w *wire) receive(kind string) *transport.Envelope {
	w.t.Helper()
	late := time.After(patience)
	for {
		select {
		case payload := <-w.conn.Receive():
			e, err := transport.Unpack(payload, transport.MaxEnvelope)
			if err != nil {
				w.t.Fatal(err)
			}
			if e.Type == kind {
				return e
			}
		case <-w.conn.Done():
			w.t.Fatalf("disconnected while waiting for %s: %v", kind, w.conn.Err())
		case <-late:
			w.t.Fatalf("no %s", kind)
		}
	}
}

// cutOff waits until the server has closed the connection, and says how long
// that took.
func (w *wire) cutOff() time.Duration {
	w.t.Helper()
	start := time.Now()
	select {
	case <-w.conn.Done():
	case <-time.After(patience):
		w.t.Fatal("still connected")
	}
	return time.Since(start)
}

// req: L3, L4
func TestEnrollmentOverTheWire(t *testing.T) {
	r := newRig(t)
	b := r.addTerminal("nav-001")
	x := newBox(t)
	segment, err := transport.NewEnrollSegment(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	w := r.connect(segment, nil, nil)
	exporter, err := w.conn.Exporter(transport.EnrollExporter, transport.EnrollExporterSize)
	if err != nil {
		t.Fatal(err)
	}
	h := &transport.EnrollHello{Terminal: "nav-001", Device: x.id()}
	w.send(h)
	c := want[transport.EnrollChallenge](t, w.receive("enroll.challenge"))
	raw, _ := transport.Marshal(h)
	if mac, err := transport.EnrollServerMAC(b.CommonKey, exporter, raw, *c); err != nil || mac != c.MAC {
		t.Fatalf("the server's proof is not over this connection: %v", err)
	}
	w.send(proof(t, b.CommonKey, string(exporter), h, c, csr(t, x.key, transport.URI{})))
	chain := want[transport.EnrollCertificate](t, w.receive("enroll.certificate")).Chain
	terminal := r.connect("nav-001", x.key, chain)
	terminal.send(&transport.CommandPoll{})
	want[transport.CommandNext](t, terminal.receive("command.next"))
	var d TerminalDetail
	r.call("TerminalShow", NameParams{Name: "nav-001"}, &d)
	if !d.Terminal.Connected || d.Terminal.Seen.IsZero() {
		t.Errorf("%+v", d.Terminal)
	}
}

// Who the broker's door takes: every check has its liar.
// req: L4, L5, L18
func TestTheDoorTakesOnlyIdentitiesInForce(t *testing.T) {
	r := newRig(t)
	r.addGate("maps")
	x, chain := r.terminal("nav-001")
	r.connect("nav-001", x.key, chain).conn.Close()
	r.terminal("nav-002")

	r.order("nav-001", "maps")
	service := r.as("nav-001", x).obey()

	gone, goneChain := r.terminal("nav-003")
	r.call("TerminalRemove", NameParams{Name: "nav-003"}, nil)
	old, oldChain := r.terminal("nav-004")
	fresh, _ := r.reenroll("nav-004")
	r.enroll(fresh, newBox(t))

	same, revokedChain := r.terminal("nav-005") // its name, device and state are as they were
	again, _ := r.reenroll("nav-005")
	sameChain := r.enroll(again, same)
	r.connect("nav-005", same.key, sameChain)

	fx, foreignChain := foreignIdentity(t)

	unknown := newKey(t)
	request, err := ca.ParseRequest(csr(t, unknown, transport.URI{}))
	if err != nil {
		t.Fatal(err)
	}
	never, err := r.s.ca.Identity(request, "nav-001", r.now()) // signed, and not in the store
	if err != nil {
		t.Fatal(err)
	}
	for name, try := range map[string]struct {
		id    string
		key   *ecdsa.PrivateKey
		chain [][]byte
	}{
		"a service certificate":           {"nav-001", service.key, service.got.Chain},
		"another terminal's name":         {"nav-002", x.key, chain},
		"a removed terminal":              {"nav-003", gone.key, goneChain},
		"an earlier enrollment":           {"nav-004", old.key, oldChain},
		"the same device's revoked one":   {"nav-005", same.key, revokedChain},
		"another deployment":              {"nav-001", fx, foreignChain},
		"signed, never issued":            {"nav-001", unknown, never.Chain},
		"self-signed":                     {"nav-001", unknown, [][]byte{selfSigned(t, unknown)}},
		"a forged leaf beside a good one": {"nav-001", unknown, append([][]byte{selfSigned(t, unknown)}, chain...)},
		"without issuer":                  {"nav-001", x.key, chain[:1]},
		"a name, no certificate":          {"nav-001", nil, nil},
	} {
		c, err := r.dial(try.id, try.key, try.chain)
		if !errors.Is(err, mqtt.ErrRefused) {
			t.Errorf("%s: %v, want a refusal", name, err)
		}
		if err == nil {
			c.Close()
		}
	}
	r.connect("nav-001", x.key, chain) // the honest one still gets in
	r.advance(r.s.cfg.Lifetimes.Identity + time.Minute)
	if c, err := r.dial("nav-001", x.key, chain); !errors.Is(err, mqtt.ErrRefused) {
		t.Errorf("expired: %v, want a refusal", err)
		if err == nil {
			c.Close()
		}
	}
}

// foreignIdentity is what another deployment of the same name certifies.
func foreignIdentity(t *testing.T) (*ecdsa.PrivateKey, [][]byte) {
	t.Helper()
	module, err := openFile(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer module.Close()
	material, err := ca.Create(t.Context(), module, "demo", nil, rand.Reader, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	other, err := ca.Open(t.Context(), module, ca.Config{Deployment: "demo", IdentityLifetime: time.Hour}, material, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	key := newKey(t)
	request, err := ca.ParseRequest(csr(t, key, transport.URI{}))
	if err != nil {
		t.Fatal(err)
	}
	i, err := other.Identity(request, "nav-001", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return key, i.Chain
}

func selfSigned(t *testing.T, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	template.URIs = append(template.URIs, transport.URI{Deployment: "demo", Terminal: "nav-001"}.URL())
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// DESIGN §5: revocation cuts a live connection within a second.
func TestRemovalAndReenrollmentCutOff(t *testing.T) {
	r := newRig(t)
	x, chain := r.terminal("nav-001")
	y, chain2 := r.terminal("nav-002")
	for name, do := range map[string]func(){
		"nav-001": func() { r.call("TerminalRemove", NameParams{Name: "nav-001"}, nil) },
		"nav-002": func() { r.reenroll("nav-002") },
	} {
		key, c := x.key, chain
		if name == "nav-002" {
			key, c = y.key, chain2
		}
		w := r.connect(name, key, c)
		w.send(&transport.CommandPoll{})
		w.receive("command.next")
		do()
		if took := w.cutOff(); took > time.Second {
			t.Errorf("%s: cut off after %v", name, took)
		}
		if _, err := r.dial(name, key, c); !errors.Is(err, mqtt.ErrRefused) {
			t.Errorf("%s: %v, want a refusal", name, err)
		}
	}
}

// req: L8
func TestOrdersWakeTheTerminal(t *testing.T) {
	r := newRig(t)
	r.addGate("maps")
	x, chain := r.terminal("nav-001")
	w := r.connect("nav-001", x.key, chain)
	w.send(&transport.CommandPoll{})
	if n := want[transport.CommandNext](t, w.receive("command.next")); n.Command != nil {
		t.Fatal("an order that nobody gave")
	}
	p := r.order("nav-001", "maps")
	if !p.Connected {
		t.Errorf("%+v", p)
	}
	w.receive("command.ready")
	w.send(&transport.CommandPoll{})
	if n := want[transport.CommandNext](t, w.receive("command.next")); n.Command == nil || n.Command.ID != p.Command {
		t.Errorf("%+v", n)
	}
}

// req: L10
func TestGatesHearWhatIsRevoked(t *testing.T) {
	r := newRig(t)
	g := newBox(t)
	w := r.connect("gate-maps", g.key, r.enroll(r.addGate("maps"), g))
	heard := func() (*transport.ServiceRevoked, *x509.RevocationList) {
		t.Helper()
		m := want[transport.ServiceRevoked](t, w.receive("service.revoked"))
		list, err := x509.ParseRevocationList(m.CRL)
		if err != nil {
			t.Fatal(err)
		}
		issuer, err := x509.ParseCertificate(m.Issuer)
		if err != nil {
			t.Fatal(err)
		}
		if err := list.CheckSignatureFrom(issuer); err != nil || list.Number.Int64() != m.Number || m.URL != "http://server.test:8880/crl/service" {
			t.Errorf("%v, %+v", err, m)
		}
		return m, list
	}
	w.send(&transport.CommandPoll{})
	first, list := heard() // on connect, although nothing is revoked
	if len(list.RevokedCertificateEntries) != 0 {
		t.Errorf("%+v", list)
	}
	x, _ := r.terminal("nav-001")
	r.order("nav-001", "maps")
	h := r.as("nav-001", x).obey()
	start := time.Now()
	r.call("TerminalRemove", NameParams{Name: "nav-001"}, nil)
	second, list := heard()
	if took := time.Since(start); took > time.Second {
		t.Errorf("heard after %v", took)
	}
	if second.Number <= first.Number || len(list.RevokedCertificateEntries) != 1 || list.RevokedCertificateEntries[0].SerialNumber.Cmp(h.chain[0].SerialNumber) != 0 {
		t.Errorf("number %d after %d, %+v", second.Number, first.Number, list.RevokedCertificateEntries)
	}
}

// Terminals hear which gates are revoked, and nothing about credentials. req: L10
func TestTerminalsHearOfRevokedGates(t *testing.T) {
	r := newRig(t)
	x, chain := r.terminal("nav-001")
	w := r.connect("nav-001", x.key, chain)
	g := newBox(t)
	r.enroll(r.addGate("maps"), g)
	first := r.as("gate-maps", g).obey()
	heard := func(revoked ...*x509.Certificate) int64 {
		t.Helper()
		m := want[transport.ServiceRevoked](t, w.receive("service.revoked"))
		list, err := x509.ParseRevocationList(m.CRL)
		if err != nil {
			t.Fatal(err)
		}
		if string(m.Issuer) != string(r.s.ca.Certificate(ca.Server).Raw) || list.CheckSignatureFrom(r.s.ca.Certificate(ca.Server)) != nil {
			t.Error("the list is not the server CA's")
		}
		if len(list.RevokedCertificateEntries) != len(revoked) {
			t.Errorf("%d revoked, want %d", len(list.RevokedCertificateEntries), len(revoked))
		}
		for _, c := range revoked {
			if !slices.ContainsFunc(list.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool { return e.SerialNumber.Cmp(c.SerialNumber) == 0 }) {
				t.Errorf("%s is not on it", serialText(c.SerialNumber))
			}
		}
		return m.Number
	}
	w.send(&transport.CommandPoll{})
	number := heard() // on connect, although nothing is revoked
	w.receive("command.next")
	fresh, _ := r.reenroll("gate-maps")
	if n := heard(first.chain[0]); n <= number {
		t.Errorf("number %d after %d", n, number)
	}
	r.enroll(fresh, g)
	second := r.as("gate-maps", g).obey()
	start := time.Now()
	r.call("TerminalRemove", NameParams{Name: "gate-maps"}, nil)
	heard(first.chain[0], second.chain[0])
	if took := time.Since(start); took > time.Second {
		t.Errorf("heard after %v", took)
	}
}

// A garbled message gets a fault and keeps the connection; the next is served.
func TestGarbageOverTheWire(t *testing.T) {
	r := newRig(t)
	x, chain := r.terminal("nav-001")
	w := r.connect("nav-001", x.key, chain)
	if err := w.conn.Send(t.Context(), []byte("rubbish")); err != nil {
		t.Fatal(err)
	}
	fault(t, "rubbish", w.receive("fault"), transport.FaultMalformed)
	w.send(&transport.CredentialClaimed{Credential: "cr-1"}) // a message of the server's
	fault(t, "the server's own message", w.receive("fault"), transport.FaultUnknown)
	w.send(&transport.CommandPoll{})
	w.receive("command.next")
}
