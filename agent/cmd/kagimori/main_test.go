package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/configs"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

func TestEveryVerbIsExplained(t *testing.T) {
	for _, err := range program().Lint() {
		t.Error(err)
	}
}

// box is one machine: a state directory, a configuration, a socket.
type box struct {
	t      *testing.T
	dir    string
	socket string
	cfg    configs.Agent
}

func newBox(t *testing.T) *box {
	t.Helper()
	dir, err := os.MkdirTemp("", "k") // short: socket paths have 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &box{t: t, dir: dir, socket: filepath.Join(dir, "s"), cfg: configs.DefaultAgent()}
	b.cfg.StateDir, b.cfg.Control.Socket, b.cfg.Keycopy.Listen = filepath.Join(dir, "state"), b.socket, "127.0.0.1:0"
	b.cfg.Relays = []configs.Relay{{Service: "maps", Listen: "127.0.0.1:0"}}
	return b
}

// start runs the daemon until the test ends, or until it is stopped.
func (b *box) start() (halt func()) {
	b.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := run(ctx, &b.cfg, slog.New(slog.DiscardHandler)); err != nil {
			b.t.Errorf("run: %v", err)
		}
	})
	halt = func() { stop(); wg.Wait() }
	b.t.Cleanup(halt)
	return halt
}

// try runs a verb.
func (b *box) try(stdin string, args ...string) (code int, out, errOut string) {
	b.t.Helper()
	var o, e bytes.Buffer
	code = program().Run(b.t.Context(), append([]string{"--socket", b.socket}, args...), strings.NewReader(stdin), &o, &e)
	return code, o.String(), e.String()
}

func (b *box) must(stdin string, args ...string) string {
	b.t.Helper()
	code, out, errOut := b.try(stdin, args...)
	if code != 0 {
		b.t.Fatalf("kagimori %s: exit %d\n%s", strings.Join(args, " "), code, errOut)
	}
	return out
}

// fails wants an exit code, words, and a next step (a bundle's errors have it
// in the message).
func (b *box) fails(kind control.Kind, words, stdin string, args ...string) {
	b.t.Helper()
	code, out, errOut := b.try(stdin, args...)
	if code != kind.Exit() || !strings.Contains(errOut, words) || !strings.Contains(errOut, "next: ") && !strings.Contains(errOut, "bundle") {
		b.t.Errorf("kagimori %s: exit %d, want %d, %q and a next step\n%s%s", strings.Join(args, " "), code, kind.Exit(), words, out, errOut)
	}
}

// bundle writes a spare bundle and returns its path and passphrase.
func (b *box) bundle() (path, passphrase string) {
	b.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	root, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		b.t.Fatal(err)
	}
	file, secret, err := transport.SealBundle(&transport.Bundle{
		ID: transport.NewID(rand.Reader), Kind: transport.BundleSpare, Deployment: "demo", Issued: time.Now().Unix(), Root: root,
		Group: "default", Epoch: 1, SecurityCode: make(transport.Sensitive, transport.SecurityCodeSize),
	})
	if err != nil {
		b.t.Fatal(err)
	}
	path = filepath.Join(b.dir, "spare.bundle")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		b.t.Fatal(err)
	}
	return path, string(secret)
}

func TestVerbs(t *testing.T) {
	b := newBox(t)
	b.fails(control.Unavailable, "no daemon answers", "", "status")
	b.start()

	if out := b.must("", "status"); !strings.Contains(out, "not provisioned") || !strings.Contains(out, "next: take in a bundle") {
		t.Errorf("status of a new device:\n%s", out)
	}
	b.fails(control.Conflict, "no security code yet", "", "keycopy", "offer")

	path, passphrase := b.bundle()
	b.fails(control.BadInput, "passphrase does not open", "wrong\n", "provision", path)
	b.fails(control.BadInput, "no such file", "x\n", "provision", path+".not")
	b.fails(control.BadInput, "not a provisioning bundle", "x\n", "provision", "main_test.go")
	b.fails(control.Usage, "no passphrase given", "", "provision", path)
	if out := b.must(passphrase+"\n", "provision", path); !strings.Contains(out, "now a spare of deployment demo") || !strings.Contains(out, "rm "+path) {
		t.Errorf("provision:\n%s", out)
	}
	if out := b.must(passphrase+"\n", "provision", path); !strings.Contains(out, "nothing changed") {
		t.Errorf("provision twice:\n%s", out)
	}

	var s agent.Status
	if err := json.Unmarshal([]byte(b.must("", "status", "--json")), &s); err != nil {
		t.Fatal(err)
	}
	if s.Kind != transport.BundleSpare || s.Deployment != "demo" || s.Device == nil || !s.Keys.Open || len(s.Relays) != 1 {
		t.Errorf("status %+v", s)
	}
	if out := b.must("", "credential", "list", "--json"); strings.Join(strings.Fields(out), "") != `{"credentials":[]}` {
		t.Errorf("credential list: %s", out)
	}
	if out := b.must("", "credential", "list"); !strings.Contains(out, "keycopy fetch") {
		t.Errorf("an empty list says what to do:\n%s", out)
	}
	if out := b.must("", "relay", "list"); !strings.Contains(out, "maps") || !strings.Contains(out, "  -  ") {
		t.Errorf("relay list:\n%s", out)
	}
	var page agent.RelayPage
	if err := json.Unmarshal([]byte(b.must("", "relay", "list", "--json")), &page); err != nil || len(page.Relays) != 1 {
		t.Errorf("relay list --json: %+v, %v", page, err)
	}
	b.fails(control.NotFound, "holds no credential maps-1", "", "credential", "show", "maps-1")
	b.fails(control.BadInput, "a name is", "", "credential", "show", "Maps 1")
	b.fails(control.NotFound, "nothing to copy", "", "keycopy", "offer")
	b.fails(control.BadInput, "9 digits", "1234\n", "keycopy", "fetch", "127.0.0.1:1")
	b.fails(control.Usage, "not HOST:PORT", "000 000 000\n", "keycopy", "fetch", "192.0.2.7")
	b.fails(control.Unavailable, "127.0.0.1:1", "000 000 000\n", "keycopy", "fetch", "127.0.0.1:1")
	if out := b.must("", "keycopy", "disarm"); !strings.Contains(out, "no offer stood") {
		t.Errorf("disarm:\n%s", out)
	}
}

