package configs

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// TestErrorsNameFileLineAndKey: one line of what is wrong for each mistake.
func TestErrorsNameFileLineAndKey(t *testing.T) {
	const relay = "[[relay]]\nservice = \"a\"\nlisten = \"127.0.0.1:1\"\n"
	for _, c := range []struct {
		cfg  Program
		file string
		want []string // of each error, in order
	}{
		{&Agent{}, "\n[link]\npol = 1\n", []string{"f:3: unknown key `link.pol`; known keys here: max_backoff, poll"}},
		{&Agent{}, "x.y = 1\n", []string{"f:1: unknown key `x.y`; known keys here: control, hsm, keycopy, link, log, relay, state_dir"}},
		{&Agent{}, "[nope]\na = 1\n", []string{"f:1: unknown key `nope`; known keys here: control, hsm, keycopy, link, log, relay, state_dir"}},
		{&Agent{}, relay + "via = \"x\"\n", []string{"f:4: unknown key `relay[0].via`; known keys here: exposed, listen, service"}},
		{&Agent{}, "[Link]\npoll = \"1m\"\n", []string{"f:1: unknown key `Link`; known keys here: control, hsm, keycopy, link, log, relay, state_dir"}},
		{&Agent{}, "[link]\nPoll = \"1m\"\n", []string{"f:2: unknown key `link.Poll`; known keys here: max_backoff, poll"}},
		{&Agent{}, relay + "Exposed = true\n", []string{"f:4: unknown key `relay[0].Exposed`; known keys here: exposed, listen, service"}},
		{&Agent{}, "[link]\npoll = \"1x\"\n", []string{`f:2: link.poll: "1x" is not a duration such as "90s", "15m" or "24h"`}},
		{&Agent{}, "[link]\npoll = 900\n", []string{`f:2: link.poll: "900" is not a duration such as "90s", "15m" or "24h"`}},
		{&Agent{}, "[link]\npoll = \"\"\n", []string{`f:2: link.poll: "" is not a duration`}},
		{&Agent{}, "[link]\npoll = true\n", []string{"f:2: link.poll: "}},
		{&Agent{}, "[hsm]\nkind = 3\n", []string{"f:2: hsm.kind: this cannot be a TOML integer"}},
		{&Agent{}, "state_dir = \"a\"\nstate_dir = \"b\"\n", []string{"f:2: state_dir: is there twice, first in line 1"}},
		{&Agent{}, "[link]\n[log]\n[link]\n", []string{"f:3: link: is there twice, first in line 1"}},
		{&Agent{}, "link = {poll = \"1m\", poll = \"2m\"}\n[link]\n", []string{"f:1: link.poll: is there twice", "f:2: link: is there twice"}},
		{&Agent{}, "[relay]\n", []string{"f:1: relay: write [[relay]], since there may be several"}},
		{&Agent{}, "[[link]]\npoll = \"1m\"\n", []string{"f:1: link: is not a section of that kind"}},
		{&Agent{}, "[state_dir]\n", []string{"f:1: state_dir: is not a section of that kind"}},
		{&Agent{}, "state_dir.x = 1\n[relay.x]\n", []string{"f:1: unknown key `state_dir.x`", "f:2: unknown key `relay.x`"}},
		{&Agent{}, "relay = [1, {service = \"a\", x.y = 2}]\n[[relay]]\n", []string{"f:1: relay[0]: this cannot be a TOML integer", "f:1: unknown key `relay[1].x.y`; known keys here: exposed, listen, service", "f:2: relay: is there twice"}},
		{&Agent{}, "[link]\npoll = [\"1m\"]\n[hsm]\nboot_registers = [99999999999999999999, true]\n", []string{
			"f:2: link.poll: this cannot be a TOML array", "f:4: hsm.boot_registers[0]: 99999999999999999999 is too large", "f:4: hsm.boot_registers[1]: this cannot be a TOML bool"}},
		{&Agent{}, "state_dir = \"a\n", []string{"f:1: "}},
		{&Agent{}, "\xff = 1\n", []string{"f:1: "}},
		{&Agent{}, "state_dir = \"\"\n", []string{"f:1: state_dir: is empty"}},
		{&Agent{}, "[hsm]\n# a chip\nkind = \"chip\"\n", []string{`f:3: hsm.kind: "chip" is neither "file" nor "tpm"`}},
		{&Agent{}, "[control]\nsocket = \"\"\nmode = \"0888\"\noperators = [\" \"]\n", []string{
			"f:2: control.socket: is empty",
			`f:3: control.mode: "0888" is not an octal mode such as "0660" that lets the owner in`,
			"f:4: control.operators: has an empty name"}},
		{&Agent{}, "[control]\nmode = \"0060\"\n", []string{"f:2: control.mode: "}},
		{&Agent{}, "[link]\npoll = \"1ms\"\nmax_backoff = \"1000h\"\n", []string{
			"f:2: link.poll: 1ms is outside 1s to 24h0m0s", "f:3: link.max_backoff: 1000h0m0s is outside 1s to 24h0m0s"}},
		{&Agent{}, "[keycopy]\nlisten = \"8885\"\ncode_ttl = \"1s\"\nenabled = [\"pake\", \"none\"]\n", []string{
			`f:2: keycopy.listen: "8885" is not HOST:PORT`, "f:3: keycopy.code_ttl: ", `f:4: keycopy.enabled: mode "none" is not known; known: ["pake" "kek" "direct"]`}},
		{&Agent{}, "[keycopy]\ncode_ttl = \"301s\"\n", []string{"f:2: keycopy.code_ttl: 5m1s is outside 10s to 5m0s"}},
		{&Agent{}, "[hsm]\npassphrase = \"\"\n", []string{`f:2: hsm.passphrase: "" is none of "ask", "credential:NAME" and the absolute path of a file`}},
		{&Agent{}, "[hsm]\npath = \"credential:a/b\"\npassphrase = \"credential:\"\n", []string{
			`f:2: hsm.path: "a/b" is not a name of a credential`, `f:3: hsm.passphrase: "" is not a name of a credential`}},
		{&Gate{}, "[hsm]\nkind = \"tpm\"\npath = \"credential:a\"\npassphrase = \"/etc/p\"\n", []string{
			`f:3: hsm.path: "credential:a": a credential is a device secret, for kind "file"`, `f:4: hsm.passphrase: is for kind "file" only`}},
		{&Server{}, "[hsm]\npassphrase = \"ask\"\n", []string{"f:2: unknown key `hsm.passphrase`"}},
		{&Agent{}, relay + "\n" + relay, []string{`f:7: relay[1].listen: "127.0.0.1:1" is another relay's already`}},
		{&Agent{}, "[[relay]]\nservice = \"Maps\"\nlisten = \"0.0.0.0:1\"\n", []string{
			`f:2: relay[0].service: "Maps" is not a name of a service`, `f:3: relay[0].listen: "0.0.0.0:1" can be reached from other machines`}},
		{&Agent{}, "[[relay]]\nservice = \"a\"\nlisten = \":1\"\n", []string{"f:3: relay[0].listen: \":1\" can be reached"}},
		{&Agent{}, "[log]\nlevel = \"loud\"\nformat = \"xml\"\n", []string{"f:2: log.level: ", "f:3: log.format: "}},
		{&Gate{}, "[gate]\nupstream = \"http://10.0.0.1:80\"\n", []string{"f:2: gate.upstream: \"http://10.0.0.1:80\": plain http only on loopback"}},
		{&Gate{}, "[gate]\nupstream = \"ftp://localhost\"\n", []string{"f:2: gate.upstream: \"ftp://localhost\": scheme"}},
		{&Gate{}, "[gate]\nupstream = \"localhost:80\"\n", []string{"f:2: gate.upstream: "}},
		{&Gate{}, "[gate]\nupstream = \"unix:relative\"\n", []string{"f:2: gate.upstream: "}},
		{&Gate{}, "[gate]\nupstream = \"https://localhost/base\"\n", []string{"f:2: gate.upstream: \"https://localhost/base\" has a path"}},
		{&Gate{}, "[gate]\nupstream_ca = \"ca.pem\"\n", []string{"f:2: gate.upstream_ca: is for an https upstream only"}},
		{&Gate{}, "[gate]\ncrl_max_age = \"30m\"\n", []string{"f: gate.crl_fetch: 1h0m0s is longer than crl_max_age, 30m0s"}},
		{&Server{}, "[mqtt]\nlisten = \"x:99999\"\n[http]\nlisten = \"x\"\n[ca]\nbackdate = \"-1s\"\n", []string{
			"f:2: mqtt.listen: ", "f:4: http.listen: ", "f:6: ca.backdate: "}},
	} {
		err := Parse("f", []byte(c.file), c.cfg)
		got := each(err)
		if len(got) != len(c.want) {
			t.Errorf("%q: %v, want %q", c.file, err, c.want)
			continue
		}
		for i, e := range got {
			if !strings.HasPrefix(e.Error(), c.want[i]) || e.Next == "" || strings.Contains(e.Error(), "configs.") {
				t.Errorf("%q: %v (next: %s), want %q", c.file, e, e.Next, c.want[i])
			}
		}
	}
}

