package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/agent/gate"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

func TestVerbsExplainThemselves(t *testing.T) {
	for _, err := range program().Lint() {
		t.Error(err)
	}
}

// rig is a gate daemon in this process, and its command line.
type rig struct {
	t              *testing.T
	dir, socket    string
	config, listen string
	notify         *net.UnixConn // where systemd would listen
	end            func() int    // ends the daemon; its exit code
	log            *buffer
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newRig(t *testing.T, extra string) *rig {
	t.Helper()
	dir := t.TempDir()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	r := &rig{t: t, dir: dir, socket: filepath.Join(dir, "control.sock"), config: filepath.Join(dir, "gate.toml"), listen: free.Addr().String(), log: &buffer{}}
	text := fmt.Sprintf("state_dir = %q\n[control]\nsocket = %q\n[gate]\nlisten = %q\n%s", filepath.Join(dir, "state"), r.socket, r.listen, extra)
	if err := os.WriteFile(r.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "notify")
	if r.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.notify.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return r
}

// run starts the daemon and waits for READY.
func (r *rig) run() {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	exit := make(chan int, 1)
	go func() { exit <- program().Run(ctx, []string{"run", "--config", r.config}, nil, r.log, r.log) }()
	r.end = sync.OnceValue(func() int { cancel(); return <-exit })
	r.t.Cleanup(func() { r.end() })
	buf := make([]byte, 4096)
	r.notify.SetReadDeadline(time.Now().Add(20 * time.Second))
	for {
		n, err := r.notify.Read(buf)
		if err != nil {
			r.t.Fatalf("no READY: %v\n%s", err, r.log)
		}
		if strings.Contains(string(buf[:n]), "READY=1") {
			return
		}
	}
}

// verb runs one verb.
func (r *rig) verb(in string, args ...string) (code int, out, errOut string) {
	r.t.Helper()
	var stdout, stderr bytes.Buffer
	code = program().Run(r.t.Context(), append(args, "--socket", r.socket), strings.NewReader(in), &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

func (r *rig) status() gate.Report {
	r.t.Helper()
	code, out, errOut := r.verb("", "status", "--json")
	var report gate.Report
	if err := json.Unmarshal([]byte(out), &report); code != 0 || err != nil {
		r.t.Fatalf("status: %d %s %s %v", code, out, errOut, err)
	}
	return report
}

// bundle makes a bundle as the management server would.
func (r *rig) bundle(kind transport.BundleKind, deployment transport.Name) (path, passphrase string) {
	r.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	root, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		r.t.Fatal(err)
	}
	b := &transport.Bundle{
		ID: transport.NewID(rand.Reader), Kind: kind, Deployment: deployment, Issued: time.Now().Unix(), Root: root, Group: "default", Epoch: 1,
		SecurityCode: make(transport.Sensitive, transport.SecurityCodeSize), Terminal: "gate-maps", Servers: []string{"127.0.0.1:1"}, CommonKey: make(transport.Sensitive, transport.CommonKeySize),
	}
	if kind == transport.BundleGate {
		b.Service = "maps"
	}
	file, pass, err := transport.SealBundle(b)
	if err != nil {
		r.t.Fatal(err)
	}
	path = filepath.Join(r.dir, string(kind)+"-"+string(deployment)+".bundle")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		r.t.Fatal(err)
	}
	return path, string(pass)
}

func TestANewGate(t *testing.T) {
	r := newRig(t, "")
	r.run()
	s := r.status()
	if s.Gate.Open || len(s.Gate.Problems) != 1 || !strings.Contains(s.Gate.Problems[0].Next, "kagimori-gate provision") || s.Gate.Listen != r.listen {
		t.Errorf("unprovisioned: %+v", s.Gate)
	}
	if c, err := tls.Dial("tcp", r.listen, &tls.Config{InsecureSkipVerify: true}); err == nil {
		c.Close()
		t.Error("a gate without a certificate shook hands")
	}
	code, out, _ := r.verb("", "status")
	for _, says := range []string{"not provisioned", "nobody", "next: "} {
		if code != 0 || !strings.Contains(out, says) {
			t.Errorf("status does not say %q:\n%s", says, out)
		}
	}

	terminals, pass := r.bundle(transport.BundleTerminal, "demo")
	if code, _, errOut := r.verb(pass+"\n", "provision", terminals); code == 0 || !strings.Contains(errOut, "next:") {
		t.Errorf("a terminal's bundle: %d %s", code, errOut)
	}
	path, pass := r.bundle(transport.BundleGate, "demo")
	if code, _, errOut := r.verb("wrong\n", "provision", path); code != control.BadInput.Exit() {
		t.Errorf("wrong passphrase: %d %s", code, errOut)
	}
	code, out, errOut := r.verb(pass+"\n", "provision", path)
	if code != 0 || !strings.Contains(out, "gate-maps, which guards service maps of deployment demo") {
		t.Fatalf("provision: %d %s %s", code, out, errOut)
	}
	if code, out, _ = r.verb(pass+"\n", "provision", path); code != 0 || !strings.Contains(out, "nothing changed") {
		t.Errorf("twice: %d %s", code, out)
	}
	foreign, pass := r.bundle(transport.BundleGate, "other")
	if code, _, errOut = r.verb(pass+"\n", "provision", foreign); code == 0 || !strings.Contains(errOut, "next:") {
		t.Errorf("a foreign bundle: %d %s", code, errOut)
	}

	s = r.status()
	if s.Gate.Open || s.Gate.Service != "maps" || s.Gate.Deployment != "demo" || s.Agent.Kind != transport.BundleGate || len(s.Gate.Problems) != 2 {
		t.Errorf("provisioned: %+v", s.Gate)
	}
	for _, p := range s.Gate.Problems { // no certificate, no list
		if p.Next == "" {
			t.Errorf("%q has no next step", p.Text)
		}
	}
	if code := r.end(); code != 0 {
		t.Errorf("the daemon ends with %d\n%s", code, r.log)
	}
	if strings.Contains(r.log.String(), pass) {
		t.Error("the log has a passphrase")
	}
	r.run()
	if s := r.status(); s.Gate.Service != "maps" {
		t.Errorf("after a restart: %+v", s.Gate)
	}
}

// req: L5 (a gate that cannot start says what to do)
func TestStartsThatFail(t *testing.T) {
	first := newRig(t, "")
	first.run()
	for name, c := range map[string]struct {
		spoil func(*rig)
		kind  control.Kind
	}{
		"second daemon": {func(r *rig) { r.config = first.config }, control.Conflict},
		"port in use": {func(r *rig) {
			text, _ := os.ReadFile(r.config)
			os.WriteFile(r.config, bytes.Replace(text, []byte(r.listen), []byte(first.listen), 1), 0o600)
		}, control.Conflict},
		"unknown key":       {func(r *rig) { os.WriteFile(r.config, []byte("x = 1\n"), 0o600) }, control.Config},
		"upstream over net": {func(r *rig) { os.WriteFile(r.config, []byte("[gate]\nupstream = \"http://192.0.2.1\"\n"), 0o600) }, control.Config},
		"no CA file": {func(r *rig) {
			text, _ := os.ReadFile(r.config)
			os.WriteFile(r.config, append(text, "upstream = \"https://maps.test\"\nupstream_ca = \"/nowhere.pem\"\n"...), 0o600)
		}, control.Config},
		"state is a file": {func(r *rig) { os.WriteFile(filepath.Join(r.dir, "state"), nil, 0o600) }, control.Storage},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "")
			c.spoil(r)
			var errOut bytes.Buffer
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			code := program().Run(ctx, []string{"run", "--config", r.config}, nil, &errOut, &errOut)
			if code != c.kind.Exit() || !strings.Contains(errOut.String(), "next:") {
				t.Errorf("exit %d, want %d: %s", code, c.kind.Exit(), errOut.String())
			}
		})
	}
	if s := first.status(); s.Agent.Program != "kagimori-gate" {
		t.Errorf("the first daemon: %+v", s)
	}
}

