package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kagimori/kagimori/systemd"
	"github.com/kagimori/kagimori/transport"
)

// running is an agent whose Run runs until the test ends.
func running(t testing.TB, cfg Config) *Agent {
	t.Helper()
	return runningIn(t, t.TempDir(), cfg)
}

func runningIn(t testing.TB, dir string, cfg Config) *Agent {
	t.Helper()
	return runningWith(t, dir, cfg, testLog(t))
}

func runningWith(t testing.TB, dir string, cfg Config, log *slog.Logger) *Agent {
	t.Helper()
	cfg.Program, cfg.MaxBackoff = "kagimori", 50*time.Millisecond
	if cfg.Bundles == nil {
		cfg.Bundles = []transport.BundleKind{transport.BundleSpare, transport.BundleTerminal}
	}
	a, err := New(cfg, opener(dir, log), systemd.NewWatchdog(systemd.NewNotifier(log), time.Second, log), log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := a.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(func() { stop(); wg.Wait() })
	<-a.Ready()
	eventually(t, "the store is open", func() bool { return a.Status().Keys.Open })
	return a
}

// eventually waits for a condition that other goroutines bring about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(15 * time.Second)
	defer deadline.Stop()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("waited in vain: %s", what)
		case <-poll.C:
		}
	}
}

// answered says whether the result of a command is there. One that was offered
// again before its result arrived has several: they must be the same.
func (s *server) answered(t testing.TB, id transport.ID) bool {
	t.Helper()
	got := s.got(id)
	for _, r := range got {
		if r != got[0] {
			t.Errorf("two results of one command: %+v, %+v", got[0], r)
		}
	}
	return len(got) > 0
}

func state(a *Agent) LinkState { return a.Status().Link.State }

// req: L3, L4, L8: the whole way, over real TLS and MQTT frames.
func TestLinkEnrollsAndObeys(t *testing.T) {
	s := newServer(t)
	p := newPeer(t, s, s.ca.management())
	a := running(t, Config{})
	eventually(t, "unprovisioned", func() bool { return state(a) == LinkUnprovisioned })
	mustProvision(t, a, s.expect(p.address))
	eventually(t, "connected", func() bool { return state(a) == LinkConnected })
	if a.Status().Identity == nil || s.device == (transport.DeviceID{}) {
		t.Error("not enrolled")
	}
	id := s.order(order("maps-1"))
	p.push <- ready(t)
	eventually(t, "the credential is there", func() bool { return s.answered(t, id) })
	if _, err := a.Credential("maps", transport.UsageClient); err != nil {
		t.Error(err)
	}
	eventually(t, "clock trusted", a.Clock().Trusted)

	p.drop()
	eventually(t, "connected again", func() bool { n, _ := p.count(); return n >= 2 && state(a) == LinkConnected })
	if _, n := p.count(); n != 1 {
		t.Errorf("enrolled %d times", n)
	}
}

func TestSpareNeedsNoServer(t *testing.T) {
	s := newServer(t)
	a := running(t, Config{})
	mustProvision(t, a, s.ca.bundle(transport.BundleSpare, ""))
	eventually(t, "spare", func() bool { return state(a) == LinkSpare })
	if l := a.Status().Link; l.Error != "" || l.Next != "" {
		t.Errorf("a normal state is shown as a problem: %+v", l)
	}
	// The upgrade: it becomes a named terminal and enrolls.
	p := newPeer(t, s, s.ca.management())
	mustProvision(t, a, s.expect(p.address))
	eventually(t, "connected", func() bool { return state(a) == LinkConnected })
}

func TestEnrollmentSurvivesALostCertificate(t *testing.T) {
	s := newServer(t)
	lost := 0
	s.lose = func(reply string) bool {
		if reply == "enroll.certificate" {
			lost++
		}
		return reply == "enroll.certificate" && lost <= 2
	}
	p := newPeer(t, s, s.ca.management())
	a := running(t, Config{})
	mustProvision(t, a, s.expect(p.address))
	eventually(t, "connected", func() bool { return state(a) == LinkConnected })
	if _, n := p.count(); n < 3 {
		t.Errorf("%d enrollments for 2 lost replies", n)
	}
}

// The server refuses the identity: status says so and what to do, and the
// terminal neither gives up nor enrolls anew by itself.
func TestRefusedIdentity(t *testing.T) {
	s := newServer(t)
	p := newPeer(t, s, s.ca.management())
	a := running(t, Config{})
	mustProvision(t, a, s.expect(p.address))
	eventually(t, "connected", func() bool { return state(a) == LinkConnected })
	p.refusing(5)
	p.drop()
	eventually(t, "refused", func() bool { return state(a) == LinkRefused })
	if l := a.Status().Link; !strings.Contains(l.Next, "reenroll") || !strings.Contains(l.Error, "does not know nav-001 any more") {
		t.Errorf("%+v", l)
	}
	if _, n := p.count(); n != 1 {
		t.Errorf("enrolled %d times", n)
	}
	p.refusing(0)
	eventually(t, "connected again", func() bool { return state(a) == LinkConnected })

	// The administrator re-enrolls it: a new bundle, a new common key.
	b := s.expect(p.address)
	b.Issued += 60
	mustProvision(t, a, b)
	eventually(t, "enrolled anew", func() bool { _, n := p.count(); return n == 2 && state(a) == LinkConnected })
}

