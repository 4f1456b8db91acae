package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/mqtt/mqtttest"
)

const enrollID = "enroll-0123456789abcdef0123456789abcdef"

// Who is let in, and with what code the others are not. req: L18
func TestIdentity(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	strangers := mqtttest.NewCA(t)
	good := r.ca.Terminal(t, "nav-001")
	tests := map[string]struct {
		id   string
		cert []tls.Certificate
		code byte
	}{
		"terminal":                       {"nav-001", []tls.Certificate{good}, 0},
		"enrolling":                      {enrollID, nil, 0},
		"no certificate":                 {"nav-001", nil, 5},
		"enrolling with a certificate":   {enrollID, []tls.Certificate{good}, 5},
		"enrolling, short":               {enrollID[:30], nil, 2},
		"service certificate":            {"nav-001", []tls.Certificate{r.ca.Service(t, "maps", "nav-001")}, 5},
		"server certificate":             {"nav-001", []tls.Certificate{r.ca.Server(t)}, 5},
		"another CA's certificate":       {"nav-001", []tls.Certificate{strangers.Terminal(t, "nav-001")}, 5},
		"another terminal's certificate": {"nav-002", []tls.Certificate{good}, 2},
	}
	for name, test := range tests {
		c := r.raw(t, test.cert...)
		if code := c.connect(test.id, nil); code != test.code {
			t.Errorf("%s: CONNACK %d, want %d", name, code, test.code)
		}
		if test.code == 0 {
			next(t, r.arrived)
			c.Close()
			next(t, r.left)
		} else if got := c.closed(); len(got) != 0 {
			t.Errorf("%s: after CONNACK: %v", name, got)
		}
	}
	none(t, r.arrived)
}

// A refusal tells the client whether to renew or to wait.
func TestRefusalCodes(t *testing.T) {
	t.Parallel()
	var answer error
	r := start(t, func(_ *Config, h *recorder) {
		h.authenticate = func(context.Context, Peer) (string, error) { return "", answer }
	})
	for want, err := range map[byte]error{
		5: fmt.Errorf("revoked: %w", ErrRefused),
		3: errors.New("the database is away"),
	} {
		answer = err
		c := r.raw(t, r.ca.Terminal(t, "nav-001"))
		if code := c.connect("nav-001", nil); code != want {
			t.Errorf("%v: CONNACK %d, want %d", err, code, want)
		}
		c.closed()
	}
}

// A client without certificate has its own topics, small messages and little time.
func TestEnrollIsConfined(t *testing.T) {
	t.Parallel()
	r := start(t, func(cfg *Config, _ *recorder) { cfg.EnrollTime = 300 * time.Millisecond })
	victim := r.dial(t, "nav-001")
	next(t, r.arrived)
	up, down := transport.Topics(enrollID)
	enroll := func() *raw {
		c := r.raw(t)
		if code := c.connect(enrollID, nil); code != 0 {
			t.Fatal(code)
		}
		if p := next(t, r.arrived); !p.Enroll || p.Segment != enrollID {
			t.Errorf("Connected got %+v", p)
		}
		return c
	}

	c := enroll()
	began := time.Now()
	if code := c.subscribe(down); code != 0 {
		t.Errorf("SUBACK %#x", code)
	}
	c.publish(up, 1, strings.Repeat("x", transport.MaxEnrollEnvelope), nil)
	if p, err := c.read(); err != nil || p.(*packets.PubackPacket).MessageID != 1 {
		t.Errorf("got %v, %v", p, err)
	}
	if got := next(t, r.received); got.segment != enrollID {
		t.Errorf("received from %s", got.segment)
	}
	if err := r.b.Send(enrollID, []byte("challenge")); err != nil {
		t.Error(err)
	}
	if p, err := c.read(); err != nil || string(p.(*packets.PublishPacket).Payload) != "challenge" {
		t.Errorf("got %v, %v", p, err)
	}
	c.closed()
	if took := time.Since(began); took < 200*time.Millisecond || took > 5*time.Second {
		t.Errorf("it stayed for %v", took)
	}
	if got := next(t, r.left); !errors.Is(got.why, ErrTime) {
		t.Errorf("Disconnected got %v", got.why)
	}

	victimUp, victimDown := transport.Topics("nav-001")
	for name, do := range map[string]func(*raw){
		"large":      func(c *raw) { c.publish(up, 1, strings.Repeat("x", transport.MaxEnrollEnvelope+1), nil) },
		"publishes":  func(c *raw) { c.publish(victimUp, 1, "x", nil) },
		"subscribes": func(c *raw) { c.subscribe(victimDown) },
	} {
		c := enroll()
		do(c)
		c.closed()
		if got := next(t, r.left); !errors.Is(got.why, ErrRule) {
			t.Errorf("%s: Disconnected got %v", name, got.why)
		}
	}
	none(t, r.received)
	if victim.Err() != nil {
		t.Error("the terminal was disturbed")
	}
}

// Connections without certificate are counted by address and in all; those with
// one are not.
func TestEnrollRate(t *testing.T) {
	t.Parallel()
	r := start(t, func(cfg *Config, _ *recorder) { cfg.EnrollAddress = Rate{Burst: 3, Every: time.Hour} })
	for i := range 5 {
		c := r.raw(t)
		want := byte(0)
		if i >= 3 {
			want = 3
		}
		if code := c.connect(fmt.Sprintf("enroll-%032x", i), nil); code != want {
			t.Errorf("connection %d: CONNACK %d, want %d", i, code, want)
		}
	}
	r.terminal(t, "nav-001")
}

