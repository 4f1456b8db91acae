package scripts

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What the code cites stands on the page that it is said to stand on.
func TestCitedRowsAndDecisionsAreListed(t *testing.T) {
	page, err := os.ReadFile("../docs/design.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile(`req: ((?:[A-Z]\d+(?:, )?)+)`)
	decisions := regexp.MustCompile(`\bDESIGN (D\d+)`)
	cited := map[string]string{}
	for _, s := range tree(t) {
		for _, group := range s.file.Comments {
			text := group.Text()
			for _, m := range rows.FindAllStringSubmatch(text, -1) {
				for id := range strings.SplitSeq(strings.TrimSuffix(m[1], ", "), ", ") {
					cited[id] = s.path
				}
			}
			for _, m := range decisions.FindAllStringSubmatch(text, -1) {
				cited[m[1]] = s.path
			}
		}
	}
	if len(cited) < 20 {
		t.Fatalf("only %d citations found: the search is broken", len(cited))
	}
	for id, path := range cited {
		if !strings.Contains(string(page), "| "+id+" |") {
			t.Errorf("%s cites %s, which docs/design.md does not list", path, id)
		}
	}
}

// A link that leads nowhere is a bug.
func TestLinksBetweenPagesLeadSomewhere(t *testing.T) {
	pages, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	link := regexp.MustCompile(`\]\(([^)#]+)`)
	found := 0
	for _, page := range append(pages, "../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			found++
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", page, m[1], err)
			}
		}
	}
	if found < 10 {
		t.Errorf("only %d links found: the search is broken", found)
	}
}