// each takes joined errors apart.
func each(err error) []*Error {
	if e, ok := err.(*Error); ok {
		return []*Error{e}
	}
	var list []*Error
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range j.Unwrap() {
			list = append(list, each(e)...)
		}
	}
	return list
}

func TestGoodValues(t *testing.T) {
	for _, c := range []struct {
		cfg  Program
		file string
	}{
		{&Agent{}, ""},
		{&Agent{}, "[[relay]]\nservice = \"a\"\nlisten = \"unix:/run/x\"\n[[relay]]\nservice = \"b\"\nlisten = \"0.0.0.0:80\"\nexposed = true\n[[relay]]\nservice = \"c\"\nlisten = \"[::1]:0\"\n"},
		{&Gate{}, "[gate]\nupstream = \"unix:/run/up.sock\"\n"},
		{&Gate{}, "[gate]\nupstream = \"https://maps.example\"\nupstream_ca = \"/etc/kagimori-gate/maps.pem\"\n"},
		{&Gate{}, "[gate]\nupstream = \"http://[::1]:8080/\"\n"},
		{&Gate{}, "[gate]\nupstream = \"http://localhost\"\n"},
		{&Server{}, "state_dir = \"demo\"\n[hsm]\nkind = \"tpm\"\npath = \"/tmp/swtpm.sock\"\n"},
	} {
		if err := Parse("f", []byte(c.file), c.cfg); err != nil {
			t.Errorf("%q: %v", c.file, err)
		}
	}
	var a Agent
	if err := Parse("f", []byte("[link]\npoll = \"90s\"\n[control]\nmode = \"0600\"\n"), &a); err != nil {
		t.Fatal(err)
	}
	if a.Link.Poll.D() != 90*time.Second || a.Link.MaxBackoff.D() != 2*time.Minute || a.Control.FileMode() != 0o600 {
		t.Errorf("%+v", a) // what the file does not say is the default
	}
}

