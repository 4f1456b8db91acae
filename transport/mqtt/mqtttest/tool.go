package mqtttest

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// Patience bounds every wait for something that should happen at once.
const Patience = 15 * time.Second

// Tool finds a program that the tests need.
func Tool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if path = filepath.Join("/usr/sbin", name); !executable(path) {
			t.Fatalf("%s is missing: run scripts/setup.sh", name)
		}
	}
	return path
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&0o111 != 0
}

// Mosquitto starts Debian's broker with TLS and the given further lines of
// configuration, and returns its address. requireCert makes it refuse clients
// without a certificate of ca.
func Mosquitto(t testing.TB, ca *CA, requireCert bool, lines ...string) (address string) {
	t.Helper()
	address, _ = MosquittoProcess(t, ca, requireCert, lines...)
	return address
}

// MosquittoProcess is Mosquitto for a test that wants to kill it.
func MosquittoProcess(t testing.TB, ca *CA, requireCert bool, lines ...string) (address string, p *Process) {
	t.Helper()
	address = freeAddress(t)
	_, port, _ := net.SplitHostPort(address)
	cert, key := ca.Files(t, ca.Server(t))
	config := []string{
		"listener " + port + " 127.0.0.1", "cafile " + ca.File, "certfile " + cert, "keyfile " + key,
		"tls_version tlsv1.3", fmt.Sprintf("require_certificate %v", requireCert), "set_tcp_nodelay true",
		"persistence false", "allow_anonymous true",
	}
	if os.Getuid() == 0 {
		config = append(config, "user root") // else it cannot read our files
	}
	path := filepath.Join(t.TempDir(), "mosquitto.conf")
	if err := os.WriteFile(path, []byte(strings.Join(append(config, lines...), "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p = Start(t, "mosquitto", "-c", path)
	Eventually(t, "mosquitto listens", func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return address, p
}

func freeAddress(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// A Process is a foreign program that runs until it ends or the test does.
type Process struct {
	cmd  *exec.Cmd
	out  bytes.Buffer
	done chan struct{}
	err  error
}

// Start runs a program; it is killed at the end of the test.
func Start(t testing.TB, name string, args ...string) *Process {
	t.Helper()
	cmd := exec.Command(Tool(t, name), args...)
	p := &Process{cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.out, &p.out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.Kill()
		<-p.done
		if t.Failed() {
			t.Logf("%s %v:\n%s", name, args, p.out.String())
		}
	})
	return p
}

// Ended reports whether the program has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Pid is the program's process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Kill ends the program, if it has not ended by itself.
func (p *Process) Kill() { p.cmd.Process.Kill() }

// Wait returns what the program wrote and how it ended.
func (p *Process) Wait(t testing.TB) (string, error) {
	t.Helper()
	select {
	case <-p.done:
		return p.out.String(), p.err
	case <-time.After(Patience):
		t.Fatal("a foreign program did not end")
		return "", nil
	}
}

// Eventually polls until ok, and fails the test after Patience.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(Patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("still not: %s", what)
		}
		<-tick.C
	}
}

// Main runs a package's tests and fails if afterwards a goroutine is left that
// runs code with one of these words in its stack.
func Main(m *testing.M, words ...string) int {
	code := m.Run()
	if code != 0 {
		return code
	}
	deadline := time.Now().Add(Patience)
	left := leftover(words)
	for tick := time.Tick(10 * time.Millisecond); left != "" && time.Now().Before(deadline); left = leftover(words) {
		<-tick
	}
	if left != "" {
		fmt.Fprintf(os.Stderr, "FAIL: goroutines are left behind:\n%s\n", left)
		return 1
	}
	return 0
}

func leftover(words []string) string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var left []string
	for _, g := range strings.Split(string(buf), "\n\n") {
		if strings.Contains(g, "mqtttest.leftover") {
			continue
		}
		for _, w := range words {
			if strings.Contains(g, w) {
				left = append(left, g)
				break
			}
		}
	}
	return strings.Join(left, "\n\n")
}
