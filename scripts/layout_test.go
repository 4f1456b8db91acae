// Package scripts holds the house to its plan: which room may know which, what
// must never reach a terminal, and how long a file may grow.
package scripts

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/kagimori/kagimori/"

// source is one Go file of the tree. The tree is parsed, not asked of `go
// list`: the test cache does not see what a child process reads.
type source struct {
	path    string // from the top of the tree, slashes
	dir     string
	test    bool
	lines   int
	file    *ast.File
	fset    *token.FileSet
	imports []string
}

func tree(t *testing.T) (all []source) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := filepath.ToSlash(strings.TrimPrefix(path, "../"))
		if d.IsDir() {
			if name := d.Name(); path != ".." && (strings.HasPrefix(name, ".") || name == "testdata" || rel == "bin" || rel == "demo") {
				return fs.SkipDir
			}
			return nil
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, path, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		s := source{path: rel, dir: filepath.ToSlash(filepath.Dir(rel)), test: strings.HasSuffix(rel, "_test.go"), lines: bytes.Count(text, []byte("\n")), file: f, fset: fset}
		for _, i := range f.Imports {
			s.imports = append(s.imports, strings.Trim(i.Path.Value, `"`))
		}
		all = append(all, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 10 {
		t.Fatalf("only %d Go files found: the walk is broken", len(all))
	}
	return all
}

func room(dir string) string { top, _, _ := strings.Cut(dir, "/"); return top }

// mayKnow is the picture of the house: four rooms, four arrows, and the ground
// floor that every main stands on.
var mayKnow = map[string][]string{
	"agent":     {"agent", "hsm", "transport", "configs", "systemd"},
	"server":    {"server", "hsm", "transport", "configs", "systemd"},
	"hsm":       {"hsm"},
	"transport": {"transport"},
	"configs":   {"configs"},
	"systemd":   {"systemd"},
	"scripts":   {"agent", "server", "hsm", "transport", "configs", "systemd"}, // tests and build tools only
}

func TestRooms(t *testing.T) {
	for _, s := range tree(t) {
		allowed, known := mayKnow[room(s.dir)]
		if !known {
			t.Errorf("%s: no such room in the plan of the house", s.path)
		}
		for _, i := range s.imports {
			to, ours := strings.CutPrefix(i, module)
			if ours && !slices.Contains(allowed, room(to)) {
				t.Errorf("%s imports %s: %s may know %v only", s.path, to, room(s.dir), allowed)
			}
		}
		for part := range strings.SplitSeq(s.dir, "/") {
			if slices.Contains([]string{"internal", "pkg", "util", "utils", "common", "helpers"}, part) {
				t.Errorf("%s: a folder is named for a noun, not %q", s.path, part)
			}
		}
	}
}

// forTests says whether a folder is one of tests' helpers, such as hsmtest.
func forTests(dir string) bool {
	name := filepath.Base(dir)
	return strings.HasSuffix(name, "test") && name != "attest" // to attest is a verb of its own
}

// Nothing that only tests need may be linked into what ships.
func TestShippedCodeIsNotTestCode(t *testing.T) {
	for _, s := range tree(t) {
		support := forTests(s.dir) || room(s.dir) == "scripts"
		if s.test || support {
			continue
		}
		for _, i := range s.imports {
			if i == "testing" || forTests(i) && strings.HasPrefix(i, module) || strings.Contains(i, "simulator") {
				t.Errorf("%s imports %s, which is for tests", s.path, i)
			}
		}
	}
}

// The agent goes on every terminal: what it may link is bounded (DESIGN §4).
func TestImportClosureOfTheAgent(t *testing.T) {
	byDir := map[string][]source{}
	for _, s := range tree(t) {
		if !s.test {
			byDir[s.dir] = append(byDir[s.dir], s)
		}
	}
	outside := map[string]string{} // import path → the file that asks for it
	seen := map[string]bool{}
	var visit func(dir string)
	visit = func(dir string) {
		if seen[dir] {
			return
		}
		seen[dir] = true
		for _, s := range byDir[dir] {
			for _, i := range s.imports {
				if to, ours := strings.CutPrefix(i, module); ours {
					visit(to)
				} else {
					outside[i] = s.path
				}
			}
		}
	}
	visit("agent/cmd/kagimori")
	if !seen["agent"] || !seen["hsm"] || !seen["transport"] {
		t.Fatalf("the walk did not reach the agent: %v", slices.Sorted(maps.Keys(seen)))
	}
	if seen["agent/gate"] {
		t.Error("the terminal's agent links the gate")
	}
	allowed := []string{ // third parties on the terminal, each weighed in DESIGN §4
		"github.com/eclipse/paho.mqtt.golang", "github.com/google/go-tpm/", "go.etcd.io/bbolt", "github.com/coreos/go-systemd/v22/",
		"golang.org/x/crypto/", "golang.org/x/sys/", "golang.org/x/term", "github.com/fxamacker/cbor/v2", "github.com/pelletier/go-toml/v2",
		"github.com/spf13/cobra", "github.com/spf13/pflag", "github.com/gtank/ristretto255", "filippo.io/edwards25519",
	}
	for i, by := range outside {
		switch {
		case i == "net/http" || strings.HasPrefix(i, "net/http/") || i == "database/sql" || i == "html/template" || i == "text/template":
			t.Errorf("%s brings %s to the terminal", by, i)
		case strings.Contains(i, ".") && !slices.ContainsFunc(allowed, func(a string) bool { return i == strings.TrimSuffix(a, "/") || strings.HasPrefix(i, a) }):
			t.Errorf("%s brings %s to the terminal: weigh it in the plan first", by, i)
		}
	}
}

func TestFilesStayReadable(t *testing.T) {
	for _, s := range tree(t) {
		limit := 400
		if filepath.Base(s.path) == "main.go" {
			limit = 80
		}
		if s.lines > limit && !s.test {
			t.Errorf("%s has %d lines, %d is a reader's limit: split it by what it is about", s.path, s.lines, limit)
		}
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || s.test {
				continue
			}
			if n := s.fset.Position(f.End()).Line - s.fset.Position(f.Pos()).Line + 1; n > 60 {
				t.Errorf("%s: %s has %d lines, 60 is the limit", s.path, f.Name.Name, n)
			}
			if f.Name.Name == "init" && f.Recv == nil {
				t.Errorf("%s: init runs where nobody sees it", s.path)
			}
		}
	}
}

// Sleeping in a test is a guess about a machine that is not this one.
func TestNoSleepInTests(t *testing.T) {
	for _, s := range tree(t) {
		if !s.test {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok || sel.Sel.Name != "Sleep" {
				return true
			}
			if x, ok := sel.X.(*ast.Ident); ok && x.Name == "time" && !slices.Contains(s.imports, "testing/synctest") {
				t.Errorf("%s sleeps: wait for the event, or use testing/synctest", s.fset.Position(n.Pos()))
			}
			return true
		})
	}
}
