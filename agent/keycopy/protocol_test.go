package keycopy

import (
	"os"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/transport"
)

// A page that forgets a message, or names another label, is not true.
func TestProtocolPage(t *testing.T) {
	data, err := os.ReadFile("../../docs/keycopy.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(data)
	for typ := transport.KeycopyTypeHello; typ <= transport.KeycopyTypeError; typ++ {
		if name := typ.String(); !strings.HasPrefix(name, "frame") && !strings.Contains(page, name) {
			t.Errorf("docs/keycopy.md does not name %s", name)
		}
	}
	for _, want := range []string{transport.KeycopyExporterLabel, transport.KeycopyPAKE.ALPN(), transport.KeycopyCPace21.String()} {
		if !strings.Contains(page, want) {
			t.Errorf("docs/keycopy.md does not name %q", want)
		}
	}
}