// elsewhere is an agent whose default path is another.
type elsewhere struct {
	Agent
	path string
}

func (e *elsewhere) defaultPath() string { return e.path }

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "agent.toml")
	cfg := &elsewhere{path: missing}
	if err := Load("", cfg); err != nil || !reflect.DeepEqual(cfg.Agent, DefaultAgent()) {
		t.Errorf("missing at the default path: %v, %+v", err, cfg)
	}
	var a Agent
	err := Load(missing, &a)
	if e, ok := errors.AsType[*Error](err); !ok || !errors.Is(err, fs.ErrNotExist) || e.Next == "" || e.ProblemKind() != "config" || e.NextStep() != e.Next {
		t.Errorf("missing where somebody said: %v", err)
	}
	if err := Load(dir, &a); err == nil || !strings.HasPrefix(err.Error(), dir+": ") {
		t.Errorf("a directory: %v", err)
	}
	if err := os.WriteFile(missing, []byte("state_dir = \"/x\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Load(missing, &a); err != nil || a.StateDir != "/x" {
		t.Errorf("%v, %+v", err, a)
	}
	if err := os.WriteFile(missing, bytes.Repeat([]byte("#\n"), MaxFile), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Load(missing, &a); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("an endless file: %v", err)
	}
}

func TestLogger(t *testing.T) {
	var b bytes.Buffer
	log := Logger(Log{Level: "warn", Format: "json"}, &b)
	log.Info("no")
	log.Warn("yes", "err", errors.New("x"))
	if got := b.String(); strings.Contains(got, "no") || !strings.Contains(got, `"msg":"yes","err":"x"`) {
		t.Error(got)
	}
	b.Reset()
	Logger(DefaultAgent().Log, &b).Info("hello", "n", 1)
	if got := b.String(); !strings.Contains(got, "level=INFO msg=hello n=1") {
		t.Error(got)
	}
	for text, level := range map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError} {
		if got, ok := (Log{Level: text}).level(); got != level || !ok {
			t.Errorf("%s: %v", text, got)
		}
	}
}

// FuzzLoad: whatever the file says, it is a configuration that passes its own
// check, or errors that name the file and say what to do.
func FuzzLoad(f *testing.F) {
	for _, name := range []string{"agent.toml", "gate.toml", "server.toml"} {
		data, err := Files.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("[[relay]]\nservice = \"a\"\nlisten = \"[::1]:1\"\n[Link]\npoll = 3\n"))
	f.Add([]byte("relay = [1, {service = \"a\", x.y = 2}]\n[a.b.c]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, cfg := range programs() {
			err := Parse("f", data, cfg)
			if err == nil {
				cfg.check(func(key, _ string, _ ...any) { t.Errorf("taken, but %s is wrong", key) })
				continue
			}
			list := each(err)
			if len(list) == 0 {
				t.Fatalf("%T: not an *Error: %v", err, err)
			}
			for _, e := range list {
				if e.File != "f" || e.Message == "" || e.Next == "" || e.Line > 1+bytes.Count(data, []byte("\n")) {
					t.Errorf("%+v", e)
				}
			}
		}
	})
}
