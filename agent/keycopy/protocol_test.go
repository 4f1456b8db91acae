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
	wanted := []string{transport.KeycopyExporterLabel, transport.KeycopyCPace21.String()}
	for _, m := range transport.KeycopyModes() {
		wanted = append(wanted, m.ALPN())
	}
	for _, row := range dammTable {
		digits := make([]byte, len(row))
		for i, d := range row {
			digits[i] = '0' + d
		}
		wanted = append(wanted, " "+string(digits)+" ")
	}
	var fleet fleetKeys
	for label := range fleet.labels(transport.KeycopyPAKE) {
		wanted = append(wanted, `scp("`+label+`")`)
	}
	for label := range fleet.labels(transport.KeycopyKEK) {
		wanted = append(wanted, `scp("`+label+`")`)
	}
	for label := range new(runKeys).labels() {
		wanted = append(wanted, label)
	}
	for _, want := range wanted {
		if !strings.Contains(page, want) {
			t.Errorf("docs/keycopy.md does not name %q", want)
		}
	}
}
