package stories

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"os"
	"testing"

	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/open"
	"github.com/kagimori/kagimori/transport"
)

// Everything that crosses a socket and everything that lies in a file while a
// terminal is enrolled and replaced, searched for what nobody may see.
//
// req: C2, C3, L3
func TestNothingLeaksWhileATerminalIsReplaced(t *testing.T) {
	var mqtt *tap // terminals know the server by its address
	d := deploy(t, nil, func(d *deployment) string {
		mqtt = newTap(t, "MQTT and enrollment", "tcp", "127.0.0.1:0", d.mqtt)
		return mqtt.addr
	})
	serverControl := newTap(t, "control socket of the server", "unix", d.server.path("tap"), d.server.socket("kagimori-server"))

	oldChip, oldBus := hsmtest.Record(t, hsmtest.StartTPM(t))
	freshChip, freshBus := hsmtest.Record(t, hsmtest.StartTPM(t))
	old := d.terminal("nav-001", open.Config{Kind: open.KindTPM, Path: oldChip})
	fresh := d.terminal("nav-002", open.Config{Kind: open.KindTPM, Path: freshChip})
	oldControl := newTap(t, "control socket of nav-001", "unix", old.path("tap"), old.socket("kagimori"))
	freshControl := newTap(t, "control socket of nav-002", "unix", fresh.path("tap"), fresh.socket("kagimori"))
	wire := newTap(t, "key copy", "tcp", "127.0.0.1:0", old.copy)

	bundle := func(name string, verb ...string) (b made, inside *transport.Bundle) {
		r := d.server.run("", "kagimori-server", append([]string{"--socket", d.server.path("tap"), "--json", "--out", d.server.path(name)}, verb...)...)
		if err := json.Unmarshal([]byte(r.out), &b); err != nil {
			t.Fatalf("%v: %s%s", err, r.out, r.err)
		}
		file, err := os.ReadFile(b.Bundle)
		if err != nil {
			t.Fatal(err)
		}
		opened, err := transport.OpenBundle(file, transport.Sensitive(b.Passphrase))
		if err != nil {
			t.Fatal(err)
		}
		return b, opened
	}
	named, inside := bundle("named", "terminal", "add", "nav-001")
	spare, _ := bundle("spare", "spare", "add")
	for m, b := range map[*terminal]made{old: named, fresh: spare} {
		r := m.run(b.Passphrase+"\n", "kagimori", "--socket", m.path("tap"), "provision", b.Bundle)
		if r.code != 0 {
			t.Fatalf("provision: %s%s", r.out, r.err)
		}
	}
	old.connected()
	id := old.issue()
	o := old.offer(old.path("tap"))
	r := fresh.run(o.code+"\n", "kagimori", "--socket", fresh.path("tap"), "keycopy", "fetch", wire.addr)
	if r.code != 0 {
		t.Fatalf("fetch: %s%s", r.out, r.err)
	}
	<-o.done
	if got := fresh.curl("/x"); !bytes.Contains([]byte(got), []byte("nav-001")) {
		t.Fatalf("the copied key does not work: %s", got)
	}
	old.daemon.stop()
	fresh.daemon.stop()
	key := fresh.record(id).Secret.Bytes

	needles := []needle{
		newNeedle("security code", inside.SecurityCode), newNeedle("common key of the challenges", inside.CommonKey),
		newNeedle("passphrase of a bundle", []byte(named.Passphrase)), newCodeNeedle("operator code", o.code),
		newNeedle("copied private key (PKCS#8)", key), newNeedle("copied private key (scalar)", scalar(t, key)),
	}
	places := map[string][]byte{"the bus of nav-001's chip": oldBus(), "the bus of nav-002's chip": freshBus()}
	for _, tap := range []*tap{mqtt, serverControl, oldControl, freshControl, wire} {
		places["the "+tap.name] = []byte(tap.seen.String())
	}
	for _, m := range []*machine{d.server, d.gate, old.machine, fresh.machine} {
		for path, b := range files(t, m.dir) {
			places["file "+path] = b
		}
	}
	for what, log := range map[string]*daemon{"nav-001": old.daemon, "nav-002": fresh.daemon, "server": d.serverRun} {
		places["log of "+what] = []byte(log.log.String())
	}
	for where, b := range places {
		for _, n := range needles {
			if n.in(b) {
				t.Errorf("%s is in %s in clear", n.what, where)
			}
		}
		if len(b) == 0 && where[:4] == "the " {
			t.Errorf("nothing was recorded on %s", where)
		}
	}
	t.Logf("%d places searched", len(places))

	// The control: the same key, written out so that another program can use it.
	if err := os.WriteFile(fresh.path("key.der"), key, 0o600); err != nil {
		t.Fatal(err)
	}
	found := false
	for _, b := range files(t, fresh.dir) {
		found = found || needles[4].in(b)
	}
	if !found {
		t.Error("the search does not find a key that lies in a file")
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
