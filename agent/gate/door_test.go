package gate

import (
	"context"
	"errors"
	"io"
	"net"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// faultyListener fails on command, as one does that is out of descriptors.
type faultyListener struct {
	net.Listener
	failures atomic.Int64
}

func (l *faultyListener) Accept() (net.Conn, error) {
	if l.failures.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return l.Listener.Accept()
}

func TestTheDoorSurvivesErrorsOfAccept(t *testing.T) {
	h := newHouse(t)
	h.stop()
	l := &faultyListener{Listener: listen(t)}
	l.failures.Store(5)
	h.start(l)
	h.admits(h.credential(t, "maps", "cr-1"))
	h.logs("gate cannot accept connections", "too many open files")
}

func TestRunReportsAListenerThatIsClosed(t *testing.T) {
	h := newHouse(t)
	h.stop()
	l := listen(t)
	l.Close()
	if err := h.gate.Run(t.Context(), l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Run: %v", err)
	}
}

// Connections that prove nothing cannot keep terminals out, however many.
func TestIdleConnectionsDoNotKeepTerminalsOut(t *testing.T) {
	h := newHouse(t)
	var idle []net.Conn
	defer func() {
		for _, c := range idle {
			c.Close()
		}
	}()
	for range maxPending + 20 {
		c, err := net.Dial("tcp", h.address)
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
	}
	h.admits(h.credential(t, "maps", "cr-1"))
	eventually(t, "some pushed out", 5*time.Second, func() bool { return h.gate.Status().Refused[string(Crowded)] >= 20 })
	idle[0].SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := idle[0].Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "timeout") {
		t.Errorf("the oldest is still there: %v", err)
	}
}

func TestNoCredentialTakesAllConnections(t *testing.T) {
	h := buildHouse(t, Config{Upstream: "http://127.0.0.1:1", MaxPerCredential: 3, MaxSessions: 5})
	h.push(1)
	full := func(c net.Conn) bool {
		c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, err := c.Read(make([]byte, 1))
		var timeout net.Error
		return !errors.As(err, &timeout) || !timeout.Timeout()
	}
	for _, c := range []struct {
		id transport.Name
		in bool
	}{{"cr-1", true}, {"cr-1", true}, {"cr-1", true}, {"cr-1", false}, {"cr-2", true}, {"cr-2", true}, {"cr-3", false}} {
		before := h.gate.Status()
		conn := h.dial(h.credential(t, "maps", c.id))
		eventually(t, "an answer", 5*time.Second, func() bool {
			s := h.gate.Status()
			return s.Admitted+s.Refused[string(Busy)] == before.Admitted+before.Refused[string(Busy)]+1
		})
		if full(conn) == c.in {
			t.Errorf("%s: admitted is %v, want %v", c.id, !c.in, c.in)
		}
	}
}

func TestGarbageAtTheDoor(t *testing.T) {
	h := newHouse(t)
	for _, garbage := range []string{"GET / HTTP/1.1\r\nHost: g\r\n\r\n", "\x16\x03\x01\xff\xff", strings.Repeat("\x00", 70000), "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", ""} {
		c, err := net.Dial("tcp", h.address)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, garbage)
		c.(*net.TCPConn).CloseWrite()
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.Copy(io.Discard, c); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Errorf("%.20q: the door waits: %v", garbage, err)
		}
		c.Close()
	}
	eventually(t, "all counted", 5*time.Second, func() bool { return h.gate.Status().Refused[string(Handshake)] == 5 })
	h.admits(h.credential(t, "maps", "cr-1"))
}

// Running requests may finish at shutdown; what does not is cut off.
func TestShutdown(t *testing.T) {
	t.Parallel()
	h, enter := busyHouse(t)
	cred := h.credential(t, "maps", "cr-1")
	var open []net.Conn
	for _, enter := range enter {
		open = append(open, enter(cred))
	}
	began := time.Now()
	h.stop()
	if took := time.Since(began); took > shutdownGrace+3*time.Second {
		t.Errorf("took %s", took)
	}
	for _, c := range open {
		if err := gone(c); err != nil {
			t.Error(err)
		}
	}
}

// Refusals are logged, but not one for each of a thousand knocks.
func TestTheLogIsBounded(t *testing.T) {
	log := &logBuffer{}
	c := newCounts(newLog(log))
	for range 1000 {
		c.refused(t.Context(), Revoked, "terminal refused", &net.TCPAddr{}, identity{}, nil)
	}
	c.refused(t.Context(), Expired, "terminal refused", &net.TCPAddr{}, identity{}, nil)
	if n := strings.Count(log.String(), "reason=revoked"); n < logBudget || n > 3*logBudget || strings.Count(log.String(), "reason=expired") != 1 {
		t.Errorf("%d lines", n)
	}
	if _, _, refused := c.read(); refused[Revoked] != 1000 {
		t.Errorf("counted %d", refused[Revoked])
	}
}

// Foreign clients: what curl and openssl make of the door.
//
// req: L5
func TestForeignClients(t *testing.T) {
	h := newHouse(t)
	dir := t.TempDir()
	root := writePEM(t, dir, "root.pem", "CERTIFICATE", h.root.cert.Raw)
	cert, key := writeIdentity(t, dir, "good", h.credential(t, "maps", "cr-1"))
	revoked := h.credential(t, "maps", "cr-2")
	h.push(2, revoked)
	badCert, badKey := writeIdentity(t, dir, "bad", revoked)
	_, port, _ := net.SplitHostPort(h.address)
	curl := func(args ...string) (string, error) {
		all := append([]string{"--silent", "--show-error", "--max-time", "10", "--noproxy", "*", "--cacert", root}, args...)
		out, err := tool(t, "curl", append(all, "https://localhost:"+port+"/")...).CombinedOutput()
		return string(out), err
	}
	if out, err := curl("--ipv4", "--cert", cert, "--key", key, "--data", "picture"); err != nil || out != "cr-1 place-cr-1 picture" {
		t.Errorf("curl: %q %v", out, err)
	}
	if out, err := curl("--ipv4", "--cert", badCert, "--key", badKey); err == nil || !strings.Contains(out, "alert") {
		t.Errorf("curl with a revoked certificate: %q %v", out, err)
	}
	if out, err := curl("--ipv4"); err == nil || !strings.Contains(out, "alert") {
		t.Errorf("curl without a certificate: %q %v", out, err)
	}
	if out, err := curl("--ipv4", "--tls-max", "1.2", "--cert", cert, "--key", key); err == nil || !strings.Contains(out, "alert") {
		t.Errorf("curl with TLS 1.2: %q %v", out, err)
	}
	s := tool(t, "openssl", "s_client", "-connect", h.address, "-servername", "localhost", "-CAfile", root, "-verify_return_error",
		"-cert", cert, "-cert_chain", cert, "-key", key, "-alpn", "h2,http/1.1", "-quiet", "-ign_eof")
	s.Stdin = strings.NewReader("GET / HTTP/1.1\r\nHost: g\r\nKagimori-Credential: evil\r\nConnection: close\r\n\r\n")
	out, err := s.CombinedOutput()
	if !strings.Contains(string(out), "200 OK") || !strings.Contains(string(out), "cr-1 place-cr-1") || strings.Contains(string(out), "evil") {
		t.Errorf("openssl: %s %v", out, err)
	}
}

func tool(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is missing: run scripts/setup.sh", name)
	}
	return exec.CommandContext(t.Context(), path, args...)
}
