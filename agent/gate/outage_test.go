package gate

import (
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/systemd"
	"github.com/kagimori/kagimori/transport"
)

var discard = newLog(io.Discard)

// bench is a set of lists whose clocks a test turns.
type bench struct {
	*deployment
	t    *testing.T
	crls *crls
	now  moment
	cred *x509.Certificate
}

const benchAge = 10 * time.Hour

func newBench(t *testing.T) *bench {
	t.Helper()
	d := newDeployment(t, "demo")
	now := time.Now()
	b := &bench{deployment: d, t: t, now: moment{now, now}, cred: d.credential(t, "maps", "cr-1").Leaf}
	b.crls = newCRLs(filepath.Join(t.TempDir(), "revoked"), benchAge, discard)
	return b
}

func (b *bench) pass(d time.Duration) {
	b.now = moment{b.now.judged.Add(d), b.now.steady.Add(d)}
}

// list is one signed now that is good for a week.
func (b *bench) list(number int64) []byte {
	b.t.Helper()
	return b.service.listWith(b.t, &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: b.now.judged, NextUpdate: b.now.judged.Add(7 * 24 * time.Hour)})
}

func (b *bench) push(number int64, crl []byte) (fetch bool, err error) {
	return b.crls.pushed(&transport.ServiceRevoked{Number: number, URL: "http://localhost/crl", CRL: crl, Issuer: b.service.cert.Raw}, b.roots, b.now)
}

func (b *bench) check() Reason {
	return b.crls.check(b.crls.issuerOf(b.cred), transport.NewSerial(b.cred.SerialNumber), b.now)
}

func (b *bench) want(what string, reason Reason) {
	b.t.Helper()
	if got := b.check(); got != reason {
		b.t.Errorf("%s: %q, want %q", what, got, reason)
	}
}

// The life of a list through an outage.
func TestOutage(t *testing.T) {
	b := newBench(t)
	b.want("before the first list", NoList)
	if _, err := b.push(1, b.list(1)); err != nil {
		t.Fatal(err)
	}
	b.want("pushed", Admitted)
	b.pass(3 * benchAge)
	b.crls.confirm(b.now, true)
	b.want("long after, the link always up", Admitted)
	b.pass(benchAge)
	b.crls.confirm(b.now, false)
	b.want("the link down for crl_max_age", Admitted)
	b.pass(time.Second)
	b.want("the link down for longer", StaleList)
	b.crls.confirm(b.now, true)
	b.want("the link up again, the server silent", StaleList)
	old := b.list(1)
	b.pass(time.Minute)
	if _, err := b.push(1, nil); err != nil {
		t.Fatal(err)
	}
	b.want("the server names the same number", Admitted)

	b.pass(benchAge + time.Minute)
	b.crls.confirm(b.now, false)
	b.want("the next outage", StaleList)
	id := b.crls.issuerOf(b.cred)
	if err := b.crls.fetched(id, old, b.now); err != nil {
		t.Fatal(err)
	}
	b.want("somebody replays what was signed before", StaleList)
	if err := b.crls.fetched(id, b.list(2), b.now); err != nil {
		t.Fatal(err)
	}
	b.want("a new one is fetched", Admitted)
	b.pass(benchAge + time.Second)
	b.want("crl_max_age after it was signed", StaleList)
	late := b.list(3)
	b.pass(time.Hour)
	if err := b.crls.fetched(id, late, b.now); err != nil {
		t.Fatal(err)
	}
	b.want("one that was signed an hour before it is fetched", Admitted)
	b.pass(benchAge - time.Hour + time.Second)
	b.want("crl_max_age after that was signed", StaleList)
}

// An announced list that is not here yet ends the confirmation of the old one.
func TestAnAnnouncedListIsWaitedFor(t *testing.T) {
	b := newBench(t)
	b.push(1, b.list(1))
	if fetch, err := b.push(2, nil); !fetch || err != nil {
		t.Fatalf("announced: %v %v", fetch, err)
	}
	b.want("just announced", Admitted)
	b.pass(benchAge + time.Second)
	b.crls.confirm(b.now, true)
	b.want("announced crl_max_age ago, the link up", StaleList)
	id := b.crls.issuerOf(b.cred)
	if err := b.crls.fetched(id, b.list(2), b.now); err != nil {
		t.Fatal(err)
	}
	b.want("fetched", Admitted)
	b.pass(benchAge + time.Second)
	b.crls.confirm(b.now, true)
	b.want("current again, the link up", Admitted)
}

