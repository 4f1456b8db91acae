package server

import (
	"crypto/rand"
	"database/sql"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/kagimori/kagimori/server/broker"
	"github.com/kagimori/kagimori/server/ca"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// again stops the server and starts it with another configuration.
func (r *rig) again(tweak func(*Config)) {
	r.t.Helper()
	if err := r.stop(); err != nil {
		r.t.Fatal(err)
	}
	l, err := broker.Listen(r.t.Context(), "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	r.mqtt, r.tweak = l.Addr().String(), tweak
	r.start(l)
}

// hide takes a table away, as a database that cannot be read does, until
// release is called.
func (r *rig) hide(table string) (release func()) {
	r.t.Helper()
	rename := func(from, to string) {
		db, err := sql.Open("sqlite", "file:"+filepath.Join(r.dir, "server.db")+"?_pragma=busy_timeout(5000)&_pragma=legacy_alter_table(1)")
		if err == nil {
			_, err = db.ExecContext(r.t.Context(), "ALTER TABLE "+from+" RENAME TO "+to)
		}
		if err := errors.Join(err, db.Close()); err != nil {
			r.t.Fatal(err)
		}
	}
	rename(table, table+"_hidden")
	return func() { rename(table+"_hidden", table) }
}

// unacknowledged sends a message that must end the connection, without PUBACK
// and without an answer.
func (w *wire) unacknowledged(m transport.Body) {
	w.t.Helper()
	payload, err := transport.Pack(rand.Reader, time.Now(), nil, m)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.conn.Send(w.t.Context(), payload); err == nil {
		w.t.Errorf("%s is acknowledged", m.Type())
	}
	w.cutOff()
	for len(w.conn.Receive()) > 0 {
		payload := <-w.conn.Receive()
		if e, err := transport.Unpack(payload, transport.MaxEnvelope); err != nil || e.Type != "service.revoked" {
			w.t.Errorf("answered: %+v, %v", e, err)
		}
	}
}

// What the store has not kept is not acknowledged: the terminal connects anew,
// repeats, and is served once the store works (DESIGN D1).
func TestFailingStoreIsNotAcknowledged(t *testing.T) {
	r := newRig(t)
	r.addGate("maps")
	x, chain := r.terminal("nav-001")
	p := r.order("nav-001", "maps")
	m := &transport.CredentialRequest{Command: p.Command, CSR: csr(t, newKey(t), transport.URI{})}

	w := r.connect("nav-001", x.key, chain)
	w.send(&transport.CommandPoll{})
	w.receive("command.next")
	release := r.blockDisk() // commits fail
	w.unacknowledged(m)
	release()

	w = r.connect("nav-001", x.key, chain)
	w.send(&transport.CommandPoll{})
	w.receive("command.next")
	release = r.hide("commands") // reading fails
	w.unacknowledged(m)
	release()

	w = r.connect("nav-001", x.key, chain)
	w.send(m)
	w.receive("credential.certificate")
}

// Key storage that fails has changed nothing: that is said, and acknowledged.
func TestFailingKeysAreSaid(t *testing.T) {
	r := newRig(t)
	r.addGate("maps")
	x, chain := r.terminal("nav-001")
	p := r.order("nav-001", "maps")
	key := newKey(t)
	w := r.connect("nav-001", x.key, chain)
	w.send(&transport.CommandPoll{})
	w.receive("command.next")
	r.s.ca.Close() // its keys do not sign any more
	w.send(&transport.CredentialRequest{Command: p.Command, CSR: csr(t, key, transport.URI{})})
	fault(t, "no keys", w.receive("fault"), transport.FaultLater)
	r.again(r.tweak)
	w = r.connect("nav-001", x.key, chain)
	w.send(&transport.CredentialRequest{Command: p.Command, CSR: csr(t, key, transport.URI{})})
	w.receive("credential.certificate")
}

// A gate that cannot be told goes by its old list as long as it is connected:
// so it is not connected any longer, and is told when it comes back.
// req: L10
func TestWhoCannotBeToldIsCutOff(t *testing.T) {
	r := newRig(t)
	g := newBox(t)
	chain := r.enroll(r.addGate("maps"), g)
	x, _ := r.terminal("nav-001")
	r.order("nav-001", "maps")
	r.as("nav-001", x).obey()
	told := func() *wire {
		w := r.connect("gate-maps", g.key, chain)
		w.send(&transport.CommandPoll{})
		w.receive("service.revoked")
		return w
	}
	cutOff := func(what string, w *wire) {
		t.Helper()
		if took := w.cutOff(); took > time.Second {
			t.Errorf("%s: cut off after %v", what, took)
		}
	}
	w := told()
	release := r.hide("crls")
	r.s.tellRevoked(t.Context(), []string{ca.Service})
	cutOff("the list cannot be read", w)
	w = r.connect("gate-maps", g.key, chain) // nor is one served that cannot be told when it connects
	w.unacknowledged(&transport.CommandPoll{})
	release()

	var size int
	r.view(func(tx *store.Tx) error {
		m, err := r.s.revokedMessage(tx, ca.Service)
		if err == nil {
			var payload []byte
			payload, err = transport.Pack(rand.Reader, r.now(), nil, m)
			size = len(payload)
		}
		return err
	})
	const less = 16 // than an entry of a list takes
	r.again(func(c *Config) { c.Broker.MaxPayload = size + less })
	w = told()
	r.call("TerminalRemove", NameParams{Name: "nav-001"}, nil)
	cutOff("the list is too large", w)
	r.again(func(*Config) {})
	told()
}
