package stories

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/hsm/open"
)

// A gate that was removed goes on running, and its certificate is good for a
// year. Terminals leave it at once, also the connections that are open, and do
// not come back to it after a restart without the server. Who enrolls as the
// gate afterwards is talked to again. req: L10
func TestRemovedGateIsLeft(t *testing.T) {
	d := newDeployment(t, nil)
	m := d.terminal("nav-001", open.Config{Kind: open.KindFile})
	m.named()
	m.issue()
	if got := m.curl("/tile"); !strings.HasPrefix(got, "map tile ") {
		t.Fatalf("before: %s", got)
	}
	refused := func(within time.Duration) {
		t.Helper()
		var got string
		begin := time.Now()
		m.until("the removed gate is refused", func() bool { got = m.curl("/tile"); return !strings.HasPrefix(got, "map tile ") })
		if took := time.Since(begin); took > within {
			t.Errorf("refused after %v, want %v", took, within)
		}
		if !strings.Contains(got, "revoked") || !strings.Contains(got, "administrator") {
			t.Errorf("the program is told %q", got)
		}
	}

	live, err := net.Dial("tcp", m.relay)
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	if _, err := io.WriteString(live, "GET /tile HTTP/1.1\r\n"); err != nil { // and the gate waits for the rest
		t.Fatal(err)
	}
	m.until("the gate has the connection", func() bool {
		return strings.Contains(m.verb("", "kagimori", "status", "--json"), `"active": 1`)
	})

	out := d.server.verb("", "kagimori-server", "terminal", "remove", "gate-maps")
	if !strings.Contains(out, "cr-") {
		t.Errorf("the removal says %q", out)
	}
	refused(3 * time.Second)
	if err := live.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	// It ends, with a refusal if the relay had not come to the gate yet.
	if got, err := io.ReadAll(live); errors.Is(err, os.ErrDeadlineExceeded) || strings.Contains(string(got), "map tile ") {
		t.Errorf("the open connection lives on: %q, %v", got, err)
	}
	if s := m.verb("", "kagimori", "status"); !strings.Contains(s, "revoked gates") {
		t.Errorf("status: %s", s)
	}

	d.serverRun.stop()
	m.daemon.stop()
	m.daemon = m.start("kagimori", m.config)
	refused(3 * time.Second)

	// A gate that takes its place has a certificate of its own.
	d.serve()
	d.freshGate()
	m.until("the new gate serves the terminal", func() bool { return strings.HasPrefix(m.curl("/tile"), "map tile ") })
}
