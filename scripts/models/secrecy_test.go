package models

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// What an attacker who only listens learns; true: reached. The rows that are
// true are the controls: without them a model in which nothing can be learned
// would pass. The order is that of the searches in secrecy.maude.
func TestSecrecy(t *testing.T) {
	t.Parallel()
	want := []struct {
		search  string
		reached bool
	}{
		{"bareDirect =>* S ; credential", false},
		{"bareDirect ; sc =>* S ; oc", true}, // fig. 4 with the security code leaked
		{"bareDirect ; sc =>* S ; credential", true},
		{"bareDirect ; oc =>* S ; credential", false},
		{"bareKek =>* S ; credential", false},
		{"bareKek ; sc =>* S ; oc", true}, // fig. 5, the same
		{"bareKek ; sc =>* S ; credential", true},
		{"bareKek ; oc =>* S ; credential", false},
		{"onlyDerived =>* S ; oc", false},
		{"onlyDerived ; sc =>* S ; credential", true}, // by guessing alone
		{"barePake =>* S ; credential", false},
		{"barePake ; sc =>* S ; oc", false}, // no test for a guess
		{"barePake ; sc =>* S ; credential", false},
		{"barePake ; sc ; oc =>* S ; credential", false}, // forward secrecy
		{"barePake ; leakedScalar =>* S ; oc", false},
		{"barePake ; leakedScalar =>* S ; credential", false},
		{"barePake ; sc ; leakedScalar =>* S ; oc", true},
		{"barePake ; sc ; leakedScalar =>* S ; credential", true},
		{"tlsDirect ; sc ; oc =>* S ; credential", false},
		{"tlsKek ; sc ; oc =>* S ; credential", false},
		{"tlsPake ; sc ; oc =>* S ; credential", false},
		{"tlsPake ; sc ; oc ; leakedScalar =>* S ; credential", false},
		{"tlsDirect ; sc ; brokenTLS =>* S ; credential", true},
		{"tlsKek ; sc ; brokenTLS =>* S ; credential", true},
		{"tlsPake ; sc ; brokenTLS =>* S ; oc", false},
		{"tlsPake ; sc ; oc ; brokenTLS =>* S ; credential", false},
		{"tlsPake ; sc ; leakedScalar ; brokenTLS =>* S ; credential", true},
	}
	text, err := os.ReadFile(filepath.Join(docs, "models", "secrecy.maude"))
	if err != nil {
		t.Fatal(err)
	}
	var searches []string
	for _, m := range regexp.MustCompile(`(?m)^search (.*) \.$`).FindAllStringSubmatch(string(text), -1) {
		searches = append(searches, m[1])
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "secrecy.maude"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	out := tool(t, dir, "maude", "-no-banner", "-no-advise", "-no-ansi-color", "secrecy.maude")
	if strings.Contains(out, "Warning") || strings.Contains(out, "Error") {
		t.Fatalf("maude complains:\n%s", tail(out))
	}
	// Each block is one search: its echo, then its solutions or "No solution."
	blocks := strings.Split(out, "search in SECRECY : ")[1:]
	if len(blocks) != len(want) || len(searches) != len(want) {
		t.Fatalf("%d searches in the file, %d answers, %d rows here", len(searches), len(blocks), len(want))
	}
	for n, row := range want {
		if searches[n] != row.search {
			t.Fatalf("search %d is %q, the row here is %q", n, searches[n], row.search)
		}
		lines := strings.Split(blocks[n], "\n")
		none := slices.Contains(lines, "No solution.")
		if found := strings.Contains(blocks[n], "\nSolution 1 "); found == none {
			t.Fatalf("%s: no answer:\n%s", row.search, tail(blocks[n]))
		} else if found != row.reached {
			t.Errorf("%s: reached %v, want %v", row.search, found, row.reached)
		}
	}
}
