package stories

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/open"
	"github.com/kagimori/kagimori/transport"
)

// Everything that crosses a socket or a chip's bus, and everything that lies in
// a file or a log, while a terminal is enrolled, replaced and its successor
// enrolled, searched for what nobody may see.
//
// req: C2, C3, L3
func TestNothingLeaksWhileATerminalIsReplaced(t *testing.T) {
	for _, kind := range []string{open.KindFile, open.KindTPM} {
		t.Run(kind, func(t *testing.T) {
			r := newRecording(t, kind)
			needles := r.replace()
			for where, b := range r.places() {
				for _, n := range needles {
					if n.in(b) {
						t.Errorf("%s is in %s in clear", n.what, where)
					}
				}
				if len(b) == 0 && strings.HasPrefix(where, "the ") {
					t.Errorf("nothing was recorded on %s", where)
				}
			}
			r.control(needles)
		})
	}
}

// A recording is a deployment with a tap on every socket.
type recording struct {
	*deployment
	t          *testing.T
	kind       string
	old, fresh *terminal
	wire       *tap
	taps       []*tap
	buses      map[string]func() []byte
}

func newRecording(t *testing.T, kind string) *recording {
	t.Helper()
	r := &recording{t: t, kind: kind, buses: map[string]func() []byte{}}
	r.deployment = deploy(t, nil, func(d *deployment) string { // terminals know the server by a tap's address
		return r.tap("MQTT and enrollment", "tcp", "127.0.0.1:0", d.mqtt).addr
	})
	r.tap("control socket of the server", "unix", r.server.path("tap"), r.server.socket("kagimori-server"))
	r.old, r.fresh = r.terminal("nav-001"), r.terminal("nav-002")
	r.wire = r.tap("key copy", "tcp", "127.0.0.1:0", r.old.copy)
	return r
}

func (r *recording) tap(name, network, addr, target string) *tap {
	p := newTap(r.t, name, network, addr, target)
	r.taps = append(r.taps, p)
	return p
}

// terminal starts one with its chip's bus and its control socket tapped.
func (r *recording) terminal(name string) *terminal {
	keys := open.Config{Kind: r.kind}
	if r.kind == open.KindTPM {
		keys.Path, r.buses["the bus of the chip of "+name] = hsmtest.Record(r.t, hsmtest.StartTPM(r.t))
	}
	m := r.deployment.terminal(name, keys)
	r.tap("control socket of "+name, "unix", m.path("tap"), m.socket("kagimori"))
	return m
}

// run runs a verb through the tapped socket.
func (r *recording) run(m *machine, stdin, program string, args ...string) string {
	r.t.Helper()
	got := m.run(stdin, program, append([]string{"--socket", m.path("tap")}, args...)...)
	if got.code != 0 {
		r.t.Fatalf("%s: %s %v: exit %d\n%s%s", m.name, program, args, got.code, got.out, got.err)
	}
	return got.out
}

// bundle has one made, and opens it as the test alone can.
func (r *recording) bundle(name string, verb ...string) (made, *transport.Bundle) {
	r.t.Helper()
	var b made
	out := r.run(r.server, "", "kagimori-server", append(verb, "--json", "--out", r.server.path(name))...)
	if err := json.Unmarshal([]byte(out), &b); err != nil {
		r.t.Fatalf("%v in %s", err, out)
	}
	inside, err := transport.OpenBundle(mustRead(r.t, b.Bundle), transport.Sensitive(b.Passphrase))
	if err != nil {
		r.t.Fatal(err)
	}
	return b, inside
}

func (r *recording) provision(m *terminal, b made) {
	r.t.Helper()
	r.run(m.machine, b.Passphrase+"\n", "kagimori", "provision", b.Bundle)
}

// replace tells the story and gives its secrets.
func (r *recording) replace() (needles []needle) {
	t := r.t
	t.Helper()
	named, inside := r.bundle("named", "terminal", "add", "nav-001")
	spare, _ := r.bundle("spare", "spare", "add")
	r.provision(r.old, named)
	r.provision(r.fresh, spare)
	r.old.connected()
	id := r.old.issue()
	o := r.old.offer(r.old.path("tap"))
	r.run(r.fresh.machine, o.code+"\n", "kagimori", "keycopy", "fetch", r.wire.addr)
	<-o.done
	if got := r.fresh.curl("/x"); !strings.Contains(got, id) {
		t.Fatalf("the copied key does not work: %s", got)
	}
	upgrade, second := r.bundle("upgrade", "terminal", "add", "nav-002")
	r.provision(r.fresh, upgrade)
	r.fresh.connected()
	r.old.daemon.stop()
	r.fresh.daemon.stop()
	key := r.fresh.record(id).Secret.Bytes
	return []needle{
		newNeedle("the security code", inside.SecurityCode),
		newNeedle("the common key of nav-001", inside.CommonKey), newNeedle("the common key of nav-002", second.CommonKey),
		newNeedle("the passphrase of a bundle", []byte(named.Passphrase)), newCodeNeedle("the operator code", o.code),
		newNeedle("the copied private key (PKCS#8)", key), newNeedle("the copied private key (scalar)", scalar(t, key)),
	}
}

// places is all that was recorded.
func (r *recording) places() map[string][]byte {
	places := map[string][]byte{}
	for what, bus := range r.buses {
		places[what] = bus()
	}
	for _, tap := range r.taps {
		places["the "+tap.name] = []byte(tap.seen.String())
	}
	for _, m := range []*machine{r.server, r.gate, r.old.machine, r.fresh.machine} {
		for path, b := range files(r.t, m.dir) {
			places["file "+path] = b
		}
	}
	for what, d := range map[string]*daemon{"nav-001": r.old.daemon, "nav-002": r.fresh.daemon, "the server": r.serverRun, "the gate": r.gateRun} {
		places["log of "+what] = []byte(d.log.String())
	}
	return places
}

// control takes one protection away, and expects the search to notice: a client
// that sends the operator code as it is, and a key that is written out.
func (r *recording) control(needles []needle) {
	t := r.t
	t.Helper()
	c, err := net.Dial("unix", r.server.path("tap"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	code, key := needles[4], needles[5]
	fmt.Fprintf(c, "{\"method\":\"com.kagimori.server.TerminalAdd\",\"parameters\":{\"name\":%q}}\x00", code.forms[0])
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.fresh.path("key.der"), key.forms[0], 0o600); err != nil {
		t.Fatal(err)
	}
	places := r.places()
	if !code.in(places["the control socket of the server"]) || !key.in(places["file "+r.fresh.path("key.der")]) {
		t.Error("the search does not find what is there")
	}
}

func scalar(t *testing.T, pkcs8 []byte) []byte {
	t.Helper()
	k, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		t.Fatal(err)
	}
	b, err := k.(interface{ Bytes() ([]byte, error) }).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return b
}
