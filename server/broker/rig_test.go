package broker

// The rig of all tests here: a real broker on a real socket with real
// certificates, a handler that remembers, and a raw client that can break every
// rule.

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/mqtt/mqtttest"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(benchChild); role != "" {
		os.Exit(runBench(role))
	}
	os.Exit(mqtttest.Main(m, "server/broker", "mochi-mqtt"))
}

// A message is what Receive was given.
type message struct {
	segment string
	payload string
}

// A bye is what Disconnected was given.
type bye struct {
	segment string
	session uint64
	why     error
}

// A recorder is a Handler that accepts the terminals of its CA. The functions
// may be nil.
type recorder struct {
	ca           *mqtttest.CA
	authenticate func(context.Context, Peer) (string, error)
	receive      func(context.Context, Peer, []byte) error

	received chan message
	arrived  chan Peer
	left     chan bye
}

func newRecorder(ca *mqtttest.CA) *recorder {
	return &recorder{ca: ca, received: make(chan message, 4096), arrived: make(chan Peer, 4096), left: make(chan bye, 4096)}
}

func (r *recorder) Authenticate(ctx context.Context, p Peer) (string, error) {
	if r.authenticate != nil {
		return r.authenticate(ctx, p)
	}
	if p.Enroll {
		return p.ID, nil
	}
	name, err := transport.VerifyTerminal(p.TLS.PeerCertificates, r.ca.Pool, mqtttest.Deployment, time.Now())
	return string(name), err
}

func (r *recorder) Receive(ctx context.Context, p Peer, payload []byte) error {
	if r.receive != nil {
		if err := r.receive(ctx, p, payload); err != nil {
			return err
		}
	}
	r.received <- message{p.Segment, string(payload)}
	return nil
}

func (r *recorder) Connected(p Peer)               { r.arrived <- p }
func (r *recorder) Disconnected(p Peer, why error) { r.left <- bye{p.Segment, p.Session, why} }

var _ Handler = (*recorder)(nil)

// next waits for something from a channel.
func next[T any](t testing.TB, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(mqtttest.Patience):
		t.Fatalf("nothing came in %v", mqtttest.Patience)
		panic("unreachable")
	}
}

// none checks that nothing has come.
func none[T any](t testing.TB, from <-chan T) {
	t.Helper()
	select {
	case v := <-from:
		t.Fatalf("unexpected: %+v", v)
	default:
	}
}

type rig struct {
	*recorder
	b       *Broker
	address string
	log     *logBook
	stop    context.CancelFunc
	ended   chan error
}

// start runs a broker until the test ends. tweak may be nil.
func start(t testing.TB, tweak func(*Config, *recorder)) *rig {
	t.Helper()
	ca := mqtttest.NewCA(t)
	r := &rig{recorder: newRecorder(ca), log: new(logBook), ended: make(chan error, 1)}
	cfg := Config{TLS: &tls.Config{Certificates: []tls.Certificate{ca.Server(t)}}}
	if tweak != nil {
		tweak(&cfg, r.recorder)
	}
	var err error
	if r.b, err = New(cfg, r.recorder, slog.New(slog.NewTextHandler(r.log, nil))); err != nil {
		t.Fatal(err)
	}
	ln, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.address = ln.Addr().String()
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	go func() { r.ended <- r.b.Run(ctx, ln); close(r.ended) }()
	t.Cleanup(func() {
		stop()
		select {
		case err := <-r.ended:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(mqtttest.Patience):
			t.Error("Run did not end")
		}
		if t.Failed() {
			t.Logf("the broker's log:\n%s", r.log)
		}
		if s := r.b.Stats(); s.Connected != 0 || s.Pending != 0 || s.Enrolling != 0 {
			t.Errorf("after Run: %+v", s)
		}
	})
	return r
}

// tlsConfig is that of a client with any number of certificates.
func (r *rig) tlsConfig(cert ...tls.Certificate) *tls.Config {
	return &tls.Config{RootCAs: r.ca.Pool, ServerName: "localhost", Certificates: cert}
}

