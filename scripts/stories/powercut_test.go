package stories

import (
	"math/rand/v2"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/open"
)

// Power cuts of a whole terminal: agent and chip are killed at random moments,
// in either order, while they open, enroll, serve and take in keys. No cut may
// count as a wrong guess, and every secret is served afterwards.

// A powered terminal is one whose chip can be cut off.
type powered struct {
	*terminal
	chip   *hsmtest.TPM
	random *rand.Rand
	id     string // a credential that it holds
}

func newPowered(t *testing.T, d *deployment) *powered {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	p := &powered{chip: hsmtest.NewTPM(t), random: rand.New(rand.NewPCG(seed, 0))}
	p.terminal = d.terminal("nav-001", open.Config{Kind: open.KindTPM, Path: p.chip.Socket})
	p.named()
	p.id = p.issue()
	return p
}

// cut ends agent and chip as a power cut does.
func (p *powered) cut() {
	if p.random.IntN(2) == 0 {
		p.daemon.kill()
		p.chip.Kill()
		return
	}
	p.chip.Kill() // the agent lives a moment longer
	<-time.After(time.Duration(p.random.IntN(3000)) * time.Microsecond)
	p.daemon.kill()
}

// round runs the terminal from power up to a power cut, and returns what the
// chip counts as wrong guesses after it.
func (p *powered) round(lockouts func() string) string {
	p.t.Helper()
	p.daemon = p.launch("kagimori", "run", "--config", p.config)
	switch p.random.IntN(3) {
	case 0: // while it starts
		<-time.After(time.Duration(p.random.IntN(150_000)) * time.Microsecond)
	case 1: // while it serves
		p.serves()
		<-time.After(time.Duration(p.random.IntN(20_000)) * time.Microsecond)
	case 2: // while it takes in another key: a key change, and the chip counts
		p.serves()
		var wg sync.WaitGroup
		wg.Go(func() { p.d.server.ask("", "kagimori-server", "credential", "issue", p.name, "--service", "maps") })
		<-time.After(time.Duration(p.random.IntN(120_000)) * time.Microsecond)
		defer wg.Wait()
	}
	p.cut()
	p.chip.Start()
	return lockouts()
}

// serves waits until key storage, store, identity and credential all work: the
// agent is connected under its own identity, and a program reaches the service.
func (p *powered) serves() {
	p.t.Helper()
	p.until("connected", func() bool {
		select {
		case <-p.daemon.done:
			p.t.Fatalf("the agent ended:\n%s", p.daemon.log)
		default:
		}
		return strings.Contains(p.ask("", "kagimori", "status", "--json").out, `"state": "connected"`)
	})
	if got := p.curl("/a"); !strings.HasPrefix(got, "map tile /a for nav-001") {
		p.t.Fatalf("the service answers %q\n%s", got, p.daemon.log)
	}
}

var lockoutCounter = regexp.MustCompile(`TPM2_PT_LOCKOUT_COUNTER: (0x[0-9A-Fa-f]+)`)

func (p *powered) lockouts() string {
	p.t.Helper()
	m := lockoutCounter.FindStringSubmatch(p.chip.Tool("tpm2_getcap", "properties-variable"))
	if m == nil {
		p.t.Fatal("the chip does not say what it counts")
	}
	return m[1]
}

// lockedByOthers has another program lock the chip by wrong guesses, for longer
// than any of this takes.
func (p *powered) lockedByOthers() {
	p.t.Helper()
	p.daemon.stop()
	c := p.chip
	c.Tool("tpm2_dictionarylockout", "-s", "-n", "4", "-t", "86400", "-l", "86400")
	c.Tool("tpm2_createprimary", "-Q", "-C", "o", "-G", "ecc", "-c", "primary.ctx")
	c.Tool("tpm2_create", "-Q", "-C", "primary.ctx", "-i", "/proc/self/comm", "-u", "o.pub", "-r", "o.priv", "-p", "right", "-a", "fixedtpm|fixedparent|userwithauth")
	c.Tool("tpm2_flushcontext", "-t")
	c.Tool("tpm2_load", "-Q", "-C", "primary.ctx", "-u", "o.pub", "-r", "o.priv", "-c", "o.ctx")
	c.Tool("tpm2_flushcontext", "-t")
	for range 20 { // some are answered with "try again"
		if strings.Contains(c.Tool("tpm2_getcap", "properties-variable"), "LOCKOUT_COUNTER: 0x4") {
			break
		}
		if _, err := c.TryTool("tpm2_unseal", "-Q", "-c", "o.ctx", "-p", "wrong"); err == nil {
			p.t.Fatal("a wrong password opens")
		}
		c.Tool("tpm2_flushcontext", "-t")
	}
	c.Kill()
	c.Start()
	if out := c.Tool("tpm2_getcap", "properties-variable"); !regexp.MustCompile(`inLockout: +1`).MatchString(out) {
		p.t.Fatalf("the chip is not locked:\n%s", out)
	}
}

// powerCuts cuts the power so often, and at last copies the keys away: that
// needs the security code as well.
func powerCuts(t *testing.T, cuts int, locked bool) {
	d := newDeployment(t, nil)
	p := newPowered(t, d)
	if locked {
		p.lockedByOthers()
	} else {
		p.daemon.stop()
	}
	before := p.lockouts()
	began := time.Now()
	for n := range cuts {
		if now := p.round(p.lockouts); now != before {
			t.Fatalf("cut %d: the chip counts %s wrong guesses, %s before", n, now, before)
		}
	}
	t.Logf("%d power cuts, %v; the chip counts %s wrong guesses as before", cuts, time.Since(began).Round(time.Millisecond), before)
	p.daemon = p.start("kagimori", p.terminal.config)
	p.serves()
	fresh := d.terminal("nav-002", sealedFile)
	fresh.spare()
	o := p.offer(p.socket("kagimori"))
	if out := fresh.verb(o.code+"\n", "kagimori", "keycopy", "fetch", p.copy, "--json"); !strings.Contains(out, p.id) {
		t.Errorf("the first credential is not among those that are copied:\n%s", out)
	}
	fresh.until("the copied key works", func() bool { return strings.HasPrefix(fresh.curl("/b"), "map tile /b for nav-001") })
}

func TestPowerCutsOfATerminal(t *testing.T)          { powerCuts(t, 10, false) }
func TestPowerCutsWhileTheChipIsLocked(t *testing.T) { powerCuts(t, 6, true) }

// The figure of the design.
func TestSoakPowerCutsOfATerminal(t *testing.T) { soakPowerCuts(t, false) }

func TestSoakPowerCutsWhileTheChipIsLocked(t *testing.T) { soakPowerCuts(t, true) }

func soakPowerCuts(t *testing.T, locked bool) {
	t.Helper()
	if os.Getenv("KAGIMORI_SOAK") == "" {
		t.Skip("takes ten minutes: make soak")
	}
	powerCuts(t, 1000, locked)
}
