package doctor

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/transport/control"
)

// docs/doctor.md has the table of the classes, line by line.
func TestPageAndTableAgree(t *testing.T) {
	page, err := os.ReadFile("../../docs/doctor.md")
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for _, c := range Classes() {
		fmt.Fprintf(&want, "| %d | `%s` | %s | %s | %s |\n", c.Exit, c.Class, c.Cause, c.Consequence, c.Next)
	}
	if !strings.Contains(string(page), want.String()) {
		t.Errorf("docs/doctor.md does not have this table:\n%s", want.String())
	}
}

// Codes are those of one class each, and of no kind of problem.
func TestExitCodesAreTheirOwn(t *testing.T) {
	taken := map[int]string{0: "done"}
	for _, k := range control.Kinds() {
		taken[k.Exit] = string(k.Kind)
	}
	for _, c := range Classes() {
		if before, found := taken[c.Exit]; found || c.Exit < 20 || c.Exit > 59 {
			t.Errorf("%s: %d is %s", c.Class, c.Exit, before)
		}
		taken[c.Exit] = string(c.Class)
		if !strings.Contains(Help(), fmt.Sprintf("%d  %s", c.Exit, c.Class)) {
			t.Errorf("help does not tell %s", c.Class)
		}
	}
}
