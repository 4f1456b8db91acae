package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/server"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

func TestEveryVerbHasItsHelp(t *testing.T) {
	for _, err := range program().Lint() {
		t.Error(err)
	}
}

// world is a directory with a deployment, and perhaps its daemon.
type world struct {
	t      *testing.T
	dir    string
	config string
	socket string
}

// say runs a verb as a person does, and returns exit code and output.
func (w *world) say(args ...string) (int, string, string) {
	w.t.Helper()
	var out, errOut bytes.Buffer
	code := program().Run(w.t.Context(), append(args, "--socket", w.socket), strings.NewReader(""), &out, &errOut)
	return code, out.String(), errOut.String()
}

// good is say for what must work.
func (w *world) good(args ...string) string {
	w.t.Helper()
	code, out, errOut := w.say(args...)
	if code != 0 {
		w.t.Fatalf("%v: exit %d: %s", args, code, errOut)
	}
	return out
}

// bad is say for what must fail, with an exit code and a next step.
func (w *world) bad(code int, args ...string) {
	w.t.Helper()
	got, _, errOut := w.say(args...)
	if got != code || !strings.Contains(errOut, "next:") {
		w.t.Errorf("%v: exit %d, want %d with a next step: %s", args, got, code, errOut)
	}
}

// into decodes what a verb prints with --json.
func (w *world) into(v any, args ...string) {
	w.t.Helper()
	if err := json.Unmarshal([]byte(w.good(append(args, "--json")...)), v); err != nil {
		w.t.Fatalf("%v: %v", args, err)
	}
}

func newWorld(t *testing.T, mqtt, http string) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, dir: dir, config: filepath.Join(dir, "server.toml"), socket: filepath.Join(dir, "control.sock")}
	text := fmt.Sprintf("state_dir = %q\n[control]\nsocket = %q\n[mqtt]\nlisten = %q\n[http]\nlisten = %q\n[log]\nlevel = \"warn\"\n",
		filepath.Join(dir, "state"), w.socket, mqtt, http)
	if err := os.WriteFile(w.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) init() {
	w.t.Helper()
	w.good("init", "--config", w.config, "--deployment", "demo", "--address", "server.test:8883")
}

// run starts the daemon and stops it when the test ends.
func (w *world) run() {
	w.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan int)
	var errOut bytes.Buffer
	go func() {
		done <- program().Run(ctx, []string{"run", "--config", w.config}, strings.NewReader(""), &bytes.Buffer{}, &errOut)
	}()
	c, err := control.Dial(w.t.Context(), w.socket) // waits for it
	if err != nil {
		stop()
		w.t.Fatalf("%v; exit %d: %s", err, <-done, errOut.String())
	}
	c.Close()
	w.t.Cleanup(func() {
		stop()
		if code := <-done; code != 0 {
			w.t.Errorf("run: exit %d: %s", code, errOut.String())
		}
		if _, err := os.Stat(w.socket); !errors.Is(err, os.ErrNotExist) {
			w.t.Errorf("the socket is left behind: %v", err)
		}
	})
}

const anyPort = "127.0.0.1:0"

// The administrator's day.
// req: L1, L6
func TestAdministration(t *testing.T) {
	w := newWorld(t, anyPort, anyPort)
	w.init()
	w.run()
	at := func(name string) string { return filepath.Join(w.dir, name) }

	var m struct {
		Terminal, Bundle, Passphrase string
	}
	w.into(&m, "terminal", "add", "nav-001", "--out", at("nav-001.bundle"))
	file, err := os.ReadFile(m.Bundle)
	if err != nil {
		t.Fatal(err)
	}
	b, err := transport.OpenBundle(file, transport.Sensitive(m.Passphrase))
	if err != nil || b.Terminal != "nav-001" || b.Servers[0] != "server.test:8883" {
		t.Errorf("%+v, %v", b, err)
	}
	if fi, err := os.Stat(m.Bundle); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	out := w.good("spare", "add", "--out", at("spare.bundle"))
	if !strings.Contains(out, "passphrase") || !strings.Contains(out, "shown this once") {
		t.Error(out)
	}
	w.good("gate", "add", "maps", "--dns", "maps.test", "--endpoint", "192.0.2.7:8443", "--out", at("gate.bundle"))
	var p server.OrderProgress
	w.into(&p, "credential", "issue", "nav-001", "--service", "maps")
	if p.State != "pending" || p.Connected {
		t.Errorf("%+v", p)
	}
	if out := w.good("credential", "list", "--where", "terminal=nav-001"); !strings.Contains(out, string(p.Credential)) || !strings.Contains(out, "(nav-001)") || strings.Contains(out, "gate-maps") {
		t.Error(out)
	}
	for _, column := range []string{"ID", "KIND", "DESTINATION", "SUBJECT", "HOLDERS", "EXPIRES", "STATE", "OPERATION", "DATE"} {
		if out := w.good("credential", "list"); !strings.Contains(out, column) {
			t.Errorf("no column %s: %s", column, out)
		}
	}
	w.good("credential", "show", string(p.Credential))
	var list struct{ Terminals []server.TerminalInfo }
	w.into(&list, "terminal", "list", "--sort", "created", "--reverse")
	if len(list.Terminals) != 2 || list.Terminals[0].Name != "gate-maps" {
		t.Errorf("%+v", list)
	}
	if out := w.good("terminal", "show", "nav-001"); !strings.Contains(out, "credential.issue") {
		t.Error(out)
	}
	w.good("terminal", "reenroll", "nav-001", "--out", at("again.bundle"))
	if out := w.good("terminal", "remove", "nav-001"); !strings.Contains(out, "Withdrawn") || !strings.Contains(out, "had not enrolled") {
		t.Error(out)
	}
	if out := w.good("credential", "list", "--where", "state=withdrawn"); !strings.Contains(out, string(p.Credential)) || !strings.Contains(out, "withdrawn") {
		t.Error(out)
	}
	for _, state := range []string{"in force", "revoked"} {
		if out := w.good("credential", "list", "--where", "state="+state); !strings.Contains(out, "none match") {
			t.Error(out)
		}
	}
	w.good("terminal", "add", "nav-002", "--out", at("nav-002.bundle"))
	w.into(&p, "credential", "issue", "nav-002", "--service", "maps", "--transfer", "move")
	if out := w.good("credential", "show", string(p.Credential)); !strings.Contains(out, "move") {
		t.Error(out)
	}
	if out := w.good("credential", "set", string(p.Credential), "--transfer", "never"); !strings.Contains(out, "transfer never, was move") || !strings.Contains(out, "nav-002") {
		t.Error(out)
	}
	w.bad(2, "credential", "set", string(p.Credential))
	w.bad(7, "credential", "set", string(p.Credential), "--transfer", "sometimes")
	w.bad(3, "credential", "set", "cr-nothing", "--transfer", "copy")
	if out := w.good("keycopy", "list"); !strings.Contains(out, "no terminal has reported a key copy") {
		t.Error(out)
	}
	w.bad(2, "keycopy", "list", "--open", "--contradictions")
	w.bad(7, "keycopy", "show", "cr-nothing")
	w.bad(3, "keycopy", "show", "00112233445566778899aabbccddeeff")
	if out := w.good("credential", "revoke", string(p.Credential)); !strings.Contains(out, "nav-002 had not got it") || !strings.Contains(out, "next: ") {
		t.Error(out)
	}
	w.bad(6, "credential", "revoke", string(p.Credential))
}

