package agent

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

// conversation is an enrolled terminal and its server, without a network.
type conversation struct {
	t       testing.TB
	dir     string
	server  *server
	vault   *vault
	session *session
	errs    []error
}

func newConversation(t testing.TB) *conversation {
	t.Helper()
	c := &conversation{t: t, dir: t.TempDir(), server: newServer(t)}
	c.vault = testVault(t, c.dir)
	c.server.device = c.vault.device
	c.connect()
	return c
}

// connect makes a new session, as after a lost connection.
func (c *conversation) connect() {
	c.t.Helper()
	self := &terminalRecord{Deployment: testDeployment, Terminal: "nav-001", Root: c.server.ca.root.Raw}
	roots, err := self.roots()
	if err != nil {
		c.t.Fatal(err)
	}
	c.session = &session{vault: c.vault, self: self, roots: roots, random: rand.Reader, proof: []*x509.Certificate{{NotBefore: c.server.ca.from, NotAfter: c.server.ca.to}}}
	c.carry(c.session.open())
}

// restart is a power cut: nothing but the store survives.
func (c *conversation) restart() {
	c.t.Helper()
	if err := c.vault.close(); err != nil {
		c.t.Fatal(err)
	}
	c.vault = testVault(c.t, c.dir)
	c.connect()
}

// carry moves payloads to and fro until nobody has anything to say.
func (c *conversation) carry(out [][]byte, err error) {
	c.t.Helper()
	if err != nil {
		c.errs = append(c.errs, err)
	}
	for rounds := 0; len(out) > 0; rounds++ {
		if rounds > 2000 {
			c.t.Fatal("the two talk for ever")
		}
		replies := c.server.receive(out[0])
		out = out[1:]
		for _, r := range replies {
			more, err := c.session.receive(c.t.Context(), r)
			if err != nil {
				c.errs = append(c.errs, err)
			}
			out = append(out, more...)
		}
	}
}

func (c *conversation) push(body transport.Body) {
	c.t.Helper()
	payload, err := transport.Pack(rand.Reader, time.Now(), nil, body)
	if err != nil {
		c.t.Fatal(err)
	}
	c.carry(c.session.receive(c.t.Context(), payload))
}

func (c *conversation) noErrors() {
	c.t.Helper()
	if err := errors.Join(c.errs...); err != nil {
		c.t.Errorf("the terminal met: %v", err)
	}
}

