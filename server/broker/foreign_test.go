package broker

// Debian's mosquitto clients against our broker: another implementation must be
// served as well as ours, and refused as firmly.

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/mqtt/mqtttest"
)

// foreign has the arguments by which a mosquitto client reaches r as a terminal.
type foreign struct {
	r    *rig
	args []string
}

func (r *rig) foreign(t testing.TB, name string) foreign {
	t.Helper()
	host, port, _ := net.SplitHostPort(r.address)
	cert, key := r.ca.Files(t, r.ca.Terminal(t, name))
	return foreign{r, []string{"-h", host, "-p", port, "--cafile", r.ca.File, "--cert", cert, "--key", key, "-i", name, "-V", "mqttv311"}}
}

func (f foreign) start(t testing.TB, program string, args ...string) *mqtttest.Process {
	t.Helper()
	return mqtttest.Start(t, program, append(f.args, args...)...)
}

func TestForeignClient(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	up, down := transport.Topics("nav-001")
	f := r.foreign(t, "nav-001")
	if out, err := f.start(t, "mosquitto_pub", "-q", "1", "-t", up, "-m", "hello").Wait(t); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := next(t, r.received); got != (message{"nav-001", "hello"}) {
		t.Errorf("received %v", got)
	}
	if got := next(t, r.left); got.why != nil {
		t.Errorf("Disconnected got %v", got.why)
	}
	next(t, r.arrived)
	sub := f.start(t, "mosquitto_sub", "-q", "1", "-t", down, "-C", "2")
	mqtttest.Eventually(t, "the foreign client has subscribed", func() bool { return r.b.Send("nav-001", []byte("one")) == nil })
	// It leaves at once when it has both; Send may see that already.
	if err := r.b.Send("nav-001", []byte("two")); err != nil && !errors.Is(err, errGone) {
		t.Fatal(err)
	}
	if out, err := sub.Wait(t); err != nil || out != "one\ntwo\n" {
		t.Errorf("mosquitto_sub: %v, %q", err, out)
	}
}

func TestForeignClientRefused(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	up, down := transport.Topics("nav-001")
	otherUp, otherDown := transport.Topics("nav-002")
	big := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(big, make([]byte, transport.MaxEnvelope+1), 0o600); err != nil {
		t.Fatal(err)
	}
	// -C 1 and a publication make the client wait for an answer; without
	// --will-… and with -c it would also try again for ever.
	tests := map[string]struct {
		program string
		args    []string
	}{
		"publishes as another":   {"mosquitto_pub", []string{"-q", "1", "-t", otherUp, "-m", "x"}},
		"publishes to another":   {"mosquitto_pub", []string{"-q", "1", "-t", otherDown, "-m", "x"}},
		"listens to another":     {"mosquitto_sub", []string{"-t", otherDown}},
		"listens to another, up": {"mosquitto_sub", []string{"-t", otherUp}},
		"listens to all":         {"mosquitto_sub", []string{"-t", "kagimori/1/+/down"}},
		"listens to everything":  {"mosquitto_sub", []string{"-t", "#"}},
		"retains":                {"mosquitto_pub", []string{"-q", "1", "-r", "-t", up, "-m", "x"}},
		"QoS 2":                  {"mosquitto_pub", []string{"-q", "2", "-t", up, "-m", "x"}},
		"a large payload":        {"mosquitto_pub", []string{"-q", "1", "-t", up, "-f", big}},
		"a will":                 {"mosquitto_sub", []string{"-t", down, "--will-topic", up, "--will-payload", "x"}},
		"version 5":              {"mosquitto_sub", []string{"-V", "5", "-t", down}},
		"version 3.1":            {"mosquitto_sub", []string{"-V", "31", "-t", down}},
		"another's client id":    {"mosquitto_sub", []string{"-i", "nav-002", "-t", down}},
		"a password":             {"mosquitto_sub", []string{"-u", "root", "-P", "root", "-t", down}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			before := r.b.Stats().Refused
			p := r.foreign(t, "nav-001").start(t, test.program, test.args...)
			mqtttest.Eventually(t, "the client is refused or thrown out", func() bool {
				select {
				case got := <-r.left:
					if !errors.Is(got.why, ErrRule) {
						t.Errorf("Disconnected got %v", got.why)
					}
					return true
				default:
					return r.b.Stats().Refused > before
				}
			})
			_ = p // it may try again; it is killed at the end of the test
		})
	}
	none(t, r.received)
}

// The client learns that it is its identity that is refused.
func TestForeignServiceCertificate(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	host, port, _ := net.SplitHostPort(r.address)
	cert, key := r.ca.Files(t, r.ca.Service(t, "maps", "nav-001"))
	up, _ := transport.Topics("nav-001")
	out, err := mqtttest.Start(t, "mosquitto_pub", "-h", host, "-p", port, "--cafile", r.ca.File, "--cert", cert, "--key", key,
		"-i", "nav-001", "-V", "mqttv311", "-q", "1", "-t", up, "-m", "x").Wait(t)
	if err == nil || !strings.Contains(out, "not authorised") {
		t.Errorf("got %v: %s", err, out)
	}
	none(t, r.received)
}

// A client whose Receive fails sees no PUBACK, only the end of the connection.
func TestForeignClientSeesNoPuback(t *testing.T) {
	t.Parallel()
	r := start(t, func(_ *Config, h *recorder) {
		h.receive = func(_ context.Context, _ Peer, _ []byte) error { return errors.New("disk full") }
	})
	up, _ := transport.Topics("nav-001")
	args := append([]string{"-oL", "mosquitto_pub"}, r.foreign(t, "nav-001").args...)
	p := mqtttest.Start(t, "stdbuf", append(args, "-d", "-q", "1", "-t", up, "-m", "x")...)
	if got := next(t, r.left); !errors.Is(got.why, ErrReceive) {
		t.Errorf("Disconnected got %v", got.why)
	}
	out, err := p.Wait(t)
	if err == nil || !strings.Contains(out, "sending PUBLISH") || strings.Contains(out, "PUBACK") {
		t.Errorf("mosquitto_pub said:\n%s", out)
	}
}