// Two daemons: the second one says so and leaves the first alone.
func TestSecondDaemon(t *testing.T) {
	b := newBox(t)
	b.start()
	b.must("", "status") // waits for it
	log := slog.New(slog.DiscardHandler)
	if err := run(t.Context(), &b.cfg, log); control.AsProblem(err).Kind != control.Conflict {
		t.Errorf("on one socket: %v", err)
	}
	other := b.cfg
	other.Control.Socket += "2"
	if err := run(t.Context(), &other, log); control.AsProblem(err).Kind != control.Conflict || control.AsProblem(err).Next == "" {
		t.Errorf("on one store: %v", err)
	}
	b.must("", "status")
}

func TestStateDirectoryThatIsNone(t *testing.T) {
	b := newBox(t)
	if err := os.WriteFile(b.cfg.StateDir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := run(t.Context(), &b.cfg, slog.New(slog.DiscardHandler))
	if p := control.AsProblem(err); p.Kind != control.Storage || p.Next == "" {
		t.Errorf("%v", err)
	}
}

func TestConfigurationThatIsNone(t *testing.T) {
	b := newBox(t)
	path := filepath.Join(b.dir, "agent.toml")
	if err := os.WriteFile(path, []byte("state_dir = \"x\"\nstat_dir = \"y\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, errOut := b.try("", "run", "--config", path); code != control.Config.Exit() || !strings.Contains(errOut, "agent.toml:2") {
		t.Errorf("exit %d\n%s", code, errOut)
	}
}

// Without its TPM the daemon starts, answers, and says what to do.
func TestTPMThatIsNotThere(t *testing.T) {
	b := newBox(t)
	b.cfg.HSM = configs.HSM{Kind: "tpm", Path: filepath.Join(b.dir, "none")}
	b.start()
	var s agent.Status
	if err := json.Unmarshal([]byte(b.must("", "status", "--json")), &s); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); s.Keys.Next == "try again in a moment" && time.Now().Before(deadline); {
		if err := json.Unmarshal([]byte(b.must("", "status", "--json")), &s); err != nil {
			t.Fatal(err)
		}
	}
	if s.Keys.Open || !strings.Contains(s.Keys.Next, "TPM") || s.Device != nil {
		t.Errorf("status %+v", s.Keys)
	}
	path, passphrase := b.bundle()
	b.fails(control.Storage, "absent", passphrase+"\n", "provision", path)
	b.fails(control.Storage, "absent", "", "credential", "list")
}

// A shell completes ids by asking the daemon.
func TestCompletion(t *testing.T) {
	b := newBox(t)
	if out := b.must("", "__complete", "credential", "show", "cr"); strings.Contains(out, "cr-") {
		t.Errorf("without a daemon:\n%s", out)
	}
	b.start()
	path, passphrase := b.bundle()
	b.must(passphrase+"\n", "provision", path)
	for _, args := range [][]string{{"credential", "show", ""}, {"keycopy", "offer", "--credential", ""}, {"keycopy", "show", ""}, {"keycopy", "resume", ""}, {"keycopy", "reclaim", ""},
		{"keycopy", "fetch", ""}, {"keycopy", "fetch", "--mode", ""}, {"credential", "import", "--kind", ""}, {"credential", "import", "--replace", ""}} {
		out := b.must("", append([]string{"__complete"}, args...)...)
		if !strings.HasSuffix(strings.TrimSpace(out), ":4") { // no file names
			t.Errorf("%v:\n%s", args, out)
		}
	}
	if out := b.must("", "__complete", "credential", "import", "--kind", "key"); !strings.Contains(out, "key-pair") {
		t.Errorf("kinds:\n%s", out)
	}
}
