package broker

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/mqtt/mqtttest"
)

// Whoever connects and says nothing is gone after ConnectTime, at each stage.
func TestIdleBeforeConnect(t *testing.T) {
	t.Parallel()
	const limit = 400 * time.Millisecond
	r := start(t, func(cfg *Config, _ *recorder) { cfg.ConnectTime = limit })
	stages := map[string]func() net.Conn{
		"TCP": func() net.Conn { return r.dialTCP(t) },
		"half a ClientHello": func() net.Conn {
			c := r.dialTCP(t)
			c.Write([]byte{0x16, 0x03, 0x01, 0x02, 0x00, 0x01})
			return c
		},
		"TLS": func() net.Conn { return r.raw(t, r.ca.Terminal(t, "nav-001")).Conn },
		"half a CONNECT": func() net.Conn {
			c := r.raw(t, r.ca.Terminal(t, "nav-001")).Conn
			c.Write([]byte{0x10, 0x20, 0, 4})
			return c
		},
	}
	for name, open := range stages {
		if took := hangUp(t, open()); took < limit/2 || took > limit+5*time.Second {
			t.Errorf("%s: closed after %v", name, took)
		}
	}
	// One byte at a time does not help.
	c := r.dialTCP(t)
	began := time.Now()
	for {
		if _, err := c.Write([]byte{0x16}); err != nil {
			break
		}
		if time.Since(began) > mqtttest.Patience {
			t.Fatal("a dripping client stays")
		}
		<-time.After(20 * time.Millisecond)
	}
	if n := r.b.Stats().Refused; n < 5 {
		t.Errorf("%d refused, want at least 5", n)
	}
}

// No TLS, or an old one.
func TestNotTLS(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	c := r.dialTCP(t)
	c.Write([]byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"))
	hangUp(t, c)
	host, port, _ := net.SplitHostPort(r.address)
	out, err := exec.Command(mqtttest.Tool(t, "openssl"), "s_client", "-connect", net.JoinHostPort(host, port), "-tls1_2", "-CAfile", r.ca.File).CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("alert protocol version")) {
		t.Errorf("TLS 1.2: %v:\n%s", err, out)
	}
}

// A stranger cannot make TLS collect more than a certificate chain may have.
func TestLargeHandshake(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	cert := r.ca.Terminal(t, "nav-001")
	for range 2 * transport.MaxChain * transport.MaxCertificate / len(cert.Certificate[0]) {
		cert.Certificate = append(cert.Certificate, cert.Certificate[0])
	}
	conn, err := tls.Dial("tcp", r.address, r.tlsConfig(cert))
	if err != nil {
		return
	}
	defer conn.Close()
	c := &raw{t, conn}
	c.SetDeadline(time.Now().Add(mqtttest.Patience))
	if code := c.connect("nav-001", nil); code != 255 {
		t.Errorf("CONNACK %d", code)
	}
	if s := r.b.Stats(); s.Connected != 0 {
		t.Errorf("%+v", s)
	}
}

