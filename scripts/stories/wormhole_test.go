package stories

import (
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kagimori/kagimori/hsm/open"
)

// A key copy beside magic-wormhole, which hands files over with a code: from the
// moment when the code is typed to the moment when the receiving command is
// through and the goods are on its disk. Both are run as people run them, turn
// by turn, on the loopback interface, and carry as many bytes.

// rounds is how often each is measured.
const rounds = 9

// What the figures do not say is in docs/performance.md.
func TestBenchAgainstMagicWormhole(t *testing.T) {
	if os.Getenv("KAGIMORI_BENCH") == "" {
		t.Skip("measures: make bench")
	}
	w := newWormhole(t)
	for _, storage := range []open.Config{sealedFile, chip(t)} {
		d := newDeployment(t, nil)
		old := d.terminal("nav-001", storage)
		old.named()
		id := old.issue()
		size := old.size(id)
		var ours, theirs, nothing, agents []time.Duration
		peak := 0
		var fresh *terminal
		for n := range rounds {
			hsm := storage
			if storage.Kind == open.KindTPM {
				hsm = chip(t)
			}
			fresh = d.terminal(fmt.Sprintf("box-%d", n), hsm)
			fresh.spare()
			old.memory(t)
			fresh.memory(t)
			before := old.processorTime(t) + fresh.processorTime(t)
			ours = append(ours, old.gives(fresh, id))
			agents = append(agents, old.processorTime(t)+fresh.processorTime(t)-before)
			peak = max(peak, old.memory(t).peak, fresh.memory(t).peak)
			fresh.daemon.stop()
			theirs = append(theirs, w.gives(size))
			nothing = append(nothing, w.starts())
		}
		a, b, c := median(ours), median(theirs), median(nothing)
		t.Logf("%d bytes, medians of %d in turns; keys with %s storage: code to keys %v; magic-wormhole: code to file %v, of which %v is its interpreter's start; ratio %.1f, without that start %.1f",
			size, rounds, storage.Kind, ms(a), ms(b), ms(c), float64(b)/float64(a), float64(b-c)/float64(a))
		t.Logf("keys with %s storage: processor time of both agents %v, at most %d KiB of memory each", storage.Kind, ms(median(agents)), peak)
	}
}

func ms(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// size is how many bytes a credential is when it is copied.
func (e *terminal) size(id string) int {
	e.t.Helper()
	e.daemon.stop()
	r := e.record(id)
	e.daemon = e.start("kagimori", e.config)
	e.connected()
	n := len(r.Secret.Bytes)
	for _, c := range slices.Concat(r.Chain, r.Anchors) {
		n += len(c)
	}
	return n
}

// processorTime is what the agent has used, to the nanosecond; of threads that
// have ended it knows nothing, and Go's do not end.
func (e *terminal) processorTime(t *testing.T) (sum time.Duration) {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", e.daemon.cmd.Process.Pid))
	if err != nil || len(threads) == 0 {
		t.Fatalf("no threads: %v", err)
	}
	for _, path := range threads {
		var ran time.Duration
		if b, err := os.ReadFile(path); err == nil {
			fmt.Sscan(string(b), (*int64)(&ran))
		}
		sum += ran
	}
	return sum
}

// gives copies the keys to a fresh box, and tells how long that took.
func (e *terminal) gives(fresh *terminal, id string) time.Duration {
	e.t.Helper()
	o := e.offer(e.socket("kagimori"))
	began := time.Now()
	out := fresh.verb(o.code+"\n", "kagimori", "keycopy", "fetch", e.copy, "--json")
	took := time.Since(began)
	if !strings.Contains(out, id) {
		e.t.Fatalf("fetch: %s", out)
	}
	<-o.done
	return took
}

// wormhole is magic-wormhole with a mailbox server and a transit relay of its own.
type wormhole struct {
	t    *testing.T
	args []string
	next int
}

func newWormhole(t *testing.T) *wormhole {
	t.Helper()
	for _, tool := range []string{"wormhole", "twistd3"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is missing: run scripts/setup.sh bench", tool)
		}
	}
	mailbox, relay := freePort(t), freePort(t)
	for plugin, port := range map[string]int{"wormhole-mailbox": mailbox, "transitrelay": relay} {
		c := exec.Command("twistd3", "--nodaemon", "--pidfile=", plugin, fmt.Sprintf("--port=tcp:%d:interface=127.0.0.1", port))
		c.Dir, c.SysProcAttr = t.TempDir(), &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		log := new(lockedBuffer)
		c.Stdout, c.Stderr = log, log
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Process.Kill(); c.Wait() })
		newMachine(t, plugin).until(plugin+" listens", func() bool {
			conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err == nil {
				conn.Close()
			}
			return err == nil
		})
	}
	return &wormhole{t: t, args: []string{"--relay-url", fmt.Sprintf("ws://127.0.0.1:%d/v1", mailbox), "--transit-helper", fmt.Sprintf("tcp:127.0.0.1:%d", relay)}}
}

// gives sends a file of so many bytes, and tells how long it took from the code.
func (w *wormhole) gives(size int) time.Duration {
	w.t.Helper()
	w.next++
	dir, code := w.t.TempDir(), fmt.Sprintf("%d-crossover-clockwork", w.next)
	payload := make([]byte, size)
	rand.Read(payload)
	if err := os.WriteFile(filepath.Join(dir, "keys"), payload, 0o600); err != nil {
		w.t.Fatal(err)
	}
	send := exec.Command("wormhole", append(w.args, "send", "--hide-progress", "--code", code, filepath.Join(dir, "keys"))...)
	log := new(lockedBuffer)
	send.Stdout, send.Stderr = log, log
	if err := send.Start(); err != nil {
		w.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- send.Wait() }()
	newMachine(w.t, "sender").until("the sender shows its code", func() bool { return strings.Contains(log.String(), "wormhole receive") })
	<-time.After(200 * time.Millisecond) // until it waits: in its favour
	receive := exec.Command("wormhole", append(w.args, "receive", "--accept-file", "--hide-progress", "-o", filepath.Join(dir, "got"), code)...)
	began := time.Now()
	out, err := receive.CombinedOutput()
	took := time.Since(began)
	if err != nil {
		w.t.Fatalf("wormhole receive: %v\n%s", err, out)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "got")); err != nil || !slices.Equal(got, payload) {
		w.t.Fatalf("another file arrived: %v", err)
	}
	if err := <-ended; err != nil {
		w.t.Fatalf("wormhole send: %v\n%s", err, log)
	}
	return took
}

// starts is how long the program takes to do nothing.
func (w *wormhole) starts() time.Duration {
	w.t.Helper()
	c := exec.Command("wormhole", "--version")
	c.Stdout = io.Discard
	began := time.Now()
	if err := c.Run(); err != nil {
		w.t.Fatal(err)
	}
	return time.Since(began)
}
