package stories

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kagimori/kagimori/hsm/hsmtest"
)

// Fault after fault in one run: each maps to its class and exit code, the daemon
// starts and answers in each, and comes back by itself when the fault is gone.

// cure is how long a fault may take to show and to go: a chip that does not
// answer has 20 s for a command.
const cure = 90 * time.Second

// A patient is a terminal on an emulated chip, behind a bus that can misbehave.
type patient struct {
	*machine
	chip *hsmtest.TPM
	bus  *hsmtest.Bus
	// answer misbehaves while it is set.
	answer atomic.Pointer[hsmtest.Answer]
	config string
	daemon *daemon
}

func newPatient(t *testing.T) *patient {
	t.Helper()
	p := &patient{machine: newMachine(t, "nav-001"), chip: hsmtest.NewTPM(t)}
	p.bus = hsmtest.NewBus(t, p.chip.Socket, func(command []byte, next func([]byte) []byte) []byte {
		if a := p.answer.Load(); a != nil {
			return (*a)(command, next)
		}
		return next(command)
	})
	p.plug(p.bus.Socket)
	p.config = p.machine.config("kagimori", "", fmt.Sprintf("[hsm]\nkind = \"tpm\"\npath = %q\n[keycopy]\nlisten = \"127.0.0.1:%d\"", p.path("tpm"), freePort(t)))
	return p
}

// plug puts a chip where the configuration looks for it.
func (p *patient) plug(socket string) {
	p.t.Helper()
	os.Remove(p.path("tpm"))
	if err := os.Symlink(socket, p.path("tpm")); err != nil {
		p.t.Fatal(err)
	}
}

func (p *patient) run() { p.daemon = p.start("kagimori", p.config) }

// diagnosis is what `kagimori doctor --json` says.
type diagnosis struct {
	Daemon   bool `json:"daemon"`
	Exit     int  `json:"exit"`
	Findings []struct {
		Class, Severity, Text, Cause, Consequence, Next string
	} `json:"findings"`
	Power []string `json:"if_power_failed_now"`
}

func (g *diagnosis) classes() (list []string) {
	for _, f := range g.Findings {
		if f.Severity != "note" {
			list = append(list, f.Class)
		}
	}
	return list
}

func (m *machine) doctor(args ...string) (g diagnosis, code int) {
	m.t.Helper()
	r := m.run("", "kagimori", append([]string{"--socket", m.socket("kagimori"), "doctor", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(r.out), &g); err != nil {
		m.t.Fatalf("doctor: exit %d, %v\n%s%s", r.code, err, r.out, r.err)
	}
	if g.Exit != r.code {
		m.t.Errorf("doctor ended with %d and says %d", r.code, g.Exit)
	}
	return g, r.code
}

// finds waits until the doctor's worst finding is of the class, and sees to it
// that the daemon answers meanwhile. "" waits for health.
func (m *machine) finds(class string, code int) (g diagnosis) {
	m.t.Helper()
	deadline := time.NewTimer(cure)
	defer deadline.Stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		var got int
		g, got = m.doctor()
		first := ""
		if c := g.classes(); len(c) > 0 {
			first = c[0]
		}
		if got == code && first == class {
			break
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			m.t.Fatalf("the doctor says %d %+v, want %d %q", got, g.Findings, code, class)
		}
	}
	if !strings.Contains(m.verb("", "kagimori", "status", "--json"), `"program"`) || !g.Daemon {
		m.t.Errorf("the daemon does not answer while %q", class)
	}
	for _, f := range g.Findings {
		if f.Text == "" || f.Cause == "" || f.Consequence == "" || f.Next == "" {
			m.t.Errorf("%s: something is not said: %+v", class, f)
		}
	}
	return g
}

func (m *machine) healthy() { m.t.Helper(); m.finds("", 0) }

// sound ends a patient's story: what happened is told, and nothing is broken.
func (m *machine) sound() {
	m.t.Helper()
	m.until("the log is sound", func() bool {
		return m.run("", "kagimori", "--socket", m.socket("kagimori"), "audit", "verify").code == 0
	})
}

func TestDoctorFindsFaults(t *testing.T) {
	for name, fault := range map[string]func(*patient){
		"chip killed":    chipKilled,
		"EINTR storm":    interrupted,
		"RETRY storm":    retryStorm,
		"lockout":        lockedOut,
		"owner password": ownerPassword,
		"chip swapped":   chipSwapped,
		"device busy":    deviceBusy,
		"store damaged":  storeDamaged,
		"older store":    storeOlder,
		"second copy":    storeFellBack,
		"counter gone":   counterGone,
		"disk full":      diskFull,
		"daemon down":    daemonDown,
		"PIN":            wrongPINs,
		"PCR extended":   bootChanged,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPatient(t)
			fault(p)
			p.sound()
		})
	}
}

