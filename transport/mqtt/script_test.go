package mqtt

// A server that says exactly what a test wants, over real TLS.

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/mqtt/mqtttest"
)

func TestMain(m *testing.M) { os.Exit(mqtttest.Main(m, "transport/mqtt", "paho")) }

var (
	accept  = []byte{0x20, 2, 0, 0}
	granted = func(id uint16) []byte { return []byte{0x90, 3, byte(id >> 8), byte(id), 0} }
)

const name = "nav-001"

var up, down = transport.Topics(name)

// config is that of a terminal of ca.
func config(t testing.TB, ca *mqtttest.CA, address string) Config {
	t.Helper()
	return Config{
		Address: address, ClientID: name, Up: up, Down: down, writeTime: time.Second,
		TLS: &tls.Config{RootCAs: ca.Pool, Certificates: []tls.Certificate{ca.Terminal(t, name)}},
	}
}

// script listens, and runs serve for each connection that completes its
// handshake. The connection is closed when serve returns.
func script(t testing.TB, ca *mqtttest.CA, serve func(s *server)) (address string) {
	t.Helper()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{ca.Server(t)}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS13,
	})
	if err != nil {
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	t.Cleanup(func() { ln.Close(); <-stopped })
	go func() {
		defer close(stopped)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conn.SetDeadline(time.Now().Add(mqtttest.Patience))
			if conn.(*tls.Conn).Handshake() == nil {
				serve(&server{t, conn.(*tls.Conn)})
			}
			conn.Close()
		}
	}()
	return ln.Addr().String()
}

type server struct {
	t testing.TB
	*tls.Conn
}

func (s *server) read() packets.ControlPacket {
	p, err := packets.ReadPacket(s.Conn)
	if err != nil {
		return nil
	}
	return p
}

func (s *server) send(p packets.ControlPacket) {
	var b bytes.Buffer
	p.Write(&b)
	s.Write(b.Bytes())
}

// welcome answers CONNECT and SUBSCRIBE as a good server does.
func (s *server) welcome() {
	connect, _ := s.read().(*packets.ConnectPacket)
	if connect == nil || connect.ProtocolVersion != 4 || !connect.CleanSession || connect.WillFlag || connect.ClientIdentifier != name {
		s.t.Errorf("CONNECT is %v", connect)
	}
	s.Write(accept)
	subscribe, _ := s.read().(*packets.SubscribePacket)
	if subscribe == nil || len(subscribe.Topics) != 1 || subscribe.Topics[0] != down || subscribe.Qoss[0] != 0 {
		s.t.Errorf("SUBSCRIBE is %v", subscribe)
		return
	}
	s.Write(granted(subscribe.MessageID))
}

func (s *server) publish(payload string) {
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.TopicName, p.Payload = down, []byte(payload)
	s.send(p)
}

// drain reads until the client is gone.
func (s *server) drain() { io.Copy(io.Discard, s.Conn) }

// ended waits for the end of a connection and returns why.
func ended(t testing.TB, c *Conn) error {
	t.Helper()
	select {
	case <-c.Done():
		return c.Err()
	case <-time.After(mqtttest.Patience):
		t.Fatal("the connection stays")
		return nil
	}
}

func TestDialOutcomes(t *testing.T) {
	t.Parallel()
	ca := mqtttest.NewCA(t)
	say := func(b ...byte) func(*server) {
		return func(s *server) { s.read(); s.Write(b); s.drain() }
	}
	subscribed := func(code byte) func(*server) {
		return func(s *server) {
			s.read()
			s.Write(accept)
			s.read()
			s.Write([]byte{0x90, 3, 0, 1, code})
			s.drain()
		}
	}
	tests := map[string]struct {
		serve func(*server)
		is    error
		says  string
	}{
		"version":                 {say(0x20, 2, 0, 1), ErrProtocol, "3.1.1"},
		"id":                      {say(0x20, 2, 0, 2), ErrRefused, "refused this identity"},
		"unavailable":             {say(0x20, 2, 0, 3), ErrBusy, "later"},
		"password":                {say(0x20, 2, 0, 4), ErrRefused, ""},
		"not authorised":          {say(0x20, 2, 0, 5), ErrRefused, ""},
		"a code of the future":    {say(0x20, 2, 0, 200), ErrProtocol, "code 200"},
		"CONNACK too long":        {say(0x20, 3, 0, 0, 0), ErrProtocol, ""},
		"CONNACK too short":       {say(0x20, 1, 0), ErrProtocol, ""},
		"PINGRESP first":          {say(0xd0, 0), ErrProtocol, "before CONNACK"},
		"PUBLISH first":           {say(0x30, 3, 0, 1, 'a'), ErrProtocol, "before CONNACK"},
		"HTTP":                    {func(s *server) { s.read(); io.WriteString(s, "HTTP/1.1 400 Bad Request\r\n\r\n") }, ErrProtocol, ""},
		"hang-up":                 {func(s *server) { s.read() }, io.ErrUnexpectedEOF, "hung up"},
		"hang-up at SUBSCRIBE":    {func(s *server) { s.read(); s.Write(accept); s.read() }, io.ErrUnexpectedEOF, ""},
		"subscription refused":    {subscribed(0x80), ErrRefused, "subscription"},
		"subscription too good":   {subscribed(1), ErrRefused, "granted"},
		"two SUBACK codes":        {func(s *server) { s.read(); s.Write(accept); s.read(); s.Write([]byte{0x90, 4, 0, 1, 0, 0}); s.drain() }, ErrProtocol, ""},
		"SUBACK of another id":    {func(s *server) { s.read(); s.Write(accept); s.read(); s.Write([]byte{0x90, 3, 0, 9, 0}) }, io.ErrUnexpectedEOF, ""},
		"PUBACK in place of it":   {func(s *server) { s.read(); s.Write(accept); s.read(); s.Write([]byte{0x40, 2, 0, 1}); s.drain() }, ErrRefused, "subscription"},
		"a packet without bounds": {say(0x20, 0xff, 0xff, 0xff, 0xff, 1), ErrProtocol, ""},
	}
	for what, test := range tests {
		c, err := Dial(t.Context(), config(t, ca, script(t, ca, test.serve)))
		if err == nil {
			c.Close()
			t.Errorf("%s: connected", what)
			continue
		}
		if !errors.Is(err, test.is) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: got %q, want %q", what, err, test.is)
		}
	}
}

