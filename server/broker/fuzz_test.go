package broker

import (
	"bytes"
	"crypto/tls"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/mqtt/mqtttest"
)

// Any bytes from a client, as its first packets or after a good CONNECT: the
// protocol machine does not panic, nothing hangs, a message reaches the handler
// only in its own name, and the neighbour does not notice.
func FuzzPackets(f *testing.F) {
	up, down := transport.Topics("nav-001")
	encode := func(p packets.ControlPacket) []byte {
		var b bytes.Buffer
		p.Write(&b)
		return b.Bytes()
	}
	publish := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	publish.TopicName, publish.MessageID, publish.Qos, publish.Payload = up, 1, 1, []byte("x")
	subscribe := packets.NewControlPacket(packets.Subscribe).(*packets.SubscribePacket)
	subscribe.MessageID, subscribe.Topics, subscribe.Qoss = 2, []string{down}, []byte{0}
	connect := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
	connect.ProtocolName, connect.ProtocolVersion, connect.ClientIdentifier, connect.CleanSession = "MQTT", 4, "nav-001", true
	v5 := []byte{0x10, 0x16, 0, 4, 'M', 'Q', 'T', 'T', 5, 2, 0, 60, 5, 0x11, 0, 0, 0, 9, 0, 4, 'n', 'a', 'v', '1'}
	for _, seed := range [][]byte{
		encode(connect), append(encode(connect), encode(publish)...), v5,
		{0x10, 0xff, 0xff, 0x7f}, {0x10, 0}, {}, {0x16, 3, 1},
	} {
		f.Add(false, seed)
	}
	for _, seed := range [][]byte{
		encode(publish), encode(subscribe), append(encode(subscribe), encode(publish)...),
		{0xc0, 0, 0xe0, 0}, {0x82, 0}, {0x82, 2, 0, 1}, {0x82, 5, 0, 1, 0, 200, 1}, {0xa2, 4, 0, 1, 0, 0}, {0x32, 0}, {0x32, 2, 0, 0}, {0x3a, 4, 0, 0, 0, 1},
	} {
		f.Add(true, seed)
	}
	r := start(f, func(cfg *Config, _ *recorder) { cfg.ConnectTime = 2 * time.Second })
	cert := r.ca.Terminal(f, "nav-001")
	witness := r.dial(f, "nav-002")
	f.Fuzz(func(t *testing.T, connected bool, input []byte) {
		conn, err := tls.Dial("tcp", r.address, r.tlsConfig(cert))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.NetConn().Close()
		conn.SetDeadline(time.Now().Add(mqtttest.Patience))
		if connected {
			conn.Write(encode(connect))
			io.ReadFull(conn, make([]byte, 4))
		}
		conn.Write(input)
		conn.CloseWrite() // so that the server does not wait for more
		if _, err := io.Copy(io.Discard, conn); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Error("the server neither answers nor hangs up")
		}
		for empty := false; !empty; {
			select {
			case m := <-r.received:
				if m.segment != "nav-001" {
					t.Errorf("a message in the name of %s", m.segment)
				}
			case <-r.arrived:
			case <-r.left:
			default:
				empty = true
			}
		}
		if strings.Contains(r.log.String(), "panicked") {
			t.Error("the MQTT library panicked")
		}
		if err := witness.Err(); err != nil {
			t.Errorf("the neighbour was disturbed: %v", err)
		}
	})
}