// swtpm dies under a running daemon, and comes back.
func chipKilled(p *patient) {
	p.run()
	p.healthy()
	p.chip.Kill()
	p.finds("chip-absent", 20)
	p.chip.Start()
	p.healthy()
	// And at its start.
	p.daemon.stop()
	p.chip.Kill()
	os.Remove(p.path("tpm"))
	p.run()
	p.finds("chip-absent", 20)
	p.chip.Start()
	p.plug(p.bus.Socket)
	p.healthy()
}

// Signals rain on the daemon while it uses the chip: nobody notices.
func interrupted(p *patient) {
	p.run()
	p.healthy()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 20_000 {
			p.daemon.cmd.Process.Signal(syscall.SIGURG)
			p.daemon.cmd.Process.Signal(syscall.SIGWINCH)
		}
	}()
	for range 3 {
		if g, code := p.doctor(); code != 0 {
			p.t.Errorf("%d %+v", code, g.Findings)
		}
	}
	<-done
	p.healthy()
}

// A chip that answers RETRY, YIELDED or TESTING a few times is asked again; one
// that answers nothing else is silent, until it stops.
func retryStorm(p *patient) {
	p.run()
	p.healthy()
	var n atomic.Int64
	patiently := hsmtest.Answer(func(command []byte, next func([]byte) []byte) []byte {
		if i := n.Add(1); i%4 != 0 {
			return hsmtest.Fail([]uint32{0x922, 0x908, 0x90A}[i%4-1]) // TPM_RC_RETRY, YIELDED, TESTING
		}
		return next(command)
	})
	p.answer.Store(&patiently)
	p.healthy()
	storm := hsmtest.Answer(func([]byte, func([]byte) []byte) []byte { return hsmtest.Fail(0x922) })
	p.answer.Store(&storm)
	p.finds("chip-silent", 22)
	p.answer.Store(nil)
	p.healthy()
}

// Another program locks the chip: that is told with counter, limit and time, our
// own keys go on, and the verb ends it.
func lockedOut(p *patient) {
	p.run()
	p.healthy()
	p.bus.Drop() // an emulator has one client at a time
	p.chip.Tool("tpm2_dictionarylockout", "--setup-parameters", "--max-tries=3", "--recovery-time=600", "--lockout-recovery-time=600")
	p.chip.Tool("tpm2_nvdefine", "0x1500016", "-C", "o", "-s", "8", "-a", "authread|authwrite", "-p", "secret")
	for range 4 {
		p.chip.TryTool("tpm2_nvread", "0x1500016", "-C", "0x1500016", "-P", "guess")
	}
	g := p.finds("locked-out", 24)
	if text := g.Findings[0].Text; !strings.Contains(text, "the limit is 3") || !strings.Contains(text, "10 minutes") {
		p.t.Errorf("counter, limit and time: %q", text)
	}
	if out := p.verb("", "kagimori", "tpm", "show"); !strings.Contains(out, "3 of 3") {
		p.t.Errorf("tpm show: %s", out)
	}
	p.daemon.stop()
	p.run() // the store opens all the same
	p.finds("locked-out", 24)
	p.refused(6, "nothing was tried", "guess\n", "kagimori", "tpm", "reset-lockout")
	p.verb("", "kagimori", "tpm", "reset-lockout", "--no-password")
	p.healthy()
	p.verb("", "kagimori", "tpm", "set-lockout", "--no-password")
	p.bus.Drop()
	p.chip.Tool("tpm2_changeauth", "-c", "lockout", "right")
	p.healthy()
	p.refused(4, "nothing was tried", "", "kagimori", "tpm", "reset-lockout", "--no-password")
	p.refused(4, "wrong lockout password", "wrong\n", "kagimori", "tpm", "reset-lockout")
	out := p.verb("", "kagimori", "audit", "list")
	if !strings.Contains(out, "lockout-reset") || !strings.Contains(out, "limit 32, recovery 7200 s, reset 86400 s") {
		p.t.Errorf("the log does not tell: %s", out)
	}
}