// Two messages of one link may overtake each other: the older one says nothing.
func TestAMessageThatWasOvertaken(t *testing.T) {
	b := newBench(t)
	b.push(2, b.list(2))
	if fetch, err := b.push(1, b.list(1)); fetch || err != nil {
		t.Errorf("overtaken: %v %v", fetch, err)
	}
	b.pass(2 * benchAge)
	b.crls.confirm(b.now, true)
	b.want("the link up", Admitted)
	if lists, _ := b.crls.status(b.now); lists[0].Number != 2 || lists[0].Problem != "" {
		t.Errorf("%+v", lists)
	}
}

// A message that cannot be used must not pass for silence.
func TestABadPushEndsTheConfirmation(t *testing.T) {
	for name, m := range map[string]func(b *bench) *transport.ServiceRevoked{
		"forged list": func(b *bench) *transport.ServiceRevoked {
			return &transport.ServiceRevoked{Number: 2, CRL: newDeployment(t, "demo").service.list(t, 2), Issuer: b.service.cert.Raw}
		},
		"forged issuer": func(b *bench) *transport.ServiceRevoked {
			d := newDeployment(t, "demo")
			return &transport.ServiceRevoked{Number: 2, CRL: d.service.list(t, 2), Issuer: d.service.cert.Raw}
		},
		"other number": func(b *bench) *transport.ServiceRevoked {
			return &transport.ServiceRevoked{Number: 3, CRL: b.list(2), Issuer: b.service.cert.Raw}
		},
		"older number after a new link": func(b *bench) *transport.ServiceRevoked {
			b.crls.confirm(b.now, false)
			return &transport.ServiceRevoked{Number: 0, CRL: b.list(0), Issuer: b.service.cert.Raw}
		},
		"expired": func(b *bench) *transport.ServiceRevoked {
			at := b.now.judged
			return &transport.ServiceRevoked{Number: 2, Issuer: b.service.cert.Raw, CRL: b.service.listWith(t,
				&x509.RevocationList{Number: big.NewInt(2), ThisUpdate: at.Add(-2 * time.Hour), NextUpdate: at.Add(-time.Hour)})}
		},
		"same number, unreadable": func(b *bench) *transport.ServiceRevoked {
			return &transport.ServiceRevoked{Number: 1, CRL: []byte("garbage"), Issuer: b.service.cert.Raw}
		},
		"bad address": func(b *bench) *transport.ServiceRevoked {
			return &transport.ServiceRevoked{Number: 2, URL: "file:///etc/passwd", CRL: b.list(2), Issuer: b.service.cert.Raw}
		},
		"no issuer": func(b *bench) *transport.ServiceRevoked {
			return &transport.ServiceRevoked{Number: 2, CRL: b.list(2)}
		},
	} {
		b := newBench(t)
		if _, err := b.push(1, b.list(1)); err != nil {
			t.Fatal(err)
		}
		if _, err := b.crls.pushed(m(b), b.roots, b.now); !errors.Is(err, errList) {
			t.Errorf("%s: %v", name, err)
		}
		b.want(name+": the old list serves on", Admitted)
		lists, problem := b.crls.status(b.now)
		if len(lists) != 1 || lists[0].Number != 1 || lists[0].Problem == "" && problem == "" {
			t.Errorf("%s: status %+v %q", name, lists, problem)
		}
		b.pass(benchAge + time.Second)
		b.crls.confirm(b.now, true)
		b.want(name+": but not for ever", StaleList)
	}
}

// A clock that stands still, or goes back, does not keep a list young.
func TestAClockThatStandsStill(t *testing.T) {
	b := newBench(t)
	b.push(1, b.list(1))
	b.now.steady = b.now.steady.Add(benchAge + time.Second)
	b.want("the clock stands", StaleList)
	b.now.judged = b.now.judged.Add(-time.Hour)
	b.want("the clock goes back", StaleList)
}

// What is held survives a restart with its age; a damaged or older file does
// no harm, and is never an admission.
func TestListsSurviveARestart(t *testing.T) {
	b := newBench(t)
	b.crls.load(b.roots, b.now)
	b.push(5, b.list(5))
	b.crls.flush(b.now)
	path := b.crls.path
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != fs.FileMode(0o600) {
		t.Fatalf("%v %v", info, err)
	}
	again := func() { b.crls = newCRLs(path, benchAge, discard) }

	b.pass(benchAge - time.Minute)
	again()
	b.crls.load(b.roots, b.now)
	b.want("after a restart", Admitted)
	if fetch, err := b.push(4, nil); fetch || err == nil {
		t.Errorf("an older number after a restart: %v %v", fetch, err)
	}
	b.pass(2 * time.Minute)
	b.want("its age counts on", StaleList)

	again()
	b.pass(-3 * benchAge)
	b.crls.load(b.roots, b.now)
	b.want("the clock went far back, the list is of the future", NoList)

	b.pass(3 * benchAge)
	again()
	b.push(6, b.list(6))
	b.crls.flush(b.now) // not loaded yet: it must not overwrite
	b.crls.load(b.roots, b.now)
	if lists, _ := b.crls.status(b.now); len(lists) != 1 || lists[0].Number != 6 {
		t.Errorf("an old file in the place of a new list: %+v", lists)
	}

	stranger := newDeployment(t, "demo")
	again()
	b.crls.load(stranger.roots, b.now)
	b.want("under another root", NoList)

	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(data); at += 7 {
		bad := append([]byte(nil), data...)
		bad[at] ^= 0x41
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		again()
		b.crls.load(b.roots, b.now)
		if lists, _ := b.crls.status(b.now); len(lists) > 0 && lists[0].Number != 5 {
			t.Fatalf("byte %d changed: %+v", at, lists)
		}
	}
}

