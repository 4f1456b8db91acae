// Package stories runs the shipped programs against each other, as their users
// would: real binaries, real sockets, emulated chips. Each machine of a story
// has a directory of its own and, where asked for, a network namespace.
package stories

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// bin is where TestMain built the programs.
var bin string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "kagimori-bin")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		bin = dir
		slim, err := exec.Command("../slim.sh").Output() // as make build does
		if err != nil {
			fmt.Fprintf(os.Stderr, "slim.sh: %v\n", err)
			return 1
		}
		for name, pkg := range map[string]string{
			"kagimori": "./agent/cmd/kagimori", "kagimori-gate": "./agent/cmd/kagimori-gate",
			"kagimori-server": "./server/cmd/kagimori-server", "upstream": "./scripts/upstream",
		} {
			build := exec.Command("go", "build", "-trimpath", strings.TrimSpace(string(slim)), "-o", filepath.Join(dir, name), pkg)
			build.Dir = "../.."
			build.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := build.CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "build %s: %v\n%s", name, err, out)
				return 1
			}
		}
		return m.Run()
	}())
}

// patience bounds every wait of a story for a condition, on a machine with a
// processor of its own.
const patience = 20 * time.Second

// A machine is one box of a story.
type machine struct {
	t    *testing.T
	name string
	dir  string // short: unix socket paths have 107 bytes
	ns   string // network namespace, or ""
	host string // the address that others reach it at
	cpu  string // a board of scripts/cross.sh, emulated; "": this machine
	hand string // file that the system clock is read from; "": the true one
}

func newMachine(t *testing.T, name string) *machine {
	t.Helper()
	dir, err := os.MkdirTemp("", "k")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &machine{t: t, name: name, dir: dir, host: "127.0.0.1"}
}

func (m *machine) path(elem ...string) string {
	return filepath.Join(append([]string{m.dir}, elem...)...)
}

func (m *machine) socket(program string) string { return m.path(program + ".sock") }

// config writes a configuration file for program; extra is appended to what
// every machine needs. Sections must not repeat.
func (m *machine) config(program, top, extra string) string {
	m.t.Helper()
	text := fmt.Sprintf("state_dir = %q\n%s\n[control]\nsocket = %q\nmode = \"0660\"\noperators = []\n%s\n", m.path("state"), top, m.socket(program), extra)
	path := m.path(program + ".toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		m.t.Fatal(err)
	}
	return path
}

func (m *machine) command(program string, args ...string) *exec.Cmd {
	argv, env := m.processor(filepath.Join(bin, program))
	argv = append(argv, args...)
	if m.ns != "" {
		argv = append([]string{"ip", "netns", "exec", m.ns}, argv...)
	}
	c := exec.Command(argv[0], argv[1:]...)
	c.Dir, c.Env = m.dir, env
	return c
}

// result is what a command that ended left behind.
type result struct {
	out, err string
	code     int
}

// run runs a program to its end and does not judge it.
func (m *machine) run(stdin, program string, args ...string) result {
	m.t.Helper()
	var out, stderr bytes.Buffer
	c := m.command(program, args...)
	c.Stdin, c.Stdout, c.Stderr = strings.NewReader(stdin), &out, &stderr
	timer := time.AfterFunc(2*m.patience(), func() { c.Process.Kill() })
	defer timer.Stop()
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		m.t.Fatalf("%s: %s %v: %v", m.name, program, args, err)
	}
	return result{out.String(), stderr.String(), c.ProcessState.ExitCode()}
}

// verb runs a verb of program that must succeed, and returns what it printed.
func (m *machine) verb(stdin, program string, args ...string) string {
	m.t.Helper()
	r := m.run(stdin, program, append([]string{"--socket", m.socket(program)}, args...)...)
	if r.code != 0 {
		m.t.Fatalf("%s: %s %s: exit %d\n%s%s", m.name, program, strings.Join(args, " "), r.code, r.out, r.err)
	}
	return r.out
}

// refused runs a verb that must fail with this exit code and these words.
func (m *machine) refused(code int, words, stdin, program string, args ...string) {
	m.t.Helper()
	r := m.run(stdin, program, append([]string{"--socket", m.socket(program)}, args...)...)
	if r.code != code || !strings.Contains(r.err, words) {
		m.t.Errorf("%s: %s %s: exit %d, want %d and %q\n%s%s", m.name, program, strings.Join(args, " "), r.code, code, words, r.out, r.err)
	}
}

// query runs a verb with --json and decodes what it printed.
func (m *machine) query(v any, program string, args ...string) {
	m.t.Helper()
	out := m.verb("", program, append(args, "--json")...)
	if err := json.Unmarshal([]byte(out), v); err != nil {
		m.t.Fatalf("%s: %s %v: %v in\n%s", m.name, program, args, err, out)
	}
}

// A daemon is a program that runs until the story stops it.
type daemon struct {
	m    *machine
	cmd  *exec.Cmd
	log  *lockedBuffer
	done chan struct{}
}

// start starts a daemon and waits until its control socket answers.
func (m *machine) start(program, config string) *daemon {
	m.t.Helper()
	d := m.launchWhole(program, "run", "--config", config)
	m.t.Cleanup(func() {
		d.stop()
		if m.t.Failed() {
			m.t.Logf("--- log of %s on %s\n%s", program, m.name, d.log)
		}
	})
	m.until(program+" answers", func() bool {
		c, err := net.Dial("unix", m.socket(program))
		if err != nil {
			select {
			case <-d.done:
				m.t.Fatalf("%s: %s ended at once:\n%s", m.name, program, d.log)
			default:
			}
			return false
		}
		c.Close()
		return true
	})
	return d
}

// launch starts a program without waiting for anything.
func (m *machine) launch(program string, args ...string) *daemon {
	m.t.Helper()
	d := &daemon{m: m, cmd: m.command(program, args...), log: new(lockedBuffer), done: make(chan struct{})}
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	if err := d.cmd.Start(); err != nil {
		m.t.Fatalf("%s: %s: %v", m.name, program, err)
	}
	go func() { d.cmd.Wait(); close(d.done) }()
	return d
}

// stop ends a daemon the polite way and expects it to go.
func (d *daemon) stop() {
	select {
	case <-d.done:
		return
	default:
	}
	d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.done:
	case <-time.After(d.m.patience()):
		d.cmd.Process.Kill()
		<-d.done
		d.m.t.Errorf("%s: %v did not stop on SIGTERM", d.m.name, d.cmd.Args)
	}
}

// kill is a power cut for one process.
func (d *daemon) kill() { d.cmd.Process.Kill(); <-d.done }

// until waits for a condition, and fails the story when it does not come.
func (m *machine) until(what string, ok func() bool) {
	m.t.Helper()
	deadline := time.NewTimer(m.patience())
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			m.t.Fatalf("%s: waited %v: %s", m.name, m.patience(), what)
		}
	}
}

// nextPort is the port that freePort looks at next.
var nextPort atomic.Int32

// freePort gives a TCP port that nobody has. It comes from below the ports that
// Linux gives to whoever connects (ip_local_port_range, from 32768), and is given
// out once, so that neither another story nor a connection takes it first.
func freePort(t *testing.T) int {
	t.Helper()
	const first, last = 12000, 32000
	nextPort.CompareAndSwap(0, first+rand.Int32N(last-first))
	for range last - first {
		port := int(nextPort.Add(1)-first)%(last-first) + first
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		l.Close()
		return port
	}
	t.Fatal("no TCP port is free")
	return 0
}

// lockedBuffer collects what several goroutines write.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

var _ io.Writer = (*lockedBuffer)(nil)

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