func TestShownStatus(t *testing.T) {
	r := gate.Report{
		Gate: gate.Door{
			Service: "maps", Open: true, Listen: "127.0.0.1:8443", Upstream: "unix:/run/maps.sock", Connections: 2, Admitted: 7, Passed: 40,
			Certificate: &gate.CertificateStatus{Names: []string{"maps.example"}},
			Lists:       []gate.ListStatus{{Issuer: "service CA", Number: 3, Announced: 3, Revoked: 2, AgeSeconds: 60}, {Issuer: "next CA", Number: -1, Announced: 1}},
			Refused:     map[string]int64{"revoked": 2, "expired": 1, "handshake": 9},
			Problems:    []gate.Trouble{{Text: "something", Next: "do that"}},
		},
		Agent: agent.Status{Kind: transport.BundleGate, Terminal: "gate-maps", Deployment: "demo", Service: "maps"},
	}
	var out bytes.Buffer
	showStatus(&out, &r)
	for _, says := range []string{"9 handshake, 2 revoked, 1 expired", "but see below", "number 1 is announced", "2 credentials by service CA, list 3", "do that", "2 open, 7 admitted"} {
		if !strings.Contains(out.String(), says) {
			t.Errorf("%q is missing:\n%s", says, out.String())
		}
	}
}
