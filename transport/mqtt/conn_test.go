package mqtt

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/mqtt/mqtttest"
)

// Send returns at the PUBACK and not before, with the message that was sent.
func TestSendWaitsForPuback(t *testing.T) {
	t.Parallel()
	ca := mqtttest.NewCA(t)
	got, release := make(chan *packets.PublishPacket), make(chan struct{})
	c, err := Dial(t.Context(), config(t, ca, script(t, ca, func(s *server) {
		s.welcome()
		p, _ := s.read().(*packets.PublishPacket)
		got <- p
		<-release
		s.Write([]byte{0x40, 2, byte(p.MessageID >> 8), byte(p.MessageID)})
		s.drain()
	})))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sent := make(chan error, 1)
	go func() { sent <- c.Send(t.Context(), []byte("hello")) }()
	p := <-got
	if p.TopicName != up || p.Qos != 1 || p.Retain || p.Dup || string(p.Payload) != "hello" {
		t.Errorf("the server got %v", p)
	}
	select {
	case err := <-sent:
		t.Errorf("Send returned before the PUBACK: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	close(release)
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// Without PUBACK, Send ends with its ctx or with the connection, and only so
// many messages are on their way at once.
func TestSendWithoutPuback(t *testing.T) {
	t.Parallel()
	ca := mqtttest.NewCA(t)
	hangUp := make(chan struct{})
	c, err := Dial(t.Context(), config(t, ca, script(t, ca, func(s *server) {
		s.welcome()
		<-hangUp
	})))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for range inFlight + 2 {
		if err := c.Send(short, []byte("x")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	}
	if n := len(c.slots); n != 1 { // the first one; ctx was over before the others began
		t.Logf("%d messages are on their way", n)
	}
	sent := make(chan error, 1)
	go func() { sent <- c.Send(t.Context(), []byte("x")) }()
	close(hangUp)
	if err := <-sent; err == nil {
		t.Error("Send succeeded without PUBACK")
	}
	ended(t, c)
}

func TestClose(t *testing.T) {
	t.Parallel()
	ca := mqtttest.NewCA(t)
	last := make(chan packets.ControlPacket, 1)
	c, err := Dial(t.Context(), config(t, ca, script(t, ca, func(s *server) { s.welcome(); last <- s.read() })))
	if err != nil {
		t.Fatal(err)
	}
	if c.Err() != nil {
		t.Errorf("Err of a living connection: %v", c.Err())
	}
	c.Close()
	c.Close()
	if err := ended(t, c); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
	if p, ok := (<-last).(*packets.DisconnectPacket); !ok {
		t.Errorf("the server heard %v, want DISCONNECT", p)
	}
	if err := c.Send(t.Context(), nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Send: %v", err)
	}
}

func TestSendTooLarge(t *testing.T) {
	t.Parallel()
	ca := mqtttest.NewCA(t)
	c, err := Dial(t.Context(), config(t, ca, script(t, ca, func(s *server) { s.welcome(); s.drain() })))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Send(t.Context(), make([]byte, transport.MaxEnvelope+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v", err)
	}
	if c.Err() != nil {
		t.Error("the connection ended")
	}
}

// Both ends derive the same bytes, and a second connection others.
func TestExporter(t *testing.T) {
	t.Parallel()
	ca := mqtttest.NewCA(t)
	theirs := make(chan []byte, 1)
	address := script(t, ca, func(s *server) {
		state := s.ConnectionState()
		b, err := state.ExportKeyingMaterial(transport.EnrollExporter, nil, transport.EnrollExporterSize)
		if err != nil {
			t.Error(err)
		}
		theirs <- b
		s.welcome()
		s.drain()
	})
	seen := make(map[string]bool)
	for range 2 {
		c, err := Dial(t.Context(), config(t, ca, address))
		if err != nil {
			t.Fatal(err)
		}
		ours, err := c.Exporter(transport.EnrollExporter, transport.EnrollExporterSize)
		if err != nil || len(ours) != transport.EnrollExporterSize || string(ours) != string(<-theirs) {
			t.Errorf("the two ends differ: %v", err)
		}
		seen[string(ours)] = true
		c.Close()
	}
	if len(seen) != 2 {
		t.Error("two connections export the same")
	}
}

// The caller's Dial is used, and what it says reaches the caller.
func TestOwnDial(t *testing.T) {
	t.Parallel()
	ca := mqtttest.NewCA(t)
	address := script(t, ca, func(s *server) { s.welcome(); s.drain() })
	cfg := config(t, ca, "localhost:1")
	cfg.Dial = func(ctx context.Context, network, asked string) (net.Conn, error) {
		if asked != "localhost:1" {
			t.Errorf("asked for %s", asked)
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	c, err := Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	unplugged := errors.New("cable unplugged")
	cfg.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, unplugged }
	if _, err := Dial(t.Context(), cfg); !errors.Is(err, unplugged) {
		t.Errorf("got %v", err)
	}
}

// It is the server whose certificate is bad: nothing that renewing ours would mend.
func TestWrongServer(t *testing.T) {
	t.Parallel()
	ca := mqtttest.NewCA(t)
	address := script(t, ca, (*server).drain)
	cfg := config(t, ca, address)
	cfg.TLS.ServerName = "elsewhere.example"
	stranger := config(t, mqtttest.NewCA(t), address)
	for what, cfg := range map[string]Config{"another name": cfg, "another root": stranger} {
		if _, err := Dial(t.Context(), cfg); err == nil || errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestConfigRefused(t *testing.T) {
	ca := mqtttest.NewCA(t)
	for what, spoil := range map[string]func(*Config){
		"no port":      func(c *Config) { c.Address = "localhost" },
		"no TLS":       func(c *Config) { c.TLS = nil },
		"no client id": func(c *Config) { c.ClientID = "" },
		"no topic":     func(c *Config) { c.Down = "" },
	} {
		cfg := config(t, ca, "localhost:1")
		spoil(&cfg)
		if _, err := Dial(t.Context(), cfg); err == nil {
			t.Errorf("%s: connected", what)
		}
	}
}

// The library writes to no log of its own.
func TestLibraryIsSilent(t *testing.T) {
	for _, l := range []paho.Logger{paho.ERROR, paho.CRITICAL, paho.WARN, paho.DEBUG} {
		if _, ok := l.(paho.NOOPLogger); !ok {
			t.Errorf("a logger is %T", l)
		}
	}
}

// Any bytes from a server, from the start or on a connection that is up: no
// panic, and Close always ends it.
func FuzzServer(f *testing.F) {
	f.Add(false, accept)
	f.Add(false, append(accept, granted(1)...))
	f.Add(false, []byte{0x20, 2, 0, 200, 0x90, 3, 0, 1, 0})
	f.Add(true, []byte{0x30, 3, 0, 1, 'a'})
	f.Add(true, append([]byte{0x30, byte(2 + len(down) + 1), 0, byte(len(down))}, down+"x"...))
	f.Add(true, []byte{0x40, 2, 0, 1, 0xd0, 0, 0x90, 3, 0, 1, 0})
	ca := mqtttest.NewCA(f)
	input := make(chan []byte, 1)
	welcome := make(chan bool, 1)
	address := script(f, ca, func(s *server) {
		if <-welcome {
			s.welcome()
		} else {
			s.read()
		}
		s.Write(<-input)
		s.CloseWrite()
		s.drain()
	})
	cfg := config(f, ca, address)
	f.Fuzz(func(t *testing.T, up bool, b []byte) {
		welcome <- up
		input <- b
		c, err := Dial(t.Context(), cfg)
		if err != nil {
			return
		}
		sent := make(chan error, 1)
		go func() { sent <- c.Send(t.Context(), []byte("x")) }()
		ended(t, c)
		<-sent
		c.Close()
	})
}