// Wrong PINs lock PINs, by the chip's limits, and nothing else.
func wrongPINs(p *patient) {
	p.run()
	p.verb("", "kagimori", "tpm", "set-lockout", "--no-password", "--tries", "4", "--recovery", "10m")
	p.verb("2468\n", "kagimori", "pin", "set")
	p.refused(2, "no pin given", "", "kagimori", "keycopy", "offer")
	for range 4 {
		p.refused(4, "wrong PIN", "1357\n", "kagimori", "keycopy", "offer")
	}
	p.refused(4, "10m0s", "2468\n", "kagimori", "keycopy", "offer")
	p.finds("locked-out", 24)
	p.verb("", "kagimori", "tpm", "reset-lockout", "--no-password")
	p.healthy()
	p.refused(6, "no security code", "2468\n", "kagimori", "keycopy", "offer") // past the PIN: it is not provisioned
	p.healthy()
}

// Somebody owns the chip, and no root key of ours stands in it.
func ownerPassword(p *patient) {
	p.run()
	p.healthy()
	p.daemon.stop()
	p.bus.Drop()
	p.chip.Tool("tpm2_evictcontrol", "-C", "o", "-c", "0x81000001")
	p.chip.Tool("tpm2_changeauth", "-c", "owner", "theirs")
	p.run()
	p.finds("owner-password", 23)
	p.bus.Drop()
	p.chip.Tool("tpm2_changeauth", "-c", "owner", "-p", "theirs", "")
	p.healthy()
}

// The board got another chip; the old one comes back.
func chipSwapped(p *patient) {
	p.run()
	p.healthy()
	p.daemon.stop()
	p.plug(hsmtest.NewTPM(p.t).Socket)
	p.run()
	p.finds("root-replaced", 25)
	p.plug(p.bus.Socket)
	p.healthy()
}

// Another program holds the chip to itself.
func deviceBusy(p *patient) {
	p.bus.Drop()
	other, err := net.Dial("unix", p.chip.Socket)
	if err != nil {
		p.t.Fatal(err)
	}
	defer other.Close()
	p.plug(p.chip.Socket)
	p.run()
	p.finds("chip-busy", 21)
	other.Close()
	p.healthy()
}

// Nobody answers at the socket: the verb looks alone and changes nothing.
func daemonDown(p *patient) {
	p.run()
	p.healthy()
	p.daemon.stop()
	before := files(p.t, p.state())
	g, code := p.doctor("--config", p.config)
	if code != 42 || g.Daemon || !slices.Equal(g.classes(), []string{"daemon-down"}) {
		p.t.Errorf("%d %+v", code, g)
	}
	if after := files(p.t, p.state()); !mapsEqual(before, after) {
		p.t.Error("looking changed something")
	}
	p.plug(p.path("nothing"))
	if g, code := p.doctor("--config", p.config); code != 20 || !slices.Equal(g.classes(), []string{"chip-absent", "daemon-down"}) {
		p.t.Errorf("%d %+v", code, g)
	}
	p.plug(p.bus.Socket)
	p.run()
	p.healthy()
}

func mapsEqual(a, b map[string][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for k := range a {
		if string(a[k]) != string(b[k]) {
			return false
		}
	}
	return true
}
