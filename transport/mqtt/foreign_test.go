package mqtt

// Our client against Debian's mosquitto: nothing in it leans on our own broker.

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/kagimori/kagimori/transport/mqtt/mqtttest"
)

// pub runs mosquitto_pub as another client of a broker.
func pub(t *testing.T, ca *mqtttest.CA, address string, args ...string) {
	t.Helper()
	host, port, _ := net.SplitHostPort(address)
	cert, key := ca.Files(t, ca.Terminal(t, "operator"))
	common := []string{"-h", host, "-p", port, "--cafile", ca.File, "--cert", cert, "--key", key, "-i", "operator", "-V", "mqttv311"}
	if out, err := mqtttest.Start(t, "mosquitto_pub", append(common, args...)...).Wait(t); err != nil {
		t.Fatalf("mosquitto_pub: %v: %s", err, out)
	}
}

func TestForeignBroker(t *testing.T) {
	t.Parallel()
	ca := mqtttest.NewCA(t)
	address := mqtttest.Mosquitto(t, ca, true)
	c, err := Dial(t.Context(), config(t, ca, address))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	host, port, _ := net.SplitHostPort(address)
	cert, key := ca.Files(t, ca.Terminal(t, "listener"))
	sub := mqtttest.Start(t, "mosquitto_sub", "-h", host, "-p", port, "--cafile", ca.File, "--cert", cert, "--key", key,
		"-V", "mqttv311", "-q", "1", "-t", up, "-C", "1")
	mqtttest.Eventually(t, "mosquitto_sub has a message", func() bool { // it has once it has subscribed
		if err := c.Send(t.Context(), []byte("hello")); err != nil {
			t.Fatal(err)
		}
		return sub.Ended()
	})
	if out, err := sub.Wait(t); err != nil || out != "hello\n" {
		t.Errorf("mosquitto_sub: %v: %q", err, out)
	}
	pub(t, ca, address, "-q", "2", "-t", down, "-m", "from afar") // comes as QoS 0, as subscribed
	if got := string(<-c.Receive()); got != "from afar" {
		t.Errorf("got %q", got)
	}
}

// Messages come in the order in which they were published.
func TestForeignBrokerKeepsOrder(t *testing.T) {
	t.Parallel()
	const count = queueLength // one burst that fits
	ca := mqtttest.NewCA(t)
	address := mqtttest.Mosquitto(t, ca, true)
	c, err := Dial(t.Context(), config(t, ca, address))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	lines := filepath.Join(t.TempDir(), "lines")
	var text []byte
	for i := range count {
		text = fmt.Appendln(text, i)
	}
	if err := os.WriteFile(lines, text, 0o600); err != nil {
		t.Fatal(err)
	}
	host, port, _ := net.SplitHostPort(address)
	cert, key := ca.Files(t, ca.Terminal(t, "operator"))
	mqtttest.Start(t, "sh", "-c", `exec "$0" "$@" <`+lines, mqtttest.Tool(t, "mosquitto_pub"), "-h", host, "-p", port,
		"--cafile", ca.File, "--cert", cert, "--key", key, "-V", "mqttv311", "-t", down, "-l")
	for i := range count {
		select {
		case got := <-c.Receive():
			if string(got) != fmt.Sprint(i) {
				t.Fatalf("got %s, want %d", got, i)
			}
		case <-c.Done():
			t.Fatalf("after %d messages: %v", i, c.Err())
		}
	}
}

// How another server's refusal of our certificate looks in TLS 1.3: as an error
// in place of CONNACK.
func TestForeignBrokerRefuses(t *testing.T) {
	t.Parallel()
	ca, stranger := mqtttest.NewCA(t), mqtttest.NewCA(t)
	address := mqtttest.Mosquitto(t, ca, true)
	for what, certs := range map[string][]tls.Certificate{
		"no certificate": nil,
		"another root":   {stranger.Terminal(t, name)},
	} {
		cfg := config(t, ca, address)
		cfg.TLS.Certificates = certs
		if _, err := Dial(t.Context(), cfg); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: got %v, want %v", what, err, ErrRefused)
		}
	}
}

// The broker dies.
func TestForeignBrokerDies(t *testing.T) {
	t.Parallel()
	ca := mqtttest.NewCA(t)
	address, broker := mqtttest.MosquittoProcess(t, ca, true)
	c, err := Dial(t.Context(), config(t, ca, address))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	broker.Kill()
	if err := ended(t, c); err == nil || errors.Is(err, ErrRefused) || errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
	if _, err := Dial(t.Context(), config(t, ca, address)); err == nil {
		t.Error("connected to nobody")
	}
}