func TestOnlySoManyIssuers(t *testing.T) {
	b := newBench(t)
	push := func(name string) error {
		ca := newCA(t, b.root, name, x509.ExtKeyUsageClientAuth)
		_, err := b.crls.pushed(&transport.ServiceRevoked{Number: 1, CRL: ca.list(t, 1), Issuer: ca.cert.Raw}, b.roots, b.now)
		return err
	}
	for range maxIssuers {
		if err := push("service CA"); err != nil { // the same name, other keys
			t.Fatal(err)
		}
	}
	if err := push("one more"); !errors.Is(err, errList) {
		t.Errorf("one more: %v", err)
	}
}

// The same through the door: refused with 503 and told why, until the server
// is heard of again. The gate says what to do.
func TestOutageAtTheDoor(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	cred := h.credential(t, "maps", "cr-1")
	live := h.client(cred)
	if status, _, err := fetch(live, "https://"+h.address+"/"); err != nil || status != http.StatusOK {
		t.Fatal(status, err)
	}
	h.source.set(func(s *source) { s.linked = false })
	eventually(t, "the link seen down", 3*time.Second, func() bool {
		h.gate.crls.mu.RLock()
		defer h.gate.crls.mu.RUnlock()
		for _, held := range h.gate.crls.held {
			return !held.linked
		}
		return false
	})
	h.admits(cred)
	// A credential that is still valid then; the gate's age of 24 h is over.
	long := h.template("maps", "cr-2", "place-2")
	long.NotAfter = time.Now().Add(72 * time.Hour)
	h.source.set(func(s *source) { s.ahead = 23 * time.Hour })
	second := h.service.leaf(t, long)
	h.admits(second)
	if s := h.gate.Status(); !s.Open || len(s.Problems) != 1 || !strings.Contains(s.Problems[0].Text, "serves until") {
		t.Errorf("before the end of crl_max_age: %+v", s)
	}
	h.source.set(func(s *source) { s.ahead = 25 * time.Hour })
	status, body, err := h.get(second)
	if err != nil || status != http.StatusServiceUnavailable || !strings.Contains(body, `"reason":"stale-list"`) {
		t.Errorf("%d %q %v", status, body, err)
	}
	s := h.gate.Status()
	if s.Open || len(s.Problems) != 1 || !strings.Contains(s.Problems[0].Text, "crl_max_age") || s.Problems[0].Next == "" || s.Refused[string(StaleList)] == 0 {
		t.Errorf("status: %+v", s)
	}
	h.source.set(func(s *source) { s.ahead, s.linked = 0, true })
	h.push(2)
	h.admits(second)
}

// No list at all: the gate admits nobody.
//
// req: L10
func TestNobodyPassesBeforeTheFirstList(t *testing.T) {
	h := buildHouse(t, Config{Upstream: "http://127.0.0.1:1"})
	status, body, err := h.get(h.credential(t, "maps", "cr-1"))
	if err != nil || status != http.StatusServiceUnavailable || !strings.Contains(body, `"reason":"no-list"`) {
		t.Errorf("%d %q %v", status, body, err)
	}
	if s := h.gate.Status(); s.Open || len(s.Problems) != 1 || s.Problems[0].Next == "" {
		t.Errorf("status: %+v", s)
	}
}

// A gate that restarts in an outage serves on with what it kept.
func TestARestartInAnOutage(t *testing.T) {
	h := newHouse(t)
	cred, revoked := h.credential(t, "maps", "cr-1"), h.credential(t, "maps", "cr-2")
	h.push(2, revoked)
	h.stop()
	h.source.set(func(s *source) { s.linked = false })
	g, err := New(h.gate.cfg, h.source, systemd.NewWatchdog(systemd.NewNotifier(discard), 0, discard), newLog(h.log))
	if err != nil {
		t.Fatal(err)
	}
	h.gate = g
	h.start(listen(t))
	h.admits(cred)
	if err := h.knock(h.config(revoked)); err == nil || !strings.Contains(err.Error(), "remote error: tls:") {
		t.Errorf("revoked before the restart: %v", err)
	}
}