func TestRefusedVerbsChangeNothing(t *testing.T) {
	w := newWorld(t, anyPort, anyPort)
	w.init()
	w.run()
	at := func(name string) string { return filepath.Join(w.dir, name) }
	w.good("terminal", "add", "nav-001", "--out", at("spare.bundle"))
	w.good("terminal", "remove", "nav-001")
	var list struct{ Terminals []server.TerminalInfo }

	w.bad(2, "gate", "add", "fuel")
	w.bad(2, "credential", "issue", "nav-001")
	w.bad(2, "terminal", "list", "--where", "state")
	w.bad(3, "terminal", "show", "nav-999")
	w.bad(3, "credential", "show", "cr-1")
	w.bad(6, "terminal", "remove", "nav-001")
	w.bad(6, "terminal", "add", "nav-002", "--out", at("spare.bundle")) // the file is there
	w.bad(7, "terminal", "add", "nav-002", "--out", at("no/such/dir"))
	w.bad(7, "terminal", "add", "Nav-002", "--out", at("x.bundle"))
	w.bad(7, "terminal", "list", "--sort", "secret")
	w.bad(7, "terminal", "list", "--where", "state=foo")
	w.bad(7, "credential", "list", "--where", "state=foo")
	w.bad(3, "terminal", "add", "nav-002", "--group", "foo", "--out", at("x.bundle"))
	w.bad(3, "credential", "revoke", "cr-1")
	if _, err := os.Stat(at("x.bundle")); !errors.Is(err, os.ErrNotExist) {
		t.Error("a bundle that was not made is there")
	}
	w.into(&list, "terminal", "list")
	if len(list.Terminals) != 1 {
		t.Errorf("a refused verb changed something: %+v", list)
	}
	w.bad(6, "run", "--config", w.config) // two daemons
	w.bad(6, "init", "--config", w.config, "--deployment", "demo", "--address", "server.test:8883")
}

func TestRunSaysWhatIsWrong(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for name, w := range map[string]*world{"mqtt": newWorld(t, busy.Addr().String(), anyPort), "http": newWorld(t, anyPort, busy.Addr().String())} {
		w.init()
		w.bad(6, "run", "--config", w.config)
		if _, err := os.Stat(w.socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the socket is left behind", name)
		}
	}
	none := newWorld(t, anyPort, anyPort)
	none.bad(8, "run", "--config", none.config) // no init
	if entries, err := os.ReadDir(filepath.Join(none.dir, "state")); err == nil {
		t.Errorf("run made %v", entries)
	}
	elsewhere := newWorld(t, "192.0.2.99:8883", anyPort)
	elsewhere.init()
	elsewhere.bad(9, "run", "--config", elsewhere.config)
	elsewhere.bad(5, "terminal", "list") // no daemon
	if err := os.WriteFile(elsewhere.config, []byte("nonsense = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	elsewhere.bad(9, "run", "--config", elsewhere.config)
}

func TestInitSaysWhatIsWrong(t *testing.T) {
	w := newWorld(t, anyPort, anyPort)
	init := []string{"init", "--config", w.config}
	w.bad(2, init...)
	w.bad(2, append(init, "--deployment", "demo")...)
	w.bad(2, append(init, "--address", "server.test:8883")...)
	w.bad(7, append(init, "--deployment", "demo", "--address", "server.test")...)
	w.bad(8, append(init, "--deployment", "demo", "--address", "server.test:8883", "--dir", filepath.Join(w.dir, "a", "b"))...)
	w.bad(6, append(init, "--deployment", "demo", "--address", "server.test:8883", "--dir", w.dir)...)
	if entries, err := os.ReadDir(w.dir); err != nil || len(entries) != 1 {
		t.Errorf("something is left: %v, %v", entries, err)
	}
	w.init()
}
