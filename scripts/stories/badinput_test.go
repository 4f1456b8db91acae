package stories

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// tells checks that a program that refused said what is wrong and what to do,
// with the exit code of its kind and without a stack trace.
func (r result) tells(t *testing.T, what string, code int, words ...string) {
	t.Helper()
	if r.code != code {
		t.Errorf("%s: exit %d, want %d\n%s%s", what, r.code, code, r.out, r.err)
	}
	for _, w := range append(words, "next: ") {
		if !strings.Contains(r.err, w) {
			t.Errorf("%s: no %q in\n%s", what, w, r.err)
		}
	}
	if strings.Contains(r.err, "goroutine ") || strings.Contains(r.err, "panic") {
		t.Errorf("%s: a stack trace:\n%s", what, r.err)
	}
}

// A server that cannot be set up says why, and leaves nothing half-made.
func TestServerRefusesToBeHalfMade(t *testing.T) {
	m := newMachine(t, "server")
	config := m.config("kagimori-server", "", "")
	initialise := func(args ...string) result {
		return m.run("", "kagimori-server", append([]string{"init", "--config", config}, args...)...)
	}
	sound := []string{"--deployment", "demo", "--address", "127.0.0.1:8883"}
	initialise("--deployment", "Demo Fleet", "--address", "127.0.0.1:8883").tells(t, "a bad name", 7, "Demo Fleet")
	initialise("--deployment", "demo").tells(t, "no address", 2, "--address")
	initialise("--address", "127.0.0.1:8883").tells(t, "no name", 2, "--deployment")
	initialise("--deployment", "demo", "--address", "nowhere").tells(t, "an address without port", 7, "nowhere")
	m.run("", "kagimori-server", "run", "--config", config).tells(t, "run before init", 8, "kagimori-server init --deployment NAME --address HOST:PORT --dir "+m.state())
	if _, err := os.Stat(m.state()); !os.IsNotExist(err) {
		t.Fatalf("refused calls left a state directory: %v", err)
	}

	if err := os.MkdirAll(m.path("state", "other"), 0o700); err != nil {
		t.Fatal(err)
	}
	initialise(sound...).tells(t, "a directory that is not empty", 6, m.state())
	os.RemoveAll(m.state())

	if err := os.WriteFile(m.path("plain"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	initialise(append(sound, "--dir", m.path("plain", "state"))...).tells(t, "a directory below a file", 8, "plain")

	if r := initialise(sound...); r.code != 0 {
		t.Fatalf("init: %s%s", r.out, r.err)
	}
	before := files(t, m.state())
	initialise(sound...).tells(t, "init a second time", 6, m.state())
	for path, b := range files(t, m.state()) {
		if !bytes.Equal(before[path], b) {
			t.Errorf("the second init changed %s", path)
		}
	}
}

// A daemon that cannot start says why.
func TestDaemonsThatCannotStart(t *testing.T) {
	d := newDeployment(t, nil)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	run := func(m *machine, program, config string) result {
		return m.run("", program, "run", "--config", config)
	}
	// A second daemon on the same state, with a socket of its own.
	config, err := os.ReadFile(d.serverConfig)
	if err != nil {
		t.Fatal(err)
	}
	second := d.server.path("second.toml")
	text := strings.ReplaceAll(string(config), d.server.socket("kagimori-server"), d.server.path("second.sock"))
	if err := os.WriteFile(second, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run(d.server, "kagimori-server", second).tells(t, "a second server on one state", 6, d.server.state())
	run(d.server, "kagimori-server", d.serverConfig).tells(t, "the same server twice", 6, d.server.state())

	m := d.terminal("nav-001", sealedFile)
	config, err = os.ReadFile(m.config)
	if err != nil {
		t.Fatal(err)
	}
	second = m.path("second.toml")
	text = strings.ReplaceAll(string(config), m.socket("kagimori"), m.path("second.sock"))
	if err := os.WriteFile(second, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run(m.machine, "kagimori", second).tells(t, "a second agent on one state", 6, m.state())

	// A port that somebody else has.
	d.serverRun.stop()
	text = strings.ReplaceAll(string(mustRead(t, d.serverConfig)), d.mqtt, taken.Addr().String())
	busy := d.server.path("busy.toml")
	if err := os.WriteFile(busy, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run(d.server, "kagimori-server", busy).tells(t, "a port in use", 6, taken.Addr().String(), "mqtt")

	// Configuration that is not.
	wrong := m.path("wrong.toml")
	if err := os.WriteFile(wrong, []byte("state_dir = \"x\"\n\n[hsm]\nkynd = \"file\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(m.machine, "kagimori", wrong).tells(t, "an unknown key", 9, "wrong.toml:4", "kynd")
	run(m.machine, "kagimori", m.path("absent.toml")).tells(t, "no such configuration", 9, "absent.toml")
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A directory that the daemon may not write to.
func TestUnwritableState(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make a directory that another user cannot write to")
	}
	m := newMachine(t, "nav-001")
	os.Chmod(m.dir, 0o755)
	c := m.command("kagimori", "run", "--config", m.config("kagimori", "", ""))
	os.Chmod(m.path("kagimori.toml"), 0o644)
	os.Chmod(filepath.Dir(c.Path), 0o755)
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	var stderr bytes.Buffer
	c.Stderr = &stderr
	timer := time.AfterFunc(patience, func() { c.Process.Kill() })
	defer timer.Stop()
	c.Run()
	result{err: stderr.String(), code: c.ProcessState.ExitCode()}.tells(t, "a state directory that cannot be made", 8, m.dir)
}

// A server whose state belongs to another user: the directory, or just its files.
func TestSomebodyElsesServer(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be another user")
	}
	m := newMachine(t, "server")
	config := m.config("kagimori-server", "", "")
	if r := m.run("", "kagimori-server", "init", "--config", config, "--deployment", "demo", "--address", "127.0.0.1:8883"); r.code != 0 {
		t.Fatalf("init: %s%s", r.out, r.err)
	}
	os.Chmod(m.dir, 0o755)
	os.Chmod(config, 0o644)
	for _, mode := range []os.FileMode{0o700, 0o755} {
		os.Chmod(m.state(), mode)
		c := m.command("kagimori-server", "run", "--config", config)
		os.Chmod(filepath.Dir(c.Path), 0o755)
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		var stderr bytes.Buffer
		c.Stderr = &stderr
		timer := time.AfterFunc(patience, func() { c.Process.Kill() })
		c.Run()
		timer.Stop()
		result{err: stderr.String(), code: c.ProcessState.ExitCode()}.tells(t, fmt.Sprintf("state of mode %o that another user owns", mode), 8, m.state())
	}
}

// What a technician can get wrong with a bundle.
func TestBundlesThatAreRefused(t *testing.T) {
	d := newDeployment(t, nil)
	m := d.terminal("nav-001", sealedFile)
	good := d.bundle("nav-001", "terminal", "add", "nav-001")
	file := mustRead(t, good.Bundle)
	provision := func(path, passphrase string) result {
		return m.run(passphrase+"\n", "kagimori", "--socket", m.socket("kagimori"), "provision", path)
	}
	write := func(name string, b []byte) string {
		if err := os.WriteFile(m.path(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
		return m.path(name)
	}
	junk := make([]byte, 1000)
	rand.Read(junk)
	provision(m.path("absent"), good.Passphrase).tells(t, "no such file", 7, "absent")
	provision(write("cut", file[:len(file)/2]), good.Passphrase).tells(t, "a truncated bundle", 7, "not a provisioning bundle")
	provision(write("junk", junk), good.Passphrase).tells(t, "noise", 7, "not a provisioning bundle")
	provision(write("huge", make([]byte, 1<<20)), good.Passphrase).tells(t, "a huge file", 7)
	provision(good.Bundle, "00000-00000-00000-00000-00000").tells(t, "a wrong passphrase", 7, "passphrase")
	provision(good.Bundle, "").tells(t, "no passphrase", 2, "passphrase")
	if out := m.verb("", "kagimori", "status", "--json"); !strings.Contains(out, "unprovisioned") {
		t.Errorf("refused bundles changed something: %s", out)
	}
	gate := d.bundles["gate"]
	provision(gate.Bundle, gate.Passphrase).tells(t, "a gate's bundle", 7, "gate")

	if r := provision(good.Bundle, good.Passphrase); r.code != 0 {
		t.Fatalf("%s%s", r.out, r.err)
	}
	m.connected()
	if r := provision(good.Bundle, good.Passphrase); r.code != 0 || !strings.Contains(r.out, "nothing changed") {
		t.Errorf("the same bundle twice: exit %d\n%s%s", r.code, r.out, r.err)
	}
	other := newDeployment(t, nil)
	foreign := other.bundle("nav-001", "terminal", "add", "nav-001")
	provision(foreign.Bundle, foreign.Passphrase).tells(t, "a bundle of another deployment", 6, "deployment")

	// The same bundle on a second device: the first one keeps the name.
	thief := d.terminal("nav-009", sealedFile)
	thief.verb(good.Passphrase+"\n", "kagimori", "provision", good.Bundle)
	thief.until("the second device is refused, and says what to do", func() bool {
		return strings.Contains(thief.verb("", "kagimori", "status"), "reenroll")
	})
}

// Noise on every port: each daemon goes on serving.
func TestNoiseOnEveryPort(t *testing.T) {
	d := newDeployment(t, nil)
	m := d.terminal("nav-001", sealedFile)
	m.named()
	id := m.issue()
	o := m.offer(m.socket("kagimori"))
	junk := make([]byte, 256<<10)
	rand.Read(junk)
	tlsRecord := append([]byte{22, 3, 1, 0x40, 0}, junk[:0x4000]...)
	for where, dial := range map[string][2]string{
		"MQTT": {"tcp", d.mqtt}, "CRL": {"tcp", d.http}, "gate": {"tcp", d.door}, "relay": {"tcp", m.relay}, "key copy": {"tcp", m.copy},
		"agent's socket": {"unix", m.socket("kagimori")}, "gate's socket": {"unix", d.gate.socket("kagimori-gate")}, "server's socket": {"unix", d.server.socket("kagimori-server")},
	} {
		for _, noise := range [][]byte{nil, {0}, junk[:100], junk, tlsRecord, []byte("GET / HTTP/1.1\r\n\r\n"), []byte(fmt.Sprintf(`{"method":%q}`+"\x00", junk[:2000]))} {
			c, err := net.Dial(dial[0], dial[1])
			if err != nil {
				t.Errorf("%s no longer listens: %v", where, err)
				continue
			}
			c.SetDeadline(time.Now().Add(patience))
			c.Write(noise)
			c.Close()
		}
	}
	if got := m.curl("/x"); !strings.Contains(got, id) {
		t.Errorf("after the noise: %s", got)
	}
	fresh := d.terminal("nav-002", sealedFile)
	fresh.spare()
	fresh.until("strangers' noise is forgotten", func() bool {
		return fresh.run(o.code+"\n", "kagimori", "--socket", fresh.socket("kagimori"), "keycopy", "fetch", m.copy).code == 0
	})
	if out, err := exec.Command("curl", "-sS", "--max-time", "10", "http://"+d.http+"/healthz").CombinedOutput(); err != nil || !bytes.Contains(out, []byte("ok")) {
		t.Errorf("healthz: %s %v", out, err)
	}
}