// Dial ends with its ctx and with DialTime, whatever stage it has reached.
func TestDialGivesUp(t *testing.T) {
	t.Parallel()
	ca := mqtttest.NewCA(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for what, address := range map[string]string{
		"no TLS":     silent.Addr().String(),
		"no CONNACK": script(t, ca, (*server).drain),
		"no SUBACK":  script(t, ca, func(s *server) { s.read(); s.Write(accept); s.drain() }),
	} {
		cfg := config(t, ca, address)
		cfg.DialTime = 200 * time.Millisecond
		began := time.Now()
		if _, err := Dial(t.Context(), cfg); !isTimeout(err) || time.Since(began) > 5*time.Second {
			t.Errorf("%s: %v after %v", what, err, time.Since(began))
		}
	}
}

func isTimeout(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}

// What a server may not send on a connection that is up.
func TestServerBreaksRules(t *testing.T) {
	t.Parallel()
	ca := mqtttest.NewCA(t)
	publish := func(tweak func(*packets.PublishPacket)) func(*server) {
		return func(s *server) {
			p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
			p.TopicName, p.Payload = down, []byte("x")
			tweak(p)
			s.send(p)
		}
	}
	tests := map[string]struct {
		do func(*server)
		is error
	}{
		"another topic": {publish(func(p *packets.PublishPacket) { p.TopicName = up }), ErrProtocol},
		"QoS 1":         {publish(func(p *packets.PublishPacket) { p.Qos, p.MessageID = 1, 1 }), ErrProtocol},
		"retained":      {publish(func(p *packets.PublishPacket) { p.Retain = true }), ErrProtocol},
		"too large":     {publish(func(p *packets.PublishPacket) { p.Payload = make([]byte, transport.MaxEnvelope+1) }), ErrProtocol},
		"huge":          {func(s *server) { s.Write([]byte{0x30, 0xff, 0xff, 0xff, 0x7f}) }, ErrProtocol},
		"second SUBACK": {func(s *server) { s.Write(granted(1)) }, ErrProtocol},
		"CONNECT":       {func(s *server) { s.Write([]byte{0x10, 0}) }, ErrProtocol},
		"long PINGRESP": {func(s *server) { s.Write([]byte{0xd0, 1, 0}) }, ErrProtocol},
		"too many": {func(s *server) {
			for range queueLength + 1 {
				s.publish("x")
			}
		}, ErrOverflow},
		"hang-up": {func(s *server) { s.Close() }, io.ErrUnexpectedEOF},
	}
	for what, test := range tests {
		up := make(chan struct{})
		c, err := Dial(t.Context(), config(t, ca, script(t, ca, func(s *server) { s.welcome(); <-up; test.do(s); s.drain() })))
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		close(up)
		if err := ended(t, c); !errors.Is(err, test.is) {
			t.Errorf("%s: got %v, want %v", what, err, test.is)
		}
		if err := c.Send(t.Context(), []byte("x")); !errors.Is(err, test.is) {
			t.Errorf("%s: Send afterwards: %v", what, err)
		}
		c.Close()
		if err := c.Err(); !errors.Is(err, test.is) {
			t.Errorf("%s: after Close: %v", what, err)
		}
	}
}

// A server that has gone without a word is noticed by its missing PINGRESP.
func TestPingTimeout(t *testing.T) {
	t.Parallel()
	ca := mqtttest.NewCA(t)
	cfg := config(t, ca, script(t, ca, func(s *server) { s.welcome(); s.drain() }))
	cfg.KeepAlive, cfg.pingTime = time.Second, 200*time.Millisecond
	c, err := Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := ended(t, c); err == nil || !strings.Contains(err.Error(), "pingresp not received") {
		t.Errorf("got %v", err)
	}
}