func (c *conversation) holding(id transport.Name) *holdingRecord {
	c.t.Helper()
	var h *holdingRecord
	err := c.vault.store.View(func(tx *store.Tx) (err error) {
		h, err = holding(tx, id)
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return h
}

// only checks that a command was settled once with this state.
func (c *conversation) only(id transport.ID, state transport.CommandState, detail string) {
	c.t.Helper()
	got := c.server.got(id)
	if len(got) != 1 || got[0].State != state || !strings.Contains(got[0].Detail, detail) {
		c.t.Errorf("results %+v, want one %q with %q", got, state, detail)
	}
}

// req: L8: on connect the terminal asks, and gets the commands one by one, or an explicit none.
func TestSessionAsksUntilThereIsNone(t *testing.T) {
	c := newConversation(t)
	if c.server.polls != 1 {
		t.Errorf("%d polls on connect, want 1", c.server.polls)
	}
	first, second := c.server.order(order("maps-1")), c.server.order(order("maps-2"))
	c.push(&transport.CommandReady{})
	c.only(first, transport.CommandDone, "")
	c.only(second, transport.CommandDone, "")
	if c.server.polls != 4 { // connect, ready, and one after each acknowledgement
		t.Errorf("%d polls, want 4", c.server.polls)
	}
	if unsettled, err := c.session.unsettled(); unsettled || err != nil {
		t.Errorf("unsettled %v, %v", unsettled, err)
	}
	if !c.vault.clock.Trusted() {
		t.Error("the server's time was not taken")
	}
	c.noErrors()
}

// req: L4
func TestCredentialIsIssued(t *testing.T) {
	c := newConversation(t)
	id := c.server.order(order("maps-1"))
	c.push(&transport.CommandReady{})
	c.only(id, transport.CommandDone, "")
	c.noErrors()

	h := c.holding("maps-1")
	if h == nil || h.Origin != OriginIssue || h.Record.Service != "maps" || h.Record.Subject != "seat-1" || h.Record.State != transport.CredentialActive {
		t.Fatalf("holding %+v", h)
	}
	used, err := newCredential(h, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !verifyPair(used) {
		t.Error("certificate and key do not belong together")
	}
	csr, err := x509.ParseCertificateRequest(c.server.orders[id].csr)
	if err != nil {
		t.Fatal(err)
	}
	// The request names itself and the destination.
	if want := "kagimori://demo/service/maps/credential/maps-1"; len(csr.URIs) != 1 || csr.URIs[0].String() != want || csr.Subject.CommonName != "seat-1" {
		t.Errorf("request for %v, %v", csr.URIs, csr.Subject)
	}
}

func TestGateCertificateIsIssued(t *testing.T) {
	c := newConversation(t)
	o := order("gate-1")
	o.Usage, o.DNS, o.Transfer = transport.UsageServer, []string{"maps.example", "www.maps.example"}, transport.TransferNever
	id := c.server.order(o)
	c.push(&transport.CommandReady{})
	c.only(id, transport.CommandDone, "")
	c.noErrors()
}

// req: L9: a new key under the same id takes the place of the old one.
func TestCredentialIsRenewed(t *testing.T) {
	c := newConversation(t)
	c.server.order(order("maps-1"))
	c.push(&transport.CommandReady{})
	before := c.holding("maps-1")
	id := c.server.order(order("maps-1"))
	c.push(&transport.CommandReady{})
	c.only(id, transport.CommandDone, "")
	after := c.holding("maps-1")
	if string(before.Record.Secret.Bytes) == string(after.Record.Secret.Bytes) {
		t.Error("the key is the old one")
	}
	c.noErrors()
}

// Whatever is lost, and wherever the power fails, a command has one effect and
// the server learns of it. req: L8
func TestLostRepliesAndPowerCuts(t *testing.T) {
	for _, lost := range []string{"credential.certificate", "command.ack", "command.next"} {
		for _, how := range []string{"repeat", "reconnect", "power cut"} {
			t.Run(lost+", "+how, func(t *testing.T) {
				c := newConversation(t)
				id := c.server.order(order("maps-1"))
				n := 0
				c.server.lose = func(reply string) bool {
					if reply == lost {
						n++
					}
					return reply == lost && n <= 2
				}
				c.push(&transport.CommandReady{})
				for range 4 {
					switch how {
					case "repeat":
						c.carry(c.session.again())
					case "reconnect":
						c.connect()
					case "power cut":
						c.restart()
					}
				}
				c.server.lose = nil
				got := c.server.got(id)
				if len(got) == 0 {
					t.Fatal("the server never learned of it")
				}
				for _, r := range got {
					if r != got[0] || r.State != transport.CommandDone {
						t.Errorf("two answers to one command: %+v", got)
					}
				}
				if len(c.server.keys) != 1 || c.holding("maps-1") == nil {
					t.Error("no credential")
				}
				if u, err := c.session.unsettled(); u || err != nil {
					t.Errorf("unsettled %v, %v", u, err)
				}
				c.noErrors()
			})
		}
	}
}

// The effect is durable and the power fails before the result is sent. req: L8
func TestPowerCutBetweenEffectAndResult(t *testing.T) {
	c := newConversation(t)
	id := c.server.order(order("maps-1"))
	held := func() bool { return c.holding("maps-1") != nil }
	queue, err := c.session.receive(t.Context(), ready(t))
	for err == nil && len(queue) > 0 && !held() {
		replies := c.server.receive(queue[0])
		queue = queue[1:]
		for _, reply := range replies {
			var more [][]byte
			more, err = c.session.receive(t.Context(), reply)
			queue = append(queue, more...)
		}
	}
	if err != nil || !held() || len(c.server.got(id)) != 0 {
		t.Fatalf("%v: the moment was missed", err)
	}
	key := string(c.holding("maps-1").Record.Secret.Bytes)
	c.restart() // what is in queue is lost
	c.only(id, transport.CommandDone, "")
	if string(c.holding("maps-1").Record.Secret.Bytes) != key {
		t.Error("the effect was repeated")
	}
	c.noErrors()
}

// A server that was put back from a backup repeats commands: they get the same
// answer, and nothing is done again. req: L8
func TestRepeatedCommandHasOneEffect(t *testing.T) {
	c := newConversation(t)
	id := c.server.order(order("maps-1"))
	command := *c.server.commands[0]
	c.push(&transport.CommandReady{})
	key := string(c.holding("maps-1").Record.Secret.Bytes)
	for range 3 {
		c.restart()
		c.server.commands = []*transport.Command{&command}
		delete(c.server.orders, id)
		c.push(&transport.CommandReady{})
	}
	got := c.server.got(id)
	if len(got) != 4 {
		t.Fatalf("%d results, want 4", len(got))
	}
	for _, r := range got {
		if r != got[0] {
			t.Errorf("another answer: %+v, then %+v", got[0], r)
		}
	}
	if len(c.server.orders) != 0 || string(c.holding("maps-1").Record.Secret.Bytes) != key {
		t.Error("the effect was repeated")
	}
	c.noErrors()
}

// verifyPair checks that a credential's certificate is for its key.
func verifyPair(c *Credential) bool {
	key, ok := c.TLS.PrivateKey.(crypto.Signer)
	return ok && certifies(c.Chain[0], key.Public()) == nil
}
