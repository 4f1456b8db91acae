package agent

import (
	"crypto/rand"
	"fmt"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

func TestCommandThatIsNotKnown(t *testing.T) {
	c := newConversation(t)
	id := c.server.command("terminal.dance", &transport.CommandReady{})
	c.push(&transport.CommandReady{})
	c.only(id, transport.CommandUnknown, "update")
	c.noErrors()
}

// Orders that are not obeyed are answered, with the reason, and leave nothing.
func TestOrdersThatAreRefused(t *testing.T) {
	c := newConversation(t)
	c.server.order(order("maps-1"))
	c.push(&transport.CommandReady{})
	for name, spoil := range map[string]func(*transport.CredentialOrder){
		"bad name":             func(o *transport.CredentialOrder) { o.Service = "Maps!" },
		"reserved name":        func(o *transport.CredentialOrder) { o.Credential = "enroll-1" },
		"usage 0":              func(o *transport.CredentialOrder) { o.Usage = "both" },
		"DNS names":            func(o *transport.CredentialOrder) { o.DNS = []string{"a.example"} },
		"0 DNS names":          func(o *transport.CredentialOrder) { o.Usage = transport.UsageServer },
		"unknown transfer":     func(o *transport.CredentialOrder) { o.Transfer = "sell" },
		"chip-only":            func(o *transport.CredentialOrder) { o.ChipOnly = true },
		"service maps already": func(o *transport.CredentialOrder) { o.Credential, o.Service = "maps-1", "tiles" },
	} {
		o := order("maps-2")
		spoil(&o)
		id := c.server.order(o)
		c.push(&transport.CommandReady{})
		words := strings.TrimRight(name, "0 ")
		if words == "bad name" || words == "reserved name" {
			words = "bad name"
		}
		words = strings.TrimPrefix(words, "0 ")
		c.only(id, transport.CommandRefused, words)
	}
	id := c.server.command(transport.CommandIssue, &transport.CommandReady{})
	c.push(&transport.CommandReady{})
	c.only(id, transport.CommandRefused, "malformed")
	if c.holding("maps-2") != nil {
		t.Error("a refused order left a credential")
	}
	if u, err := c.session.unsettled(); u || err != nil {
		t.Errorf("unsettled %v, %v", u, err)
	}
	c.noErrors()
}

// The server issues something that is not what was asked for.
func TestCertificatesThatAreRefused(t *testing.T) {
	for name, spoil := range map[string]func(*server, *transport.CredentialCertificate){
		"another key": func(s *server, m *transport.CredentialCertificate) {
			m.Chain = s.ca.client(transport.URI{Deployment: testDeployment, Service: "maps", Credential: "maps-1"}, newTestKey(t).Public())
		},
		"for service tiles": func(s *server, m *transport.CredentialCertificate) {
			m.Chain = s.ca.client(transport.URI{Deployment: testDeployment, Service: "tiles", Credential: "maps-1"}, s.keys["maps-1"])
		},
		"for credential maps-2": func(s *server, m *transport.CredentialCertificate) {
			m.Chain = s.ca.client(transport.URI{Deployment: testDeployment, Service: "maps", Credential: "maps-2"}, s.keys["maps-1"])
		},
		"for credential \"maps-3\"": func(_ *server, m *transport.CredentialCertificate) { m.Credential = "maps-3" },
		"certificate refused": func(s *server, m *transport.CredentialCertificate) {
			m.Chain = newAuthority(t).client(transport.URI{Deployment: testDeployment, Service: "maps", Credential: "maps-1"}, s.keys["maps-1"])
		},
		"host:port": func(_ *server, m *transport.CredentialCertificate) { m.Endpoints = []string{"maps.example"} },
		"anchor":    func(_ *server, m *transport.CredentialCertificate) { m.Anchors = [][]byte{{1}} },
	} {
		c := newConversation(t)
		id := c.server.order(order("maps-1"))
		c.server.lose = func(reply string) bool { return reply == "credential.certificate" }
		c.push(&transport.CommandReady{})
		c.server.lose = nil
		spoil(c.server, c.server.orders[id].certificate)
		c.carry(c.session.again())
		got := c.server.got(id)
		if len(got) != 1 || got[0].State != transport.CommandRefused || !strings.Contains(got[0].Detail, name) {
			t.Errorf("%s: results %+v", name, got)
		}
		if c.holding("maps-1") != nil {
			t.Errorf("%s: kept", name)
		}
	}
}

func TestFaults(t *testing.T) {
	for _, f := range []struct {
		to    string
		code  transport.FaultCode
		state transport.CommandState // in the end; "": none, the server settled it
	}{
		{"credential.request", transport.FaultLater, transport.CommandDone},
		{"credential.request", transport.FaultRequest, transport.CommandRefused},
		{"credential.request", transport.FaultRefused, transport.CommandRefused},
		{"credential.request", transport.FaultClosed, ""},
		{"command.result", transport.FaultLater, transport.CommandDone},
		{"command.poll", transport.FaultLater, transport.CommandDone},
	} {
		c := newConversation(t)
		id := c.server.order(order("maps-1"))
		n := 0
		c.server.fault = func(e *transport.Envelope) *transport.Fault {
			if e.Type != f.to || n == 1 {
				return nil
			}
			n++
			if f.code == transport.FaultClosed {
				c.server.commands = nil
			}
			return &transport.Fault{Code: f.code}
		}
		c.push(&transport.CommandReady{})
		c.carry(c.session.again())
		got := c.server.got(id)
		if f.state == "" && len(got) != 0 || f.state != "" && (len(got) != 1 || got[0].State != f.state) {
			t.Errorf("fault %d to %s: results %+v, want %q", f.code, f.to, got, f.state)
		}
		if u, err := c.session.unsettled(); u || err != nil {
			t.Errorf("fault %d to %s: unsettled %v, %v", f.code, f.to, u, err)
		}
	}
}

// A poll whose answer is older than the news must not swallow the news.
func TestReadyWhileAPollIsUnderWay(t *testing.T) {
	c := newConversation(t)
	out, err := c.session.receive(t.Context(), ready(t))
	if err != nil || len(out) != 1 {
		t.Fatalf("%d, %v", len(out), err)
	}
	stale := c.server.receive(out[0]) // "none"
	id := c.server.order(order("maps-1"))
	c.push(&transport.CommandReady{}) // overtakes it; no second poll yet
	if c.server.polls != 2 {
		t.Fatalf("%d polls, want 2", c.server.polls)
	}
	c.carry(c.session.receive(t.Context(), stale[0]))
	c.only(id, transport.CommandDone, "")
}

func ready(t testing.TB) []byte {
	t.Helper()
	p, err := transport.Pack(rand.Reader, time.Now(), nil, &transport.CommandReady{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A burst of results goes out in portions and every one arrives.
func TestManyResults(t *testing.T) {
	c := newConversation(t)
	c.server.lose = func(reply string) bool { return reply == "command.ack" }
	const n = 3*sendAtOnce + 1
	var ids []transport.ID
	for range n {
		ids = append(ids, c.server.command("terminal.dance", &transport.CommandReady{}))
		c.carry(c.session.again())
	}
	c.server.lose = nil
	c.server.results = map[transport.ID][]transport.CommandResult{}
	c.restart()
	for _, id := range ids {
		c.only(id, transport.CommandUnknown, "")
	}
	if u, err := c.session.unsettled(); u || err != nil {
		t.Errorf("unsettled %v, %v", u, err)
	}
}

func TestLedgerForgetsOnlyWhatIsAcknowledged(t *testing.T) {
	v := testVault(t, t.TempDir())
	var ids []transport.ID
	err := v.update(func(tx *store.Tx) error {
		for i := range 10 {
			id := transport.NewID(rand.Reader)
			ids = append(ids, id)
			if err := settle(tx, id, ledgerRecord{State: transport.CommandDone, Time: int64(i)}); err != nil {
				return err
			}
			if i%2 == 0 {
				if err := tx.Delete(bucketOutbox, id.String()); err != nil {
					return err
				}
			}
		}
		return forget(tx, 2)
	})
	if err != nil {
		t.Fatal(err)
	}
	err = v.store.View(func(tx *store.Tx) error {
		for i, id := range ids {
			_, found, err := settled(tx, id)
			if want := i%2 == 1 || i >= 6; found != want || err != nil {
				t.Errorf("command %d: found %v, want %v (%v)", i, found, want, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestShorten(t *testing.T) {
	for _, c := range []struct{ in, want string }{{"abc", "abc"}, {"abcdef", "abcde"}, {"abcdé", "abcd"}, {"鍵守", "鍵"}, {"\xff\xff", "?"}, {"", ""}} {
		if got := shorten(c.in, 5); got != c.want || !utf8.ValidString(got) {
			t.Errorf("%q: %q, want %q", c.in, got, c.want)
		}
	}
}

func TestPollPause(t *testing.T) {
	const interval = 15 * time.Minute
	for _, c := range []struct {
		unsettled bool
		repeats   int
		want      time.Duration
	}{{false, 5, interval}, {true, 0, firstRepeat}, {true, 1, 2 * firstRepeat}, {true, maxDoubling, interval}} {
		low, high := pollPause(interval, c.unsettled, c.repeats, 0), pollPause(interval, c.unsettled, c.repeats, math.Nextafter(1, 0))
		if mid := (low + high) / 2; (mid-c.want).Abs() > time.Millisecond || low == high {
			t.Errorf("%+v: %v to %v", c, low, high)
		}
	}
}

// Messages that keep coming do not put off a poll that is due. req: L8
func TestPollerIsNotPutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPoller(time.Minute)
		defer p.stop()
		began := time.Now()
		for polls := 0; polls < 3; {
			p.arm(false)
			chatter := time.NewTimer(7 * time.Second)
			select {
			case <-p.timer.C:
				p.fired()
				polls++
			case <-chatter.C:
				p.heard()
			}
			chatter.Stop()
		}
		if d := time.Since(began); d < 3*54*time.Second || d > 3*66*time.Second {
			t.Errorf("three polls in %v, want about three minutes", d)
		}
	})
}

func FuzzSessionReceive(f *testing.F) {
	c := newConversation(f)
	for _, body := range []transport.Body{
		&transport.CommandReady{}, &transport.CommandNext{Command: &transport.Command{Kind: transport.CommandIssue, Body: []byte{0xa0}}},
		&transport.CommandNext{}, &transport.CommandAck{}, &transport.CredentialCertificate{Credential: "a"}, &transport.CredentialClaimed{Credential: "a"},
		&transport.Fault{Code: transport.FaultClosed}, &transport.ServiceRevoked{},
	} {
		seed, err := transport.Pack(rand.Reader, time.Now(), nil, body)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(seed)
	}
	// Bodies of known types, wrapped afresh so that the envelope does not stop them.
	f.Fuzz(func(t *testing.T, data []byte) {
		c.t = t
		for _, kind := range []string{"", "command.next", "command.ack", "credential.certificate", "credential.claimed", "fault"} {
			payload := data
			if kind != "" {
				var err error
				if payload, err = transport.Marshal(&transport.Envelope{V: transport.Version, Type: kind, Body: data}); err != nil {
					continue // not CBOR
				}
			}
			out, _ := c.session.receive(t.Context(), payload)
			if len(out) > 4*sendAtOnce {
				t.Fatalf("%d messages in answer to one", len(out))
			}
		}
		if h := c.holding("a"); h != nil {
			t.Fatalf("a credential came from nowhere: %s", fmt.Sprint(h.Record.ID))
		}
	})
}
