package broker

import (
	"crypto/tls"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/mqtt/mqtttest"
)

// A client that does not read is thrown out, and nobody waits for it.
func TestSlowSubscriber(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	conn := r.dialTCP(t)
	conn.(*net.TCPConn).SetReadBuffer(4 << 10)
	slow := &raw{t, tls.Client(conn, r.tlsConfig(r.ca.Terminal(t, "nav-001")))}
	if code := slow.connect("nav-001", nil); code != 0 {
		t.Fatal(code)
	}
	_, down := transport.Topics("nav-001")
	slow.subscribe(down)
	other := r.dial(t, "nav-002")

	payload := make([]byte, transport.MaxEnvelope)
	var err error
	began := time.Now()
	sent := 0
	for ; err == nil && sent < 10_000; sent++ {
		err = r.b.Send("nav-001", payload)
	}
	if !errors.Is(err, ErrSlow) && !errors.Is(err, ErrNotConnected) {
		t.Fatalf("after %d messages: %v", sent, err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("Send blocked: %d took %v", sent, took)
	}
	if got := next(t, r.left); got.segment != "nav-001" || !errors.Is(got.why, ErrSlow) {
		t.Errorf("Disconnected got %+v", got)
	}
	if err := r.b.Send("nav-002", []byte("x")); err != nil {
		t.Error(err)
	}
	next(t, other.Receive())
}

// One write that gets nowhere is enough, even if the client goes on sending.
func TestStuckWrite(t *testing.T) {
	t.Parallel()
	r := start(t, func(cfg *Config, _ *recorder) { cfg.WriteTime = 300 * time.Millisecond })
	conn := r.dialTCP(t)
	conn.(*net.TCPConn).SetReadBuffer(4 << 10)
	c := &raw{t, tls.Client(conn, r.tlsConfig(r.ca.Terminal(t, "nav-001")))}
	if code := c.connect("nav-001", nil); code != 0 {
		t.Fatal(code)
	}
	_, down := transport.Topics("nav-001")
	c.subscribe(down)
	ping := packets.NewControlPacket(packets.Pingreq)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
				if ping.Write(c.Conn) != nil {
					return
				}
			}
		}
	}()
	payload := make([]byte, transport.MaxEnvelope)
	for range maxQueue - 1 { // fills the socket, not the queue
		if err := r.b.Send("nav-001", payload); err != nil {
			t.Fatal(err)
		}
	}
	if got := next(t, r.left); !errors.Is(got.why, ErrSlow) {
		t.Errorf("Disconnected got %v", got.why)
	}
}

// A connection whose other end has silently gone is noticed by the keepalive,
// which is capped: a client that wants none gets one.
func TestHalfOpen(t *testing.T) {
	t.Parallel()
	r := start(t, func(cfg *Config, _ *recorder) { cfg.MaxKeepAlive = time.Second })
	began := time.Now()
	for name, keep := range map[string]uint16{"none": 0, "short": 1, "long": 65535} {
		c := r.raw(t, r.ca.Terminal(t, name))
		if code := c.connect(name, func(p *packets.ConnectPacket) { p.Keepalive = keep }); code != 0 {
			t.Fatal(code)
		}
	}
	for range 3 {
		got := next(t, r.left)
		if !errors.Is(got.why, ErrSilent) {
			t.Errorf("%s: Disconnected got %v", got.segment, got.why)
		}
		if took := time.Since(began); took < 1400*time.Millisecond || took > mqtttest.Patience/2 {
			t.Errorf("%s: noticed after %v", got.segment, took)
		}
	}
}

// Pings keep a connection alive beyond its keepalive.
func TestPings(t *testing.T) {
	t.Parallel()
	r := start(t, func(cfg *Config, _ *recorder) { cfg.MaxKeepAlive = time.Second })
	c := r.terminal(t, "nav-001")
	end := time.Now().Add(4 * time.Second)
	for time.Now().Before(end) {
		c.write(packets.NewControlPacket(packets.Pingreq))
		if p, err := c.read(); err != nil {
			t.Fatalf("got %v, %v", p, err)
		}
		<-time.After(500 * time.Millisecond)
	}
	none(t, r.left)
}