// A flood of silent connections from many addresses: memory stays bounded, the
// number of pending connections as well, and terminals get in while it lasts.
func TestSlowFlood(t *testing.T) {
	t.Parallel()
	const flood = 3 * maxPending
	r := start(t, nil)
	conns := make([]net.Conn, 0, flood)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	before := heap()
	for i := range flood {
		c, err := dialerFrom(2+i%250).Dial("tcp", r.address)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
		if s := r.b.Stats(); s.Pending > maxPending {
			t.Fatalf("%d connections are pending", s.Pending)
		}
	}
	mqtttest.Eventually(t, "the door is full", func() bool { return r.b.Stats().Pending == maxPending })
	began := time.Now()
	r.dial(t, "nav-001")
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("a terminal had to wait for %v", took)
	} else {
		t.Logf("a terminal came in after %v", took)
	}
	if grown := heap() - before; grown > 64<<20 {
		t.Errorf("%d connections, at most %d pending, take %d KiB", flood, maxPending, grown>>10)
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// floodChild marks a process that is TestDescriptorsExhausted's child.
const floodChild = "KAGIMORI_BROKER_FLOOD_CHILD"

// When file descriptors run out and come back, the server serves again.
func TestDescriptorsExhausted(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(os.Args[0], "-test.run=^TestInsideDescriptorsExhausted$", "-test.v")
	cmd.Env = append(os.Environ(), floodChild+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "PASS: TestInsideDescriptorsExhausted") {
		t.Errorf("%v:\n%s", err, out)
	}
}

func TestInsideDescriptorsExhausted(t *testing.T) {
	if os.Getenv(floodChild) == "" {
		t.Skip("runs only in the child process of TestDescriptorsExhausted")
	}
	r := start(t, nil)
	spare := r.dialTCP(t) // so that poller and resolver have what they need
	mqtttest.Eventually(t, "the first connection", func() bool { return r.b.Stats().Accepted == 1 })
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	limit.Cur = uint64(len(entries) + 20)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	// Both ends of these live here: at some point one of them gets none.
	var conns []net.Conn
	for {
		c, err := net.Dial("tcp", r.address)
		if err != nil {
			if !errors.Is(err, syscall.EMFILE) {
				t.Fatal(err)
			}
			break
		}
		conns = append(conns, c)
	}
	// The kernel has accepted more than the server could: now it fails.
	r.log.says(t, "level=ERROR", "cannot accept connections", "too many open files")
	for _, c := range append(conns, spare) {
		c.Close()
	}
	if c := r.dial(t, "nav-001"); c.Send(t.Context(), []byte("back")) != nil {
		t.Error("the server is not back")
	}
	if got := next(t, r.received); got.payload != "back" {
		t.Errorf("received %v", got)
	}
	r.log.says(t, "accepting connections again")
}

// At most maxHandshake handshakes compute at the same time, and waiting for a
// client's bytes is not computing.
func TestHandshakesAreCounted(t *testing.T) {
	t.Parallel()
	slots := make(chan struct{}, 2)
	over := make(chan struct{})
	wires := make([]*wire, 4)
	clients := make([]net.Conn, len(wires))
	for i := range wires {
		server, client := net.Pipe()
		defer server.Close()
		wires[i], clients[i] = &wire{Conn: server, slots: slots, over: over}, client
		wires[i].pace()
	}
	got := make(chan int, len(wires))
	read := func(i int) {
		if _, err := wires[i].Read(make([]byte, 1)); err == nil {
			got <- i
		} else {
			got <- -1
		}
	}
	var all sync.WaitGroup
	for i := range wires {
		all.Go(func() { read(i) })
	}
	mqtttest.Eventually(t, "all wait for their client", func() bool {
		for _, w := range wires {
			if !w.waiting.Load() {
				return false
			}
		}
		return true
	})
	if len(slots) != 0 {
		t.Fatal("a silent client occupies a slot")
	}
	for _, c := range clients {
		c.Write([]byte{1})
	}
	first, second := next(t, got), next(t, got)
	none(t, got) // two compute, two wait for a slot
	wires[first].unpace()
	third := next(t, got)
	if len(slots) != 2 {
		t.Errorf("%d slots are taken, want 2", len(slots))
	}
	close(over) // the last one's connection ends while it waits
	if fourth := next(t, got); fourth != -1 {
		t.Errorf("wire %d got a slot", fourth)
	}
	wires[second].unpace()
	wires[third].unpace()
	if len(slots) != 0 {
		t.Errorf("%d slots are still taken", len(slots))
	}
	all.Wait()
}

func TestListenErrors(t *testing.T) {
	t.Parallel()
	ln, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	for address, words := range map[string][]string{
		ln.Addr().String(): {"port " + port + " is in use", fmt.Sprintf("sport = :%s", port), "configure another port"},
		"192.0.2.1:8883":   {"does not have that address", "ip address"},
		"nonsense":         {"want an address like"},
	} {
		_, err := Listen(t.Context(), address)
		for _, w := range words {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %v does not say %q", address, err, w)
			}
		}
	}
}
