package transport

import (
	"os"
	"strings"
	"testing"
)

// A page that forgets a message is not true.
func TestWirePageNamesEveryMessage(t *testing.T) {
	page, err := os.ReadFile("../docs/wire.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, body := range every() {
		if !strings.Contains(string(page), body.Type()) {
			t.Errorf("docs/wire.md does not name %q", body.Type())
		}
	}
	if !strings.Contains(string(page), CommandIssue) || !strings.Contains(string(page), EnrollExporter) {
		t.Error("docs/wire.md does not name the command kind or the exporter label")
	}
}
