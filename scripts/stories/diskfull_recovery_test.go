package stories

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The day on which key storage does not open, with the disk full on top: each
// verb that gets the keys back, at every write of it, in terminal and gate.

// A squeezed is a daemon on a tight disk that knows nobody.
type squeezed struct {
	*tightDisk
	program, config string
	run             *daemon
}

func newSqueezed(t *testing.T, program string) *squeezed {
	t.Helper()
	m := newMachine(t, "box")
	s := &squeezed{program: program}
	extra := "[hsm]\nkind = \"file\"\n"
	if program == "kagimori-gate" {
		extra += fmt.Sprintf("[gate]\nlisten = \"127.0.0.1:%d\"\nupstream = \"http://127.0.0.1:1\"\n", freePort(t))
	}
	s.config = m.config(program, "", extra)
	s.tightDisk = tight(t, m)
	if err := os.Mkdir(m.state(), 0o700); err != nil {
		t.Fatal(err)
	}
	s.starts()
	s.opens()
	return s
}

func (s *squeezed) starts() { s.t.Helper(); s.run = s.m.start(s.program, s.config) }

func (s *squeezed) opens() {
	s.t.Helper()
	s.m.until("it opens its storage", func() bool { return s.m.open(s.program) })
}

// again starts the daemon once more after something was done to its files, and
// waits until it knows that this verb can help.
func (s *squeezed) again(verb string, meanwhile func()) {
	s.t.Helper()
	s.run.stop()
	meanwhile()
	s.starts()
	s.m.until(verb+" can help", func() bool {
		var r recoveryState
		s.m.query(&r, s.program, "recovery", "status")
		return strings.Contains(strings.Join(r.Possible, " "), verb)
	})
}

// loseSecret takes the device secret away, as another board has another one.
func (s *squeezed) loseSecret() {
	s.t.Helper()
	files, err := filepath.Glob(s.m.path("state", "device.secret*"))
	if err != nil || len(files) == 0 {
		s.t.Fatalf("device secret: %v (%v)", files, err)
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			s.t.Fatal(err)
		}
	}
}

// stores counts the stores that there are: nothing that fails may take one away.
func (s *squeezed) stores() int {
	s.t.Helper()
	here, err := filepath.Glob(s.m.path("state", "*.db"))
	if err != nil {
		s.t.Fatal(err)
	}
	aside, err := filepath.Glob(s.m.path("state", "aside", "*", "*.db"))
	if err != nil {
		s.t.Fatal(err)
	}
	return len(here) + len(aside)
}

// does squeezes a verb; before it there is a store that may not get lost. What a
// failed attempt had begun, the daemon may have finished by itself.
func (s *squeezed) does(stdin string, args ...string) {
	s.t.Helper()
	what := s.program + " " + strings.Join(args, " ")
	full := s.squeeze(what, func() result {
		r := s.m.ask(stdin, s.program, args...)
		if r.code == 6 && strings.Contains(r.err, "key storage is open") {
			s.t.Logf("%s: it opened by itself", what)
			r.code = 0
		}
		return r
	}, func(result) {
		if s.stores() == 0 {
			s.t.Errorf("%s: there is no store any more", what)
		}
	})
	if full == 0 {
		s.t.Errorf("%s needs no room: the story proves nothing", what)
	}
	s.opens()
}

func (s *squeezed) tells(kind string) {
	s.t.Helper()
	s.m.until("the audit log tells of "+kind, func() bool {
		return strings.Contains(s.m.verb("", s.program, "audit", "list"), kind)
	})
}

func (s *squeezed) asides() int {
	s.t.Helper()
	var r recoveryState
	s.m.query(&r, s.program, "recovery", "status")
	return len(r.Aside)
}

func TestFullDiskOfRecovery(t *testing.T) {
	for _, program := range []string{"kagimori", "kagimori-gate"} {
		for name, story := range map[string]func(*squeezed){
			"import": importFull, "start": startFull, "accept-older": acceptFull,
		} {
			t.Run(program+" "+name, func(t *testing.T) {
				t.Parallel()
				s := newSqueezed(t, program)
				story(s)
				s.run.kill()
				s.starts()
				s.opens()
				s.m.until("the log is sound", func() bool { return s.m.ask("", program, "audit", "verify").code == 0 })
			})
		}
	}
}

// exported makes a recovery file on another disk.
func (s *squeezed) exported() (file, passphrase string) {
	s.t.Helper()
	file = filepath.Join(s.t.TempDir(), "recovery")
	var made struct{ Passphrase string }
	s.m.query(&made, s.program, "recovery", "export", file)
	return file, made.Passphrase + "\n"
}

func importFull(s *squeezed) {
	file, passphrase := s.exported()
	s.again("import", s.loseSecret)
	s.does(passphrase, "recovery", "import", file)
	s.tells("recovered")
	if n := s.asides(); n != 0 {
		s.t.Errorf("%d stores are set aside", n)
	}
}

// The store is set aside, and taken over later.
func startFull(s *squeezed) {
	file, passphrase := s.exported()
	s.again("start", s.loseSecret)
	s.does("", "recovery", "start")
	s.m.until("what is set aside is known", func() bool { return s.asides() == 1 })
	if s.stores() != 2 {
		s.t.Errorf("%d stores after one was set aside", s.stores())
	}
	s.does(passphrase, "recovery", "import", file)
	s.tells("took over")
}

func acceptFull(s *squeezed) {
	s.run.stop()
	older := s.m.keep()
	s.starts()
	s.opens()
	for range 2 { // key changes
		s.exported()
	}
	s.again("accept-older", func() { putBack(s.t, older) })
	s.does("", "recovery", "accept-older", "--yes")
	s.tells("older-accepted")
}
