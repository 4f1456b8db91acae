package stories

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// emulated is how much longer a wait may be on an emulated processor.
const emulated = 4

// emulators of the boards that scripts/cross.sh builds for, and of this machine's
// own kind. They are named on the command line: nothing is registered with the
// kernel of whoever runs the tests.
var emulators = map[string]string{"armv7": "qemu-arm", "arm64": "qemu-aarch64", "": "qemu-x86_64"}

func (m *machine) patience() time.Duration {
	if m.cpu != "" || m.hand != "" {
		return emulated * patience
	}
	return patience
}

// processor is what a program of this machine is started by, and in which
// environment (nil: the tests' own).
func (m *machine) processor(program string) (argv, env []string) {
	if m.cpu != "" {
		program += "-linux-" + m.cpu
	}
	switch {
	case m.hand != "":
		return []string{need(m.t, emulators[m.cpu]), program}, m.clockwork()
	case m.cpu != "":
		return []string{need(m.t, emulators[m.cpu]+"-static"), program}, nil
	}
	return []string{program}, nil
}

// launchWhole launches a daemon that forks while it starts, which an agent does
// to have its store checked. Debian 12's qemu-user (7.2) now and then copies a
// locked mutex of its own into the child, which then waits for ever, and the
// agent with it: about once in fifty starts. Such a start is cut short and
// made again; nothing of it is the agent's doing, and a native one is never
// tried twice.
func (m *machine) launchWhole(program string, args ...string) *daemon {
	m.t.Helper()
	const starts = 3
	for try := 1; ; try++ {
		d := m.launch(program, args...)
		if m.cpu == "" && m.hand == "" || try == starts || !d.stuck() {
			return d
		}
		m.t.Logf("%s: start %d of %s hangs in the emulator", m.name, try, program)
		d.kill()
	}
}

// stuck waits until an emulated daemon is ready, has ended, or hangs with a child
// of the emulator's beside it. The child is ended.
func (d *daemon) stuck() bool {
	limit := time.NewTimer(patience)
	defer limit.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-d.done:
			return false
		case <-tick.C:
			if log := d.log.String(); strings.Contains(log, "msg=ready") || strings.Contains(log, "server runs") {
				return false
			}
		case <-limit.C:
			children := childrenOf(d.cmd.Process.Pid)
			for _, pid := range children {
				syscall.Kill(pid, syscall.SIGKILL)
			}
			return len(children) > 0
		}
	}
}

// childrenOf lists the processes that a process's threads have started.
func childrenOf(pid int) (pids []int) {
	lists, _ := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task", "*", "children"))
	for _, path := range lists {
		text, _ := os.ReadFile(path)
		for _, child := range strings.Fields(string(text)) {
			if n, err := strconv.Atoi(child); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
}

// need finds a tool that scripts/setup.sh installs.
func need(t *testing.T, tool string) string {
	t.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		if path, err := exec.LookPath(filepath.Join(dir, tool)); err == nil {
			return path
		}
	}
	t.Fatalf("%s is missing: run scripts/setup.sh", tool)
	return ""
}

// crossBuilt builds the agent for all emulated boards, as it ships.
var crossBuilt = sync.OnceValues(func() (string, error) {
	build := exec.Command("../cross.sh", "armv7", "arm64")
	build.Env = append(os.Environ(), "OUT="+bin)
	out, err := build.CombinedOutput()
	return string(out), err
})

// board is a machine with another processor.
func board(t *testing.T, name, cpu string) *machine {
	t.Helper()
	if out, err := crossBuilt(); err != nil {
		t.Fatalf("build for the boards: %v\n%s", err, out)
	}
	m := newMachine(t, name)
	m.cpu = cpu
	return m
}

// The agents as they ship for 32- and 64-bit ARM, each with a chip of its own,
// enroll with a server on this machine, and the one hands its key to the other.
//
// req: C1, C2, L3, L4
func TestBoardsWithChips(t *testing.T) {
	d := newDeployment(t, nil)
	old := d.terminalOn(board(t, "nav-001", "armv7"), chip(t))
	old.named()
	id := old.issue()
	fresh := d.terminalOn(board(t, "nav-002", "arm64"), chip(t))
	fresh.spare()

	o := old.offer(old.socket("kagimori"))
	if out := fresh.verb(o.code+"\n", "kagimori", "keycopy", "fetch", old.copy, "--json"); !strings.Contains(out, id) {
		t.Errorf("fetch does not name the credential:\n%s", out)
	}
	<-o.done
	for _, m := range []*terminal{old, fresh} {
		if got := m.curl("/a"); !strings.HasPrefix(got, "map tile /a for nav-001 (credential "+id+")") {
			t.Errorf("%s (%s): %s", m.name, m.cpu, got)
		}
	}
	fresh.named()
	fresh.until("the server knows both holders", func() bool {
		return slices.Equal(slices.Sorted(slices.Values(d.holders(id))), []string{"nav-001", "nav-002"})
	})
	// What the chip and the store keep outlives a power cut.
	old.daemon.kill()
	old.daemon = old.start("kagimori", old.config)
	old.until("the key works", func() bool { return strings.Contains(old.curl("/b"), id) })
}

// Sealed files are the same on every board: what a 32-bit board wrote, a 64-bit
// one and this machine read, and the other way round.
//
// req: C5
func TestBoardsReadEachOthersFiles(t *testing.T) {
	d := newDeployment(t, nil)
	m := d.terminalOn(board(t, "nav-001", "armv7"), sealedFile)
	m.named()
	id := m.issue()
	for _, cpu := range []string{"arm64", "", "armv7"} {
		m.daemon.stop()
		m.cpu = cpu
		m.daemon = m.start("kagimori", m.config)
		m.connected()
		if got := m.curl("/x"); !strings.Contains(got, id) {
			t.Errorf("on %q: %s", cpu, got)
		}
	}
	m.daemon.stop()
	if r := m.record(id); string(r.ID) != id {
		t.Errorf("record %+v", r)
	}
}
