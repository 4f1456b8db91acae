package stories

import (
	"os"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/hsm/open"
)

// Keys bound to the boot, and to a passphrase; TestDoctorFindsFaults lists them.

// measure is firmware that measures something into register 7.
func (p *patient) measure(digit string) {
	p.t.Helper()
	p.bus.Drop()
	p.chip.Tool("tpm2_pcrextend", "7:sha256="+strings.Repeat(digit, 64))
}

// bindToBoot has the keys bound to what is measured into register 7.
func bindToBoot(p *patient) {
	config := string(mustRead(p.t, p.config))
	if err := os.WriteFile(p.config, []byte(strings.Replace(config, "[hsm]\n", "[hsm]\nboot_registers = [7]\n", 1)), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// Nothing measures the boot; then something does, and then something else.
func bootChanged(p *patient) {
	bindToBoot(p)
	p.run()
	p.finds("boot-not-measured", 27)
	p.daemon.stop()
	p.measure("a")
	p.run()
	p.healthy()
	p.daemon.stop()
	p.measure("b")
	p.run()
	if g := p.finds("boot-changed", 26); !strings.Contains(g.Findings[0].Text, "PCRs [7]") {
		p.t.Errorf("it does not tell which register: %q", g.Findings[0].Text)
	}
	// The system that it was sealed to boots again; the daemon has never stopped.
	p.chip.Kill()
	p.chip.Start()
	p.measure("a")
	p.healthy()
}

// Key storage waits for its passphrase after each start.
func TestDoctorFindsThePassphraseMissing(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "nav-001")
	config := m.config("kagimori", "", "[hsm]\nkind = \""+open.KindFile+"\"\n")
	d := m.start("kagimori", config)
	m.healthy()
	m.verb("correct horse battery staple\n", "kagimori", "passphrase", "set")
	m.healthy()
	d.stop()
	m.start("kagimori", config)
	m.finds("passphrase", 28)
	m.verb("correct horse battery staple\n", "kagimori", "unlock")
	m.healthy()
	m.sound()
}
