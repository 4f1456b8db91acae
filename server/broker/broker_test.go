package broker

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/mqtt"
	"github.com/kagimori/kagimori/transport/mqtt/mqtttest"
)

// dial connects our own client.
func (r *rig) dial(t testing.TB, name string) *mqtt.Conn {
	t.Helper()
	up, down := transport.Topics(name)
	cfg := mqtt.Config{Address: r.address, TLS: r.tlsConfig(r.ca.Terminal(t, name)), ClientID: name, Up: up, Down: down}
	if transport.IsEnrollSegment(name) {
		cfg.TLS = r.tlsConfig()
	}
	c, err := mqtt.Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestBothWays(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	c := r.dial(t, "nav-001")
	p := next(t, r.arrived)
	if p.Segment != "nav-001" || p.ID != "nav-001" || p.Enroll || p.Session == 0 || !p.Remote.IsValid() {
		t.Errorf("Connected got %+v", p)
	}
	if err := c.Send(t.Context(), []byte("up")); err != nil {
		t.Fatal(err)
	}
	if got := next(t, r.received); got != (message{"nav-001", "up"}) {
		t.Errorf("received %v", got)
	}
	if err := r.b.Send("nav-001", []byte("down")); err != nil {
		t.Fatal(err)
	}
	if got := next(t, c.Receive()); string(got) != "down" {
		t.Errorf("the terminal got %q", got)
	}
	ours, err := p.TLS.ExportKeyingMaterial(transport.EnrollExporter, nil, transport.EnrollExporterSize)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := c.Exporter(transport.EnrollExporter, transport.EnrollExporterSize)
	if err != nil || string(ours) != string(theirs) || len(ours) != transport.EnrollExporterSize {
		t.Errorf("exporters differ: %x and %x, %v", ours, theirs, err)
	}
	c.Close()
	if got := next(t, r.left); got.why != nil || got.session != p.Session {
		t.Errorf("after a good-bye Disconnected got %+v", got)
	}
	if r.b.Connected("nav-001") || !errors.Is(r.b.Send("nav-001", nil), ErrNotConnected) {
		t.Error("still connected")
	}
}

func TestSendRefuses(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	if err := r.b.Send("nav-001", nil); !errors.Is(err, ErrNotConnected) {
		t.Errorf("to nobody: %v", err)
	}
	c := r.raw(t, r.ca.Terminal(t, "nav-001"))
	if code := c.connect("nav-001", nil); code != 0 {
		t.Fatal(code)
	}
	if err := r.b.Send("nav-001", nil); !errors.Is(err, ErrNotConnected) {
		t.Errorf("before SUBSCRIBE: %v", err)
	}
	_, down := transport.Topics("nav-001")
	if code := c.subscribe(down); code != 0 {
		t.Fatalf("SUBACK %#x", code)
	}
	if err := r.b.Send("nav-001", make([]byte, transport.MaxEnvelope+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	if err := r.b.Send("nav-001", make([]byte, transport.MaxEnvelope)); err != nil {
		t.Errorf("as large as allowed: %v", err)
	}
	if p, err := c.read(); err != nil || len(p.(*packets.PublishPacket).Payload) != transport.MaxEnvelope {
		t.Errorf("got %v, %v", p, err)
	}
}

// The PUBACK comes after Receive has returned, never before.
func TestAcknowledgedAfterReceive(t *testing.T) {
	t.Parallel()
	release, entered := make(chan struct{}), make(chan struct{})
	r := start(t, func(_ *Config, h *recorder) {
		h.receive = func(context.Context, Peer, []byte) error {
			close(entered)
			<-release
			return nil
		}
	})
	c := r.terminal(t, "nav-001")
	up, _ := transport.Topics("nav-001")
	c.publish(up, 9, "x", nil)
	next(t, entered)
	c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if p, err := c.Read(make([]byte, 1)); err == nil {
		t.Fatalf("%d byte before Receive returned", p)
	}
	close(release)
	// A TLS connection is spent after a timeout in the middle of a record, not
	// between two.
	c.SetReadDeadline(time.Now().Add(mqtttest.Patience))
	p, err := c.read()
	if ack, ok := p.(*packets.PubackPacket); err != nil || !ok || ack.MessageID != 9 {
		t.Errorf("got %v, %v", p, err)
	}
}

// What Receive refuses gets no PUBACK, and ends the connection.
func TestNoAcknowledgementAfterError(t *testing.T) {
	t.Parallel()
	full := errors.New("disk full")
	r := start(t, func(_ *Config, h *recorder) {
		h.receive = func(_ context.Context, _ Peer, payload []byte) error {
			if string(payload) == "second" {
				return full
			}
			return nil
		}
	})
	c := r.terminal(t, "nav-001")
	up, _ := transport.Topics("nav-001")
	for i, payload := range []string{"first", "second", "third"} {
		c.publish(up, uint16(i+1), payload, nil)
	}
	if got := c.closed(); len(got) != 1 || !strings.Contains(got[0], "PUBACK") || !strings.Contains(got[0], "MessageID: 1") {
		t.Errorf("the client saw %v, want one PUBACK for message 1", got)
	}
	if got := next(t, r.left); !errors.Is(got.why, ErrReceive) || !errors.Is(got.why, full) {
		t.Errorf("Disconnected got %v", got.why)
	}
	if got := next(t, r.received); got.payload != "first" {
		t.Errorf("received %v", got)
	}
	none(t, r.received)
}

// A Receive that runs when the server is told to stop is finished and acknowledged.
func TestStopFinishesReceive(t *testing.T) {
	t.Parallel()
	release, entered := make(chan struct{}), make(chan struct{})
	r := start(t, func(_ *Config, h *recorder) {
		h.receive = func(context.Context, Peer, []byte) error {
			close(entered)
			<-release
			return nil
		}
	})
	busy, idle := r.terminal(t, "nav-001"), r.terminal(t, "nav-002")
	up, _ := transport.Topics("nav-001")
	busy.publish(up, 3, "x", nil)
	next(t, entered)
	r.stop()
	if got := idle.closed(); len(got) != 0 {
		t.Errorf("the idle client got %v", got)
	}
	if got := next(t, r.left); got.segment != "nav-002" || !errors.Is(got.why, ErrShutdown) {
		t.Errorf("Disconnected got %+v", got)
	}
	close(release)
	if got := busy.closed(); len(got) != 1 || !strings.Contains(got[0], "PUBACK") {
		t.Errorf("the busy client got %v, want a PUBACK", got)
	}
	if got := next(t, r.left); got.segment != "nav-001" || !errors.Is(got.why, ErrShutdown) {
		t.Errorf("Disconnected got %+v", got)
	}
}

// A handler that does not come back keeps the server for StopTime, not for ever.
func TestStopCancelsReceive(t *testing.T) {
	t.Parallel()
	entered := make(chan struct{})
	r := start(t, func(cfg *Config, h *recorder) {
		cfg.StopTime = 50 * time.Millisecond
		h.receive = func(ctx context.Context, _ Peer, _ []byte) error {
			close(entered)
			<-ctx.Done()
			return context.Cause(ctx)
		}
	})
	c := r.terminal(t, "nav-001")
	up, _ := transport.Topics("nav-001")
	c.publish(up, 3, "x", nil)
	next(t, entered)
	r.stop()
	if got := c.closed(); len(got) != 0 {
		t.Errorf("the client got %v", got)
	}
	if got := next(t, r.left); !errors.Is(got.why, ErrShutdown) {
		t.Errorf("Disconnected got %v", got.why)
	}
}
