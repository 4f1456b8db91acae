package stories

import (
	"os"
	"strings"
	"testing"
)

// Each verb of terminal and gate that writes, on a disk that is full at every
// write of it.

// tightTerminal is a terminal on a tight disk that runs already. The agent's key
// storage is on it too.
func (d *deployment) tightTerminal(name string) (*terminal, *tightDisk) {
	d.t.Helper()
	m := d.terminal(name, sealedFile)
	m.daemon.stop()
	if err := os.RemoveAll(m.state()); err != nil {
		d.t.Fatal(err)
	}
	for _, left := range []string{m.hsm.Path, m.socket("kagimori")} {
		if err := os.RemoveAll(left); err != nil {
			d.t.Fatal(err)
		}
	}
	disk := tight(d.t, m.machine)
	if err := os.Mkdir(m.state(), 0o700); err != nil {
		d.t.Fatal(err)
	}
	return m, disk
}

// starts starts the daemon on a full disk, where it runs and says what is wrong,
// and waits until it found out by itself that there is room.
func (k *tightDisk) starts(program, config string) *daemon {
	k.t.Helper()
	k.size(k.used())
	d := k.m.start(program, config)
	k.m.until("it says that the disk is full", func() bool {
		return strings.Contains(k.m.verb("", program, "status", "--json"), "no space left on device")
	})
	k.size(roomy)
	k.m.until("it opens its storage", func() bool { return k.m.open(program) })
	return d
}

func (m *machine) open(program string) bool {
	status := m.verb("", program, "status", "--json")
	_, keys, _ := strings.Cut(status, `"key_storage"`)
	return strings.Contains(strings.SplitN(keys, "}", 2)[0], `"open": true`)
}

func TestFullDiskOfATerminal(t *testing.T) {
	d := newDeployment(t, nil)
	old, disk := d.tightTerminal("nav-001")
	old.daemon = disk.starts("kagimori", old.config)
	b := d.bundle("nav-001", "terminal", "add", "nav-001")
	disk.squeeze("provision", func() result {
		return old.ask(b.Passphrase+"\n", "kagimori", "provision", b.Bundle)
	}, nothing)
	old.connected()
	id := old.issue()
	old.daemon.stop()
	disk.size(disk.used()) // what it has it can use, also from a full disk
	old.daemon = old.start("kagimori", old.config)
	old.connected()
	old.until("the key works", func() bool { return strings.Contains(old.curl("/a"), id) })
	disk.size(roomy)

	fresh, space := d.tightTerminal("nav-002")
	fresh.daemon = fresh.start("kagimori", fresh.config)
	fresh.spare()
	disk.offers(old)
	var o *offer
	full := space.squeeze("keycopy fetch", func() result {
		if o != nil {
			old.verb("", "kagimori", "keycopy", "disarm") // what has failed could go on: a new code ends it
			<-o.done
		}
		o = old.offer(old.socket("kagimori"))
		return fresh.ask(o.code+"\n", "kagimori", "keycopy", "fetch", old.copy)
	}, nothing)
	if full == 0 {
		t.Error("fetch needs no room: the story proves nothing")
	}
	<-o.done
	for _, m := range []*terminal{old, fresh} {
		m.daemon.kill()
		m.daemon = m.start("kagimori", m.config)
		m.until("the key works", func() bool { return strings.Contains(m.curl("/b"), id) })
	}
}

// The verbs of a terminal that need no partner. Those that change one small thing
// may find room in what the store has in stock.
func TestFullDiskOfSmallVerbs(t *testing.T) {
	m := newMachine(t, "box")
	config := m.config("kagimori", "", "")
	disk := tight(t, m)
	if err := os.Mkdir(m.state(), 0o700); err != nil {
		t.Fatal(err)
	}
	run := m.start("kagimori", config)
	m.until("it opens its storage", func() bool { return m.open("kagimori") })
	file := m.path("box.recovery")
	for _, c := range []struct {
		stdin string
		args  []string
		never string // a file that a failure may not leave
	}{
		{"4711-0815\n", []string{"pin", "set"}, ""},
		{"", []string{"pin", "clear"}, ""},
		{"correct horse battery\n", []string{"passphrase", "set"}, ""},
		{"", []string{"passphrase", "remove"}, ""},
		{"", []string{"recovery", "export", file}, file},
	} {
		disk.squeeze(strings.Join(c.args, " "), func() result {
			return m.ask(c.stdin, "kagimori", c.args...)
		}, func(r result) {
			if _, err := os.Stat(c.never); c.never != "" && err == nil {
				t.Errorf("%v failed and left %s", c.args, c.never)
			}
			if !m.open("kagimori") {
				t.Errorf("%v: key storage is not open any more", c.args)
			}
		})
	}
	full := 0
	for n := 0; n < 40 && full == 0; n++ { // until what is in stock is used up
		full = disk.squeeze("keycopy unlock", func() result { return m.ask("", "kagimori", "keycopy", "unlock") }, nothing)
	}
	if full == 0 {
		t.Error("unlock needs no room: the story proves nothing")
	}
	run.kill()
	m.start("kagimori", config)
	m.until("it opens its storage again", func() bool { return m.open("kagimori") })
}

// offers offers keys on a full disk, until the log of that needs a page more
// than the store has in stock.
func (k *tightDisk) offers(m *terminal) {
	k.t.Helper()
	k.size(k.used())
	defer k.size(roomy)
	for n := range 60 {
		o := &offer{daemon: m.launch("kagimori", "--socket", m.socket("kagimori"), "keycopy", "offer")}
		m.until("a code is shown, or it ends", func() bool {
			select {
			case <-o.done:
				return true
			default:
				return codePattern.MatchString(o.log.String())
			}
		})
		if codePattern.MatchString(o.log.String()) {
			m.verb("", "kagimori", "keycopy", "disarm")
			<-o.done
			continue
		}
		if r := (result{err: o.log.String(), code: o.cmd.ProcessState.ExitCode()}); !namesDisk(r) {
			k.t.Errorf("offer on a full disk: exit %d\n%s", r.code, r.err)
		}
		k.t.Logf("the disk was full at offer %d", n)
		return
	}
	k.t.Log("the disk was never full for an offer")
}

func TestFullDiskOfAGate(t *testing.T) {
	d, _, disk := tightDeployment(t)
	d.gateRun.stop()
	if err := os.RemoveAll(d.gate.state()); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(d.gate.state(), 0o700); err != nil {
		t.Fatal(err)
	}
	b := d.bundle("fresh-gate", "terminal", "reenroll", "gate-maps")
	d.gateRun = disk.starts("kagimori-gate", d.gateConfig)
	disk.squeeze("provision", func() result {
		return d.gate.ask(b.Passphrase+"\n", "kagimori-gate", "provision", b.Bundle)
	}, nothing)
	d.gateServes()
}