// Whoever listens at the server's address must be the management server of
// this deployment: nothing else is told even the terminal's name.
func TestFalseServers(t *testing.T) {
	s := newServer(t)
	management := transport.URI{Deployment: testDeployment, Server: true}
	local := []net.IP{net.IPv4(127, 0, 0, 1)}
	server := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for name, template := range map[string]*x509.Certificate{
		"a gate":                {IPAddresses: local, ExtKeyUsage: server},
		"another host":          {IPAddresses: []net.IP{net.IPv4(127, 0, 0, 2)}, URIs: []*url.URL{management.URL()}, ExtKeyUsage: server},
		"a terminal":            {URIs: []*url.URL{transport.URI{Deployment: testDeployment, Terminal: "nav-009"}.URL()}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}},
		"another deployment's":  {IPAddresses: local, URIs: []*url.URL{transport.URI{Deployment: "plant", Server: true}.URL()}, ExtKeyUsage: server},
		"not for servers (EKU)": {IPAddresses: local, URIs: []*url.URL{management.URL()}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}},
	} {
		key := newTestKey(t)
		falseServer(t, name, s, tls.Certificate{Certificate: s.ca.issue(template, key.Public()), PrivateKey: key})
	}
	falseServer(t, "another root", s, newAuthority(t).management())
}

func falseServer(t *testing.T, name string, s *server, certificate tls.Certificate) {
	p := newPeer(t, s, certificate)
	a := running(t, Config{})
	mustProvision(t, a, s.expect(p.address))
	var l LinkStatus
	eventually(t, name+" is turned away", func() bool { l = a.Status().Link; return l.Error != "" }) // and then it tries again
	if l.State != LinkWaiting || !strings.Contains(l.Error, "does not prove itself") || l.Next == "" {
		t.Errorf("%s: %+v", name, l)
	}
	if c, e := p.count(); c+e != 0 {
		t.Errorf("%s: got as far as CONNECT", name)
	}
}

// A terminal that woke in 1970, or in 2099, gets in touch all the same, and
// knows the time then. DESIGN D12.
func TestLinkWithAWrongClock(t *testing.T) {
	for name, at := range map[string]time.Time{"1970": time.Unix(0, 0), "2099": date(2099)} {
		s := newServer(t)
		p := newPeer(t, s, s.ca.management())
		a := running(t, Config{})
		began := time.Now()
		a.clock.mu.Lock()
		a.clock.wall = func() time.Time { return at.Add(time.Since(began)) }
		a.clock.mu.Unlock()
		mustProvision(t, a, s.expect(p.address))
		eventually(t, name+": connected", func() bool { return state(a) == LinkConnected })
		eventually(t, name+": knows the time", func() bool { return a.clock.Trusted() && time.Since(a.clock.Now()).Abs() < time.Minute })
	}
}

// Two servers in the bundle: the second one does when the first does not answer.
func TestSecondServer(t *testing.T) {
	s := newServer(t)
	p := newPeer(t, s, s.ca.management())
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	a := running(t, Config{})
	mustProvision(t, a, s.expect(dead.Addr().String(), p.address))
	eventually(t, "connected", func() bool { return state(a) == LinkConnected })
	if got := a.Status().Link.Server; got != p.address {
		t.Errorf("connected to %s", got)
	}
}

// A message that the agent does not know goes to the program that does.
func TestOtherMessages(t *testing.T) {
	s := newServer(t)
	p := newPeer(t, s, s.ca.management())
	got := make(chan string, 1)
	a := running(t, Config{Bundles: []transport.BundleKind{transport.BundleGate}, Receive: func(_ context.Context, e *transport.Envelope) error {
		got <- e.Type
		return nil
	}})
	b := s.expect(p.address)
	b.Kind, b.Service = transport.BundleGate, "maps"
	mustProvision(t, a, b)
	eventually(t, "connected", func() bool { return state(a) == LinkConnected })
	payload, err := transport.Pack(zeroes{}, time.Now(), nil, &transport.ServiceRevoked{Number: 1})
	if err != nil {
		t.Fatal(err)
	}
	p.push <- payload
	if kind := <-got; kind != "service.revoked" {
		t.Errorf("got %q", kind)
	}
	if trust, ok := a.Trust(); !ok || trust.Service != "maps" || trust.Terminal != "nav-001" || trust.Deployment != testDeployment {
		t.Errorf("trust %+v", trust)
	}
}

// What is not understood is logged and does not end the connection.
func TestGarbageFromTheServer(t *testing.T) {
	s := newServer(t)
	p := newPeer(t, s, s.ca.management())
	var said lockedBuffer
	a := runningWith(t, t.TempDir(), Config{}, slog.New(slog.NewTextHandler(&said, nil)))
	mustProvision(t, a, s.expect(p.address))
	eventually(t, "connected", func() bool { return state(a) == LinkConnected })
	for i := range 3 {
		p.push <- []byte("garbage")
		eventually(t, "it is logged", func() bool { return strings.Count(said.String(), "message not dealt with") == i+1 })
	}
	id := s.order(order("maps-1"))
	p.push <- ready(t)
	eventually(t, "it goes on", func() bool { return s.answered(t, id) })
	if n, _ := p.count(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

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

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { clear(p); return len(p), nil }
