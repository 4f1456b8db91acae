package verb

import (
	"encoding/json"
	gobuild "go/build"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/transport/control"
)

func TestPrintJSON(t *testing.T) {
	code, out, _ := try(t, "", "credential show --json a<b>")
	var v map[string]string
	if err := json.Unmarshal([]byte(out), &v); code != 0 || err != nil || v["id"] != "a<b>" || !strings.Contains(out, "a<b>") {
		t.Errorf("%d, %v, %q", code, err, out)
	}
}

func TestTableAndFields(t *testing.T) {
	var b strings.Builder
	NewTable(&b, "ID").Flush("no credentials yet")
	tab := NewTable(&b, "Größe", "N")
	tab.Row("x", 1)
	tab.Row("länger als", Warn("w"))
	tab.Flush("")
	Fields(&b, "terminal", "nav-001", "up", true)
	want := "no credentials yet\nGröße       N\nx           1\nlänger als  w\nterminal  nav-001\nup        true\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &b, want)
	}
}

func TestVersion(t *testing.T) {
	_, out, _ := try(t, "", "version")
	if !strings.HasPrefix(out, "demo 1.2.3 (go") {
		t.Error(out)
	}
	if _, again, _ := try(t, "", "--version"); again != out {
		t.Errorf("--version: %q", again)
	}
	if _, as, _ := try(t, "", "--version --json"); !strings.HasPrefix(as, "{") {
		t.Errorf("--version --json: %q", as)
	}
	_, out, _ = try(t, "", "version --json")
	var b struct{ Program, Version, Go, Platform string }
	if err := json.Unmarshal([]byte(out), &b); err != nil || b.Version != "1.2.3" || b.Platform == "" {
		t.Errorf("%v: %s", err, out)
	}
	if f := New("demo", "", "", ""); f.version != "devel" {
		t.Error(f.version)
	}
}

func TestSocketFlag(t *testing.T) {
	socket := func(args ...string) (got string) {
		f := New("kagimori-gate", "A", "B", "1")
		f.Add(&cobra.Command{Use: "x", RunE: func(cmd *cobra.Command, _ []string) error {
			got = Socket(cmd)
			return nil
		}})
		f.Run(t.Context(), append([]string{"x"}, args...), nil, nil, nil)
		return got
	}
	if got := socket(); got != "/run/kagimori-gate/control.sock" {
		t.Error(got)
	}
	t.Setenv("KAGIMORI_GATE_SOCKET", "/a")
	if got := socket(); got != "/a" {
		t.Error(got)
	}
	if got := socket("--socket", "/b"); got != "/b" {
		t.Error(got)
	}
}

// TestDialProblem: a verb without a daemon says so, with the exit code of it.
func TestDialProblem(t *testing.T) {
	f := New("demo", "A", "B", "1")
	f.Add(&cobra.Command{Use: "x", RunE: func(cmd *cobra.Command, _ []string) error {
		_, err := Dial(cmd)
		return err
	}})
	var stderr strings.Builder
	path := t.TempDir() + "/none.sock"
	code := f.Run(t.Context(), []string{"x", "--socket", path}, nil, nil, &stderr)
	if code != control.Unavailable.Exit() || !strings.Contains(stderr.String(), "no daemon answers at "+path) || !strings.Contains(stderr.String(), "\n  next: start it: systemctl start demo") {
		t.Errorf("%d: %s", code, &stderr)
	}
}

func TestHelp(t *testing.T) {
	for line, want := range map[string][]string{
		"--help":                 {"credential", "exit-codes", "completion", "--json", "--socket PATH", "Usage:\n  demo VERB\n"},
		"credential --help":      {"What this terminal holds.", "show"},
		"credential show --help": {"Shows one.", "demo credential show maps-1", "demo credential show ID [FIELD]"},
		"help exit-codes":        {"   6  conflict     ", "   0  ", "130  interrupted"},
		"completion bash":        {"__demo"},
	} {
		code, out, stderr := try(t, "", line)
		for _, w := range want {
			if code != 0 || stderr != "" || !strings.Contains(out, w) {
				t.Errorf("demo %s: exit %d, no %q in\n%s%s", line, code, w, out, stderr)
			}
		}
		if strings.Contains(out, "man DIRECTORY") {
			t.Errorf("demo %s shows a hidden verb", line)
		}
	}
}

func TestManPages(t *testing.T) {
	dir := t.TempDir()
	if code, _, stderr := try(t, "", "man "+dir); code != 0 {
		t.Fatal(stderr)
	}
	for name, want := range map[string][]string{
		"demo.1":                 {".TH \"DEMO\" 1 \"\" \"demo 1.2.3\"\n", ".SH VERBS\n", ".B credential\nCredentials of this terminal\n", "\\-\\-json\\fR", ".B 130\ninterrupted: "},
		"demo-credential-show.1": {".SH NAME\ndemo\\-credential\\-show \\- Show one credential\n", ".B demo credential show ID [FIELD]\n", ".SH EXAMPLES\n.PP\n.nf\n  demo credential show maps\\-1\n.fi\n", ".BR demo\\-credential (1)\n"},
		"demo-exit-codes.1":      {".nf\n"},
	} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		for _, w := range want {
			if err != nil || !strings.Contains(string(data), w) {
				t.Errorf("%s: %v, no %q in\n%s", name, err, w, data)
			}
		}
	}
	if list, _ := filepath.Glob(dir + "/*"); len(list) != 7 { // demo, credential, its show, fail, secret, version, exit-codes
		t.Errorf("%q", list)
	}
	if code, _, stderr := try(t, "", "man "+dir+"/none"); code != control.BadInput.Exit() {
		t.Errorf("%d: %s", code, stderr)
	}
	if got := escape(".x\n'y\na-b\\c"); got != "\\&.x\n\\&'y\na\\-b\\ec" {
		t.Errorf("%q", got)
	}
}

func TestLint(t *testing.T) {
	if list := demo().Lint(); len(list) > 0 {
		t.Error(list)
	}
	f := New("demo", "A program", "Shows.", "1")
	bad := &cobra.Command{Use: "bad thing", Short: "Ends.", RunE: func(*cobra.Command, []string) error { return nil }}
	bad.Flags().Bool("x", false, "")
	f.Add(bad, Group("empty", "", ""))
	var text strings.Builder
	for _, err := range f.Lint() {
		text.WriteString(err.Error() + "\n")
	}
	for _, want := range []string{
		"demo bad: Short is missing", "demo bad: Long is missing", `demo bad: argument "thing"`, "demo bad: Example is missing",
		"demo bad: flag --x has no description", "demo empty: Short is missing",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, &text)
		}
	}
}

// TestNoHTTP: the frame goes on every terminal and brings no HTTP with it.
func TestNoHTTP(t *testing.T) {
	seen := map[string]bool{}
	var visit func(path, from string)
	visit = func(path, from string) {
		if seen[path] || path == "C" {
			return
		}
		seen[path] = true
		p, err := gobuild.Import(path, from, 0)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		for _, i := range p.Imports {
			visit(i, p.Dir)
		}
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	visit("github.com/kagimori/kagimori/transport/control/verb", dir)
	if seen["net/http"] || !seen["github.com/spf13/cobra"] {
		t.Errorf("net/http: %v, among %d packages", seen["net/http"], len(seen))
	}
}
