package stories

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/open"
)

// Verbs that need a chip, and those about other people's decisions, on a disk
// that is full at every write of them.

// An update of a machine whose keys are bound to its boot.
func TestFullDiskOfAnUpdate(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	if err := os.Remove(p.path("tpm")); err != nil { // a link, not a file to be kept
		t.Fatal(err)
	}
	disk := tight(t, p.machine)
	p.plug(p.bus.Socket)
	if err := os.Mkdir(p.state(), 0o700); err != nil {
		t.Fatal(err)
	}
	bindToBoot(p)
	p.measure("a")
	p.run()
	opens := func() { p.until("it opens its storage", func() bool { return p.open("kagimori") }) }
	opens()
	slots := func() (names []string) {
		var s struct{ Slots []struct{ Name string } }
		p.query(&s, "kagimori", "boot", "show")
		for _, x := range s.Slots {
			names = append(names, x.Name)
		}
		return names
	}
	var was struct{ Registers []struct{ Value string } }
	p.query(&was, "kagimori", "boot", "show")
	squeeze := func(want []string, args ...string) (full int) {
		t.Helper()
		before := slots()
		full = disk.squeeze(strings.Join(args, " "), func() result { return p.ask("", "kagimori", args...) }, func(r result) {
			if got := slots(); !slices.Equal(got, before) && !slices.Equal(got, want) {
				t.Errorf("%v failed and left slots %v: %s", args, got, r.err)
			}
		})
		if got := slots(); !slices.Equal(got, want) {
			t.Errorf("after %v: slots %v, want %v", args, got, want)
		}
		return full
	}
	prepared, confirmed := 0, 0
	for range 3 { // what is in stock is used up by and by
		prepared += squeeze([]string{"boot-next", "boot"}, "boot", "prepare", "--register", "7="+was.Registers[0].Value)
		confirmed += squeeze([]string{"boot"}, "boot", "confirm")
	}
	if prepared == 0 || confirmed == 0 {
		t.Errorf("the disk was full %d times for prepare, %d times for confirm: the story proves nothing", prepared, confirmed)
	}

	// What the chip has done is done: the log tells of it when there is room.
	disk.size(disk.used())
	for range 60 {
		p.verb("", "kagimori", "tpm", "reset-lockout", "--no-password")
	}
	disk.size(roomy)
	p.until("the audit log tells of each", func() bool {
		out := p.verb("", "kagimori", "audit", "list", "--json")
		return strings.Count(out, "lockout-reset") == 60 && strings.Contains(out, "boot-prepared") && strings.Contains(out, "boot-confirmed")
	})
	p.daemon.kill()
	p.run()
	opens()
	p.machine.sound()
}

// The chip of a terminal was exchanged: what the server's administrators decide
// about it, and about security codes, they decide all or not at all.
func TestFullDiskOfDecisions(t *testing.T) {
	t.Parallel()
	d, disk, _ := tightDeployment(t)
	m := d.terminal("nav-001", open.Config{Kind: open.KindTPM, Path: hsmtest.NewTPM(t).Socket})
	m.named()
	id := m.issue()
	m.until("the store key is wrapped for the server", func() bool { return m.recovery().Wrap > 0 })
	m.daemon.stop()
	other := hsmtest.NewTPM(t)
	config := strings.Replace(string(mustRead(t, m.config)), m.hsm.Path, other.Socket, 1)
	if err := os.WriteFile(m.config, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	m.daemon = m.start("kagimori", m.config)
	m.verb("", "kagimori", "recovery", "start")
	d.bundle("again", "terminal", "reenroll", "nav-001")
	d.provision(m.machine, "kagimori", "again")
	m.connected()
	request := d.asked(m.machine, "nav-001")
	m.daemon.stop() // so that nobody takes the key meanwhile

	decided := func() string {
		var s struct{ Recovery struct{ State string } }
		d.server.query(&s, "kagimori-server", "recovery", "show", request)
		return s.Recovery.State
	}
	for _, c := range []struct{ args, state string }{
		{"recovery deny " + request, "denied"}, {"recovery approve " + request, "approved"},
		{"group rotate default", "approved"}, {"group retire default --epoch 1 --force", "approved"},
		{"group resume default", "approved"},
	} {
		before := decided()
		if disk.squeeze(c.args, func() result { return d.server.ask("", "kagimori-server", strings.Fields(c.args)...) }, func(r result) {
			if got := decided(); got != before {
				t.Errorf("%s failed, and the request is %s: %s", c.args, got, r.err)
			}
		}) == 0 {
			t.Errorf("%s needs no room: the story proves nothing", c.args)
		}
		if got := decided(); got != c.state {
			t.Errorf("after %s it is %s", c.args, got)
		}
		disk.sound()
	}
	m.daemon = m.start("kagimori", m.config)
	m.untilCodes(2)
	m.until("the credential is back", func() bool { return strings.Contains(m.curl("/a"), id) })
}
