package stories

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// Faults of the store and of what it lies on; TestDoctorFindsFaults lists them.

// The store file is not what it was, and no copy is; it is put back.
func storeDamaged(p *patient) {
	p.run()
	p.healthy()
	p.daemon.stop()
	good := map[string][]byte{}
	for _, path := range p.storeFiles() {
		good[path] = mustRead(p.t, path)
		bad := slices.Clone(good[path])
		for i := range bad[:len(bad)/2] {
			bad[i] ^= 0x5A
		}
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			p.t.Fatal(err)
		}
	}
	p.run()
	p.finds("store-damaged", 30)
	for path, b := range good {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			p.t.Fatal(err)
		}
	}
	p.healthy()
}

// storeFiles are the store and its second copy.
func (m *machine) storeFiles() (list []string) {
	for _, name := range []string{"kagimori.db", "kagimori.db.copy"} {
		if _, err := os.Stat(filepath.Join(m.state(), name)); err == nil {
			list = append(list, filepath.Join(m.state(), name))
		}
	}
	return list
}

// A small disk fills up, and is freed. That it is in memory is said all along.
func diskFull(p *patient) {
	if os.Geteuid() != 0 {
		p.t.Skip("needs root, to mount a small disk")
	}
	if err := os.MkdirAll(p.state(), 0o700); err != nil {
		p.t.Fatal(err)
	}
	if err := syscall.Mount("small", p.state(), "tmpfs", 0, "size=4m,mode=0700"); err != nil {
		p.t.Skipf("cannot mount a small disk: %v", err)
	}
	p.t.Cleanup(func() { syscall.Unmount(p.state(), syscall.MNT_DETACH) })
	p.run()
	p.finds("flash-risk", 35)
	ballast := filepath.Join(p.state(), "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		p.t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	f.Close()
	p.finds("disk-full", 34)
	// What needs no more room is still done; what does is refused in words.
	if r := p.machine.run("1234\n", "kagimori", "--socket", p.socket("kagimori"), "pin", "set"); r.code != 0 {
		r.tells(p.t, "a PIN on a full disk", 8, "room")
	}
	if err := os.Remove(ballast); err != nil {
		p.t.Fatal(err)
	}
	p.finds("flash-risk", 35)
	p.verb("1234\n", "kagimori", "pin", "set")
	p.finds("flash-risk", 35)
}

// Yesterday's files are put back: they are refused until the newest are.
func storeOlder(p *patient) {
	p.run()
	p.healthy()
	p.daemon.stop()
	older := p.keep()
	p.run()
	p.verb("2468\n", "kagimori", "pin", "set")
	p.verb("1357\n", "kagimori", "pin", "set")
	p.healthy()
	p.daemon.stop()
	newest := p.keep()
	putBack(p.t, older)
	p.run()
	p.finds("store-older", 31)
	putBack(p.t, newest)
	p.healthy()
}

// keep reads the store's files; putBack writes them.
func (m *machine) keep() map[string][]byte {
	kept := map[string][]byte{}
	for _, path := range m.storeFiles() {
		kept[path] = mustRead(m.t, path)
	}
	return kept
}

func putBack(t *testing.T, kept map[string][]byte) {
	t.Helper()
	for path, b := range kept {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Only the store file is damaged: its second copy takes its place, and that is
// said and logged.
func storeFellBack(p *patient) {
	p.run()
	p.verb("2468\n", "kagimori", "pin", "set")
	p.daemon.stop()
	path := filepath.Join(p.state(), "kagimori.db")
	if err := os.WriteFile(path, make([]byte, 64<<10), 0o600); err != nil {
		p.t.Fatal(err)
	}
	p.run()
	g := p.finds("store-fallback", 32)
	if text := g.Findings[0].Text; !strings.Contains(text, "broken") {
		p.t.Errorf("it does not tell where the broken file is: %q", text)
	}
	if out := p.verb("", "kagimori", "audit", "list"); !strings.Contains(out, "fell-back") || !strings.Contains(out, "pin-set") {
		p.t.Errorf("the log does not tell: %s", out)
	}
	p.daemon.stop()
	p.run()
	p.finds("store-fallback", 32)
	if out := p.verb("", "kagimori", "audit", "list"); strings.Count(out, "fell-back") != 1 {
		p.t.Errorf("one loss, and the log tells %s", out)
	}
}

// Somebody took the counter out of the chip.
func counterGone(p *patient) {
	p.run()
	p.healthy()
	p.daemon.stop()
	p.bus.Drop()
	p.chip.Tool("tpm2_nvundefine", "-C", "o", "0x1804B00")
	p.run()
	p.finds("counter-gone", 29)
	p.verb("", "kagimori", "recovery", "accept-older", "--yes")
	g := p.finds("store-fallback", 32)
	if slices.Contains(g.classes(), "counter-gone") {
		p.t.Errorf("a new counter was not made: %+v", g.Findings)
	}
}