func TestMaxConnections(t *testing.T) {
	t.Parallel()
	r := start(t, func(cfg *Config, _ *recorder) { cfg.MaxConnections = 1 })
	r.terminal(t, "nav-001")
	if code := r.raw(t, r.ca.Terminal(t, "nav-002")).connect("nav-002", nil); code != 3 {
		t.Errorf("CONNACK %d, want 3", code)
	}
}

// The newer connection of an identity wins, and its life begins after the older
// one's has ended.
func TestEviction(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	older := r.terminal(t, "nav-001")
	first := next(t, r.arrived).Session
	newer := r.terminal(t, "nav-001")
	second := next(t, r.arrived).Session
	if second <= first {
		t.Errorf("sessions %d, then %d", first, second)
	}
	// It was there before the newer one arrived, so no waiting.
	select {
	case got := <-r.left:
		if got.session != first || !errors.Is(got.why, ErrEvicted) {
			t.Errorf("Disconnected got %+v", got)
		}
	default:
		t.Error("the newer one is connected and the older one not yet disconnected")
	}
	older.closed()
	if err := r.b.Send("nav-001", []byte("x")); err != nil {
		t.Error(err)
	}
	if p, err := newer.read(); err != nil || string(p.(*packets.PublishPacket).Payload) != "x" {
		t.Errorf("the newer one got %v, %v", p, err)
	}
}

// The older connection is in the middle of Receive, and half-open besides.
func TestEvictionInterruptsReceive(t *testing.T) {
	t.Parallel()
	entered := make(chan struct{}, 1)
	r := start(t, func(_ *Config, h *recorder) {
		h.receive = func(ctx context.Context, p Peer, payload []byte) error {
			if string(payload) != "slow" {
				return nil
			}
			entered <- struct{}{}
			<-ctx.Done()
			return context.Cause(ctx)
		}
	})
	up, _ := transport.Topics("nav-001")
	r.terminal(t, "nav-001").publish(up, 1, "slow", nil)
	next(t, entered)
	c := r.terminal(t, "nav-001")
	c.publish(up, 1, "fast", nil)
	if got := next(t, r.received); got.payload != "fast" {
		t.Errorf("received %v", got)
	}
	if got := next(t, r.left); !errors.Is(got.why, ErrEvicted) {
		t.Errorf("Disconnected got %v", got.why)
	}
}

// Many connections of one identity at once: one stays, and for the handler they
// lived one after the other.
func TestEvictionStorm(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	cert := r.ca.Terminal(t, "nav-001")
	const storm = 20
	started := make(chan struct{})
	for range storm {
		go func() {
			defer func() { started <- struct{}{} }()
			conn, err := tls.Dial("tcp", r.address, r.tlsConfig(cert))
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.NetConn().Close() })
			p := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
			p.ProtocolName, p.ProtocolVersion, p.ClientIdentifier, p.CleanSession = "MQTT", 4, "nav-001", true
			p.Write(conn)
		}()
	}
	for range storm {
		next(t, started)
	}
	mqtttest.Eventually(t, "one connection is left", func() bool {
		s := r.b.Stats()
		return s.Accepted == storm && s.Pending == 0 && s.Connected == 1
	})
	last := uint64(0)
	for {
		select {
		case p := <-r.arrived:
			if p.Session <= last {
				t.Errorf("session %d after %d", p.Session, last)
			}
			last = p.Session
			continue
		default:
		}
		break
	}
	if last != storm {
		t.Errorf("session %d won, want the newest", last)
	}
}

func TestKick(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	c := r.terminal(t, "nav-001")
	bystander := r.dial(t, "nav-002")
	began := time.Now()
	if !r.b.Kick("nav-001", "certificate revoked") {
		t.Error("nobody was kicked")
	}
	if r.b.Connected("nav-001") {
		t.Error("still connected")
	}
	c.closed()
	if took := time.Since(began); took > time.Second {
		t.Errorf("closed after %v", took)
	}
	if got := next(t, r.left); !errors.Is(got.why, ErrKicked) || !strings.Contains(got.why.Error(), "certificate revoked") {
		t.Errorf("Disconnected got %v", got.why)
	}
	if r.b.Kick("nav-001", "again") || bystander.Err() != nil {
		t.Error("somebody else was kicked")
	}
}

// A terminal that is revoked between its authentication and its CONNACK must not
// slip through.
func TestKickDuringAuthenticate(t *testing.T) {
	t.Parallel()
	entered, release := make(chan struct{}), make(chan struct{})
	r := start(t, func(_ *Config, h *recorder) {
		h.authenticate = func(_ context.Context, p Peer) (string, error) {
			close(entered)
			<-release
			return p.ID, nil
		}
	})
	c := r.raw(t, r.ca.Terminal(t, "nav-001"))
	code := make(chan byte, 1)
	go func() { code <- c.connect("nav-001", nil) }()
	next(t, entered)
	if !r.b.Kick("nav-001", "revoked") {
		t.Error("nobody was kicked")
	}
	close(release)
	if got := next(t, code); got != 255 {
		t.Errorf("CONNACK %d", got)
	}
	none(t, r.arrived)
}
