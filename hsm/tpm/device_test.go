package tpm_test

// The device node, by a stand-in: a socket pair that keeps message boundaries
// is read and written and polled as /dev/tpmrm0 is. Behind it stands a swtpm,
// and what the kernel's resource manager does when a file is closed.

import (
	"errors"
	"net"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/sys/unix"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/tpm"
)

// node makes stand-ins for a device node in front of one TPM.
type node struct {
	t        *testing.T
	chip     string
	wg       sync.WaitGroup
	turn     sync.Mutex    // an emulator has one client at a time
	commands atomic.Int64  // how many came
	hang     atomic.Bool   // commands get no answer, until
	free     chan struct{} // is closed
}

func newNode(t *testing.T) *node { return newNodeAt(t, hsmtest.StartTPM(t)) }

func newNodeAt(t *testing.T, chip string) *node {
	n := &node{t: t, chip: chip, free: make(chan struct{})}
	t.Cleanup(n.wg.Wait)
	return n
}

func (n *node) open() (int, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return -1, err
	}
	f := os.NewFile(uintptr(fds[1]), "node")
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return -1, err
	}
	n.wg.Go(func() { n.serve(conn) })
	return fds[0], nil
}

func (n *node) serve(conn net.Conn) {
	defer conn.Close()
	n.turn.Lock()
	defer n.turn.Unlock()
	upstream, err := net.Dial("unix", n.chip)
	if err != nil {
		n.t.Error(err)
		return
	}
	chip := transport.FromReadWriteCloser(upstream)
	defer chip.Close()
	defer clearUp(chip)
	b := make([]byte, 4096)
	for {
		k, err := conn.Read(b)
		if err != nil || k == 0 {
			return
		}
		n.commands.Add(1)
		if n.hang.Load() {
			<-n.free
		}
		response, err := chip.Send(b[:k])
		if err != nil {
			n.t.Error(err)
			return
		}
		if _, err := conn.Write(response); err != nil {
			return
		}
	}
}

// clearUp is what the kernel does when /dev/tpmrm0 is closed.
func clearUp(chip transport.TPM) {
	for _, first := range []uint32{0x80000000, 0x02000000} {
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(chip)
		if err != nil {
			return
		}
		for _, h := range must(rsp.CapabilityData.Data.Handles()).Handle {
			tpm2.FlushContext{FlushHandle: h}.Execute(chip)
		}
	}
}

func (n *node) module(t *testing.T, limit time.Duration) *tpm.Module {
	t.Helper()
	m, err := tpm.OpenNode(t.Context(), n.open, limit, logger(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func TestDevice(t *testing.T) {
	hsmtest.Run(t, func(t *testing.T) hsmtest.Open {
		n := newNode(t)
		return func(t *testing.T) hsm.Module {
			m := n.module(t, wait)
			if m.Level() != hsm.LevelTPM {
				t.Errorf("level %q", m.Level())
			}
			return m
		}
	})
}

// Signals interrupt system calls all the time: Go's own scheduler sends some.
func TestDeviceSignals(t *testing.T) {
	got := make(chan os.Signal, 1)
	signal.Notify(got, syscall.SIGUSR1)
	defer signal.Stop(got)
	m := newNode(t).module(t, wait)
	mac := must(m.ImportMAC(t.Context(), hsm.RandomSecret(32)))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				syscall.Kill(os.Getpid(), syscall.SIGUSR1)
			}
		}
	})
	for range 200 {
		if _, err := m.MAC(t.Context(), mac, []byte("m")); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
	if len(got) == 0 {
		t.Error("no signal came: the test proves nothing")
	}
}

// A hung chip costs its deadline, then one abandoned file, not one per call.
func TestDeviceHangs(t *testing.T) {
	n := newNode(t)
	release := sync.OnceFunc(func() { close(n.free) })
	t.Cleanup(release)
	m := n.module(t, 200*time.Millisecond)
	blob := must(m.Seal(t.Context(), hsm.NewSecret([]byte("x"))))
	n.hang.Store(true)
	for range 2 {
		start := time.Now()
		if _, err := m.Unseal(t.Context(), blob); !errors.Is(err, hsm.ErrTimeout) {
			t.Errorf("%v, want %v", err, hsm.ErrTimeout)
		}
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("it took %v", took)
		}
	}
	n.hang.Store(false)
	release()
	late := time.Now().Add(wait)
	for {
		got, err := m.Unseal(t.Context(), blob)
		if err == nil && string(got.Bytes()) == "x" {
			break
		}
		if time.Now().After(late) {
			t.Fatalf("it answers again, but not here: %v", err)
		}
	}
	start := time.Now()
	m.Close()
	if took := time.Since(start); took > time.Second {
		t.Errorf("close took %v", took)
	}
}

