package stories

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// soak skips what takes too long for `make test`.
func soak(t *testing.T, takes string) {
	t.Helper()
	if os.Getenv("KAGIMORI_SOAK") == "" {
		t.Skipf("takes %s: make soak", takes)
	}
}

// The module's own suite on a 32-bit ARM kernel, through the device nodes of its
// resource manager.
func TestSoakSuiteOnABoard(t *testing.T) {
	soak(t, "one to four minutes")
	e := newEmulator(t)
	e.boot()
	r := e.run(10*time.Minute, "", []string{"KAGIMORI_TPM_NODES=/dev/tpmrm0,/dev/tpmrm1"}, "/bin/tpm.test", "-test.run=TestSoakDeviceNodes", "-test.v")
	if r.code != 0 || strings.Contains(r.out, "--- SKIP") || strings.Count(r.out, "--- PASS: TestSoakDeviceNodes/") < 15 {
		t.Errorf("exit %d\n%s%s", r.code, r.out, r.err)
	}
	t.Logf("%d checks passed", strings.Count(r.out, "--- PASS: TestSoakDeviceNodes/"))
}

// boardCuts is how often the power goes in TestSoakBoardLosesPower.
const boardCuts = 20

// A terminal on a 32-bit ARM kernel with a real /dev/tpmrm0 obeys commands while
// its power is cut again and again: the whole machine is gone at once, page cache
// and chip's memory with it. It comes back each time, opens its store, and has
// every credential that the server was told of.
//
// req: L7
func TestSoakBoardLosesPower(t *testing.T) {
	soak(t, "ten minutes")
	d := outside(t)
	e := newEmulator(t)
	e.boot()
	e.launch("/bin/kagimori", "run")
	e.answers()
	b := d.bundle("nav-001", "terminal", "add", "nav-001")
	text, err := os.ReadFile(b.Bundle)
	if err != nil {
		t.Fatal(err)
	}
	e.put("/tmp/nav-001.bundle", text)
	e.verb(b.Passphrase+"\n", "provision", "/tmp/nav-001.bundle")
	e.connected()
	status := e.status()
	if status.KeyStorage.Level != "tpm" {
		t.Errorf("level %q, want tpm", status.KeyStorage.Level)
	}
	orders := d.issueOn("nav-001")
	defer orders.stop()
	for round := range boardCuts {
		more := orders.count() + 1
		e.until("another credential", func() bool { return orders.count() >= more })
		cut := time.NewTimer(time.Duration(rand.IntN(2000)) * time.Millisecond) // while the next ones are made
		<-cut.C
		acknowledged := orders.all()
		e.powerCut()
		e.boot()
		e.launch("/bin/kagimori", "run")
		e.answers()
		e.connected()
		if s := e.status(); s.Device != status.Device || s.KeyStorage.Level != "tpm" {
			t.Fatalf("round %d: %+v", round, s)
		}
		held := e.verb("", "credential", "list", "--json")
		for _, id := range acknowledged {
			if !strings.Contains(held, id) {
				t.Fatalf("round %d: %s was acknowledged and is lost\n%s", round, id, held)
			}
		}
	}
	t.Logf("%d power cuts, %d credentials acknowledged, none lost", boardCuts, orders.count())
}

// outside is a management server on the machine around the board, known by the
// address that the emulator gives that machine. There is no gate.
func outside(t *testing.T) *deployment {
	t.Helper()
	d := &deployment{t: t, server: newMachine(t, "server"), bundles: map[string]made{}}
	d.mqtt, d.http = d.address(d.server, 8883), d.address(d.server, 8880)
	d.serverConfig = d.server.config("kagimori-server", "", fmt.Sprintf("[mqtt]\nlisten = %q\n[http]\nlisten = %q", d.mqtt, d.http))
	d.initialise(strings.Replace(d.mqtt, "127.0.0.1", "10.0.2.2", 1))
	d.serve()
	return d
}

// orders are credentials that are issued one after the other, each for a service
// of its own, whatever happens to the terminal meanwhile.
type orders struct {
	mu   sync.Mutex
	ids  []string // guarded by mu: those that the terminal has acknowledged
	stop func()
}

func (d *deployment) issueOn(name string) *orders {
	o := new(orders)
	ctx, cancel := context.WithCancel(d.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		server := func(args ...string) result {
			return d.server.run("", "kagimori-server", append([]string{"--socket", d.server.socket("kagimori-server")}, args...)...)
		}
		for n := 0; ctx.Err() == nil; n++ {
			service := "s-" + itoa(n)
			if r := server("gate", "add", service, "--dns", service+".test", "--endpoint", "127.0.0.1:1", "--out", d.server.path(service)); r.code != 0 {
				d.t.Errorf("add service %s: %s", service, r.err)
				return
			}
			r := server("credential", "issue", name, "--service", service, "--wait", "--json")
			if id := regexp.MustCompile(`cr-[a-z0-9]+`).FindString(r.out); r.code == 0 && id != "" {
				o.mu.Lock()
				o.ids = append(o.ids, id)
				o.mu.Unlock()
			}
		}
	})
	o.stop = func() { cancel(); wg.Wait() }
	return o
}

func (o *orders) all() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.ids)
}

func (o *orders) count() int { return len(o.all()) }

// boardStatus is what this story looks at of the agent's status.
type boardStatus struct {
	Device      string
	KeyStorage  struct{ Level string } `json:"key_storage"`
	Link        struct{ State string }
	Credentials struct{ Total int }
}

func (e *emulator) status() (s boardStatus) {
	e.t.Helper()
	if err := json.Unmarshal([]byte(e.verb("", "status", "--json")), &s); err != nil {
		e.t.Fatal(err)
	}
	return s
}

// answers waits for the daemon.
func (e *emulator) answers() {
	e.t.Helper()
	e.until("the daemon answers", func() bool { return e.run(patience, "", nil, "/bin/kagimori", "status").code == 0 })
}

func (e *emulator) connected() {
	e.t.Helper()
	e.until("connected to the server", func() bool { return e.status().Link.State == "connected" })
}