// raw is a client that speaks MQTT packet by packet.
type raw struct {
	t testing.TB
	*tls.Conn
}

func (r *rig) raw(t testing.TB, cert ...tls.Certificate) *raw {
	t.Helper()
	conn, err := tls.Dial("tcp", r.address, r.tlsConfig(cert...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.NetConn().Close() })
	conn.SetDeadline(time.Now().Add(mqtttest.Patience))
	return &raw{t, conn}
}

// terminal is a raw client with an identity, connected and subscribed.
func (r *rig) terminal(t testing.TB, name string) *raw {
	t.Helper()
	c := r.raw(t, r.ca.Terminal(t, name))
	if code := c.connect(name, nil); code != 0 {
		t.Fatalf("CONNACK %d", code)
	}
	_, down := transport.Topics(name)
	if code := c.subscribe(down); code != 0 {
		t.Fatalf("SUBACK %#x", code)
	}
	return c
}

func (c *raw) write(p packets.ControlPacket) {
	c.t.Helper()
	var b bytes.Buffer // one write, so one TLS record
	p.Write(&b)
	if _, err := c.Conn.Write(b.Bytes()); err != nil {
		c.t.Logf("write: %v", err)
	}
}

func (c *raw) read() (packets.ControlPacket, error) { return packets.ReadPacket(c.Conn) }

// connect sends CONNECT and returns the CONNACK's code, or 255 for a hang-up.
func (c *raw) connect(id string, tweak func(*packets.ConnectPacket)) byte {
	c.t.Helper()
	p := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
	p.ProtocolName, p.ProtocolVersion, p.ClientIdentifier, p.CleanSession, p.Keepalive = "MQTT", 4, id, true, 60
	if tweak != nil {
		tweak(p)
	}
	c.write(p)
	got, err := c.read()
	if err != nil {
		return 255
	}
	ack, ok := got.(*packets.ConnackPacket)
	if !ok {
		c.t.Fatalf("got %v instead of CONNACK", got)
	}
	if ack.SessionPresent {
		c.t.Error("CONNACK says that there was a session")
	}
	return ack.ReturnCode
}

func (c *raw) subscribe(filter string) byte {
	c.t.Helper()
	p := packets.NewControlPacket(packets.Subscribe).(*packets.SubscribePacket)
	p.MessageID, p.Topics, p.Qoss = 7, []string{filter}, []byte{1}
	c.write(p)
	got, err := c.read()
	if err != nil {
		return 255
	}
	return got.(*packets.SubackPacket).ReturnCodes[0]
}

func (c *raw) publish(topic string, id uint16, payload string, tweak func(*packets.PublishPacket)) {
	c.t.Helper()
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.TopicName, p.MessageID, p.Payload, p.Qos = topic, id, []byte(payload), 1
	if tweak != nil {
		tweak(p)
	}
	c.write(p)
}

// closed waits for the end of the connection and returns what came before it.
func (c *raw) closed() []string {
	c.t.Helper()
	var got []string
	for {
		p, err := c.read()
		if err == nil {
			got = append(got, p.String())
			continue
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.t.Fatal("the connection stays open")
		}
		return got
	}
}

// logBook is a log that can be read while it is written.
type logBook struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// says waits for a line with all of these words.
func (l *logBook) says(t testing.TB, words ...string) {
	t.Helper()
	mqtttest.Eventually(t, fmt.Sprintf("the log says %q", words), func() bool {
		for line := range strings.Lines(l.String()) {
			all := true
			for _, w := range words {
				all = all && strings.Contains(line, w)
			}
			if all {
				return true
			}
		}
		return false
	})
}

// dialTCP opens a connection that is not yet TLS.
func (r *rig) dialTCP(t testing.TB) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", r.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// hangUp waits until the other end has closed a connection, and says how long
// that took.
func hangUp(t testing.TB, conn net.Conn) time.Duration {
	t.Helper()
	start := time.Now()
	conn.SetReadDeadline(start.Add(mqtttest.Patience))
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("the connection stays open")
	}
	return time.Since(start)
}
