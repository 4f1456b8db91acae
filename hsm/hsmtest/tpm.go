package hsmtest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kagimori/kagimori/hsm"
)

// patience bounds how long a helper waits for another process.
const patience = 10 * time.Second

// A TPM is a swtpm process of one test. It can be killed and started again on
// the same state, as a chip that loses power.
type TPM struct {
	Socket string // speaks the TPM protocol; Socket+".ctrl" is swtpm's own

	t   testing.TB
	dir string

	mu   sync.Mutex // guards what follows: a bus may cut the power
	proc *os.Process
	done chan struct{} // closed when proc has ended
}

// StartTPM starts an emulator that ends with the test, and names its socket.
func StartTPM(t testing.TB) (socketPath string) {
	t.Helper()
	return NewTPM(t).Socket
}

// NewTPM is StartTPM for tests that cut its power.
func NewTPM(t testing.TB) *TPM {
	t.Helper()
	p := newTPM(t)
	p.Start()
	return p
}

// newTPM is a TPM that has never had power.
func newTPM(t testing.TB) *TPM {
	t.Helper()
	if _, err := exec.LookPath("swtpm"); err != nil {
		t.Fatal("swtpm is missing: run scripts/setup.sh")
	}
	dir, err := os.MkdirTemp("", "tpm") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	p := &TPM{t: t, dir: dir, Socket: filepath.Join(dir, "s")}
	t.Cleanup(func() {
		p.Kill()
		os.RemoveAll(dir)
	})
	return p
}

// Start powers the TPM up: TPM2_Startup(CLEAR) is done when it returns.
func (p *TPM) Start() {
	p.t.Helper()
	os.Remove(p.Socket)
	cmd := exec.Command("swtpm", "socket", "--tpm2",
		"--tpmstate", "dir="+p.dir,
		"--server", "type=unixio,path="+p.Socket,
		"--ctrl", "type=unixio,path="+p.Socket+".ctrl",
		"--flags", "not-need-init,startup-clear")
	log := new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, done := make(chan error), make(chan struct{})
	go func() {
		// The death signal comes when the thread ends that started the
		// process: this one waits as long as the process lives.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
		}
		close(done)
	}()
	if err := <-started; err != nil {
		p.t.Fatalf("start swtpm: %v", err)
	}
	p.mu.Lock()
	p.proc, p.done = cmd.Process, done
	p.mu.Unlock()
	p.await(done, log)
}

// await returns when swtpm listens.
func (p *TPM) await(ended <-chan struct{}, log *bytes.Buffer) {
	p.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for {
		c, err := net.Dial("unix", p.Socket)
		if err == nil {
			c.Close()
			return
		}
		select {
		case <-tick.C:
		case <-ended:
			p.t.Fatalf("swtpm ended: %s", log.String())
		case <-late:
			p.t.Fatalf("swtpm does not listen: %v", err)
		}
	}
}

// Kill cuts the power: kill -9, with no TPM2_Shutdown before.
func (p *TPM) Kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.proc != nil {
		p.proc.Kill()
		<-p.done
		p.proc = nil
	}
}

// Tool runs one of tpm2-tools against the TPM and returns what it prints. One
// client at a time: modules on the same TPM must be closed.
func (p *TPM) Tool(name string, args ...string) string {
	p.t.Helper()
	out, err := p.TryTool(name, args...)
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}

// TryTool is Tool for commands that may fail.
func (p *TPM) TryTool(name string, args ...string) (string, error) {
	if _, err := exec.LookPath(name); err != nil {
		p.t.Fatalf("%s is missing: run scripts/setup.sh", name)
	}
	cmd := exec.Command(name, args...)
	cmd.Dir = p.dir
	cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI=swtpm:path="+p.Socket)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %q: %w: %s", name, args, err, errs.String())
	}
	return out.String(), nil
}

// Put writes a file for Tool, Get reads one that it wrote.
func (p *TPM) Put(t testing.TB, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, name), content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Get reads a file that Tool wrote.
func (p *TPM) Get(t testing.TB, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(p.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// Attributes has tpm2-tools print the attributes of what a blob of hsm/tpm holds.
func (p *TPM) Attributes(b hsm.Blob) string {
	p.t.Helper()
	item, err := hsm.Decode(b)
	if err != nil {
		p.t.Fatal(err)
	}
	area := item.Public
	switch item.Purpose {
	case hsm.PurposeMigrate: // an authority stands before
		area = area[64:]
	case hsm.PurposeBoot: // what it is sealed to stands before
		area = area[bytes.Index(area, []byte{0x00, 0x08, 0x00, 0x0b}):]
	}
	if err := os.WriteFile(filepath.Join(p.dir, "o.pub"), append(binary.BigEndian.AppendUint16(nil, uint16(len(area))), area...), 0o600); err != nil {
		p.t.Fatal(err)
	}
	out := p.Tool("tpm2_print", "-t", "TPM2B_PUBLIC", "o.pub")
	_, after, _ := strings.Cut(out, "attributes:")
	_, value, _ := strings.Cut(after, "value: ")
	line, _, _ := strings.Cut(value, "\n")
	return line
}