// The kernel may wait for the chip inside system calls that know no timeout. A
// full, blocking pipe stands for that: write does not come back.
func TestDeviceStuckInKernel(t *testing.T) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	unix.Write(pipe[1], make([]byte, 1<<20))
	unix.SetNonblock(pipe[1], false)
	n := newNode(t)
	var stuck atomic.Bool
	var opens atomic.Int64
	m, err := tpm.OpenNode(t.Context(), func() (int, error) {
		if stuck.Load() {
			opens.Add(1)
			return unix.Dup(pipe[1])
		}
		return n.open()
	}, 150*time.Millisecond, logger(t))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	blob := must(m.Seal(t.Context(), hsm.NewSecret([]byte("x"))))
	n.hang.Store(true)
	m.Unseal(t.Context(), blob) // loses the good file
	n.hang.Store(false)
	close(n.free)
	stuck.Store(true)
	for range 3 {
		start := time.Now()
		if _, err := m.Unseal(t.Context(), blob); !errors.Is(err, hsm.ErrTimeout) {
			t.Errorf("%v, want %v", err, hsm.ErrTimeout)
		}
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("it took %v", took)
		}
	}
	if opens.Load() != 1 {
		t.Errorf("%d files are stuck, want 1", opens.Load())
	}
	// The kernel lets go: the abandoned file is closed, a new one is opened.
	unix.Close(pipe[1])
	stuck.Store(false)
	drain(t, pipe[0])
	if got, err := m.Unseal(t.Context(), blob); err != nil || string(got.Bytes()) != "x" {
		t.Errorf("unstuck: %v", err)
	}
}

// drain reads a pipe until all who write it have closed it.
func drain(t *testing.T, fd int) {
	t.Helper()
	defer unix.Close(fd)
	b := make([]byte, 1<<16)
	for late := time.Now().Add(wait); time.Now().Before(late); {
		k, err := unix.Read(fd, b)
		if k == 0 && err == nil {
			return
		}
		unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
	}
	t.Error("the abandoned file was not closed")
}

func TestDeviceGoes(t *testing.T) {
	n := newNode(t)
	m := n.module(t, wait)
	blob := must(m.Seal(t.Context(), hsm.NewSecret([]byte("x"))))
	gone := func() (int, error) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			unix.Close(fds[1])
		}
		return fds[0], err
	}
	if _, err := tpm.OpenNode(t.Context(), gone, wait, logger(t)); !errors.Is(err, hsm.ErrAbsent) {
		t.Errorf("a chip that is gone: %v", err)
	}
	if _, err := m.Unseal(t.Context(), blob); err != nil {
		t.Errorf("the other one: %v", err)
	}
}

func TestOpenNodeErrors(t *testing.T) {
	for path, want := range map[string]error{"/dev/no-such-tpmrm": hsm.ErrAbsent, "/": syscall.EISDIR} {
		if _, err := tpm.Node(path); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
	if os.Geteuid() == 0 { // a node without a driver behind it
		path := t.TempDir() + "/node"
		if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(4000, 1))); err != nil {
			t.Skipf("cannot make a device node: %v", err)
		}
		if _, err := tpm.Node(path); !errors.Is(err, hsm.ErrAbsent) && !errors.Is(err, syscall.EPERM) {
			t.Errorf("no driver: %v", err)
		}
	}
}

func TestDirectNodeIsRefused(t *testing.T) {
	for path, want := range map[string]bool{
		"/dev/tpm0": true, "/dev/tpm1": true, "/dev/tpmrm0": false, "/dev/tpmrm1": false, "/dev/null": false,
	} {
		if tpm.Direct(path) != want {
			t.Errorf("%s: %v, want %v", path, !want, want)
		}
	}
}
