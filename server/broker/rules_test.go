package broker

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/kagimori/kagimori/transport"
)

// Every rule of the package comment, broken by a client whose identity is good.
// The connection ends, nothing is acknowledged or received, and the log says why.
func TestRules(t *testing.T) {
	t.Parallel()
	up, down := transport.Topics("nav-001")
	otherUp, otherDown := transport.Topics("nav-002")
	publish := func(topic string, tweak func(*packets.PublishPacket)) func(*raw) {
		return func(c *raw) { c.publish(topic, 5, "x", tweak) }
	}
	subscribe := func(filters ...string) func(*raw) {
		return func(c *raw) {
			p := packets.NewControlPacket(packets.Subscribe).(*packets.SubscribePacket)
			p.MessageID, p.Topics, p.Qoss = 8, filters, make([]byte, len(filters))
			c.write(p)
		}
	}
	bytes := func(b ...byte) func(*raw) { return func(c *raw) { c.Conn.Write(b) } }
	tests := map[string]struct {
		do   func(*raw)
		says string
	}{
		"another's up topic":        {publish(otherUp, nil), "publishes to"},
		"another's down topic":      {publish(otherDown, nil), "publishes to"},
		"its own down topic":        {publish(down, nil), "publishes to"},
		"a topic with a wildcard":   {publish("kagimori/1/+/up", nil), "publishes to"},
		"a system topic":            {publish("$SYS/broker", nil), "publishes to"},
		"an empty topic":            {publish("", nil), ""},
		"retained":                  {publish(up, func(p *packets.PublishPacket) { p.Retain = true }), "retained"},
		"QoS 0":                     {publish(up, func(p *packets.PublishPacket) { p.Qos = 0 }), "QoS 0"},
		"QoS 2":                     {publish(up, func(p *packets.PublishPacket) { p.Qos = 2 }), "QoS 2"},
		"QoS 3":                     {publish(up, func(p *packets.PublishPacket) { p.Qos = 3 }), "QoS 3"},
		"packet id 0":               {publish(up, func(p *packets.PublishPacket) { p.MessageID = 0 }), ""},
		"too much payload":          {publish(up, func(p *packets.PublishPacket) { p.Payload = make([]byte, transport.MaxEnvelope+1) }), "65537"},
		"far too much payload":      {bytes(0x32, 0xff, 0xff, 0xff, 0x7f), "bytes (the limit"},
		"subscribes to another's":   {subscribe(otherDown), "subscribes to"},
		"subscribes to its up":      {subscribe(up), "subscribes to"},
		"subscribes to +":           {subscribe("kagimori/1/+/down"), "subscribes to"},
		"subscribes to #":           {subscribe("#"), "subscribes to"},
		"subscribes to $SYS":        {subscribe("$SYS/#"), "subscribes to"},
		"shares a subscription":     {subscribe("$share/g/" + down), "subscribes to"},
		"subscribes to both":        {subscribe(down, otherDown), "subscribes to"},
		"subscribes to nothing":     {subscribe(), ""},
		"a second CONNECT":          {bytes(0x10, 0x0c, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0, 0), "CONNECT"},
		"PUBACK":                    {bytes(0x40, 2, 0, 1), "packet type 4"},
		"PUBREL":                    {bytes(0x62, 2, 0, 1), "packet type 6"},
		"CONNACK":                   {bytes(0x20, 2, 0, 0), "packet type 2"},
		"AUTH":                      {bytes(0xf0, 2, 0, 0), "packet type 15"},
		"packet type 0":             {bytes(0x00, 0x00), "packet type 0"},
		"PINGREQ with a body":       {bytes(0xc0, 2, 0, 0), "packet type 12"},
		"a length without an end":   {bytes(0x32, 0xff, 0xff, 0xff, 0xff, 0x01), "malformed"},
		"a topic beyond the packet": {bytes(0x32, 4, 0xff, 0xff, 'a', 'b'), ""},
		"garbage":                   {bytes(0x16, 0x03, 0x01, 0xde, 0xad, 0xbe, 0xef), "packet type 1"},
	}
	r := start(t, nil)
	witness := r.terminal(t, "nav-002")
	next(t, r.arrived)
	for name, test := range tests {
		c := r.terminal(t, "nav-001")
		session := next(t, r.arrived).Session
		test.do(c)
		if got := c.closed(); len(got) != 0 {
			t.Errorf("%s: the client got %v", name, got)
		}
		left := next(t, r.left)
		if left.session != session || left.why == nil || !strings.Contains(left.why.Error(), test.says) {
			t.Errorf("%s: Disconnected got %+v, want %q", name, left, test.says)
		}
		if test.says != "" && !errors.Is(left.why, ErrRule) {
			t.Errorf("%s: %v is no ErrRule", name, left.why)
		}
	}
	none(t, r.received)
	r.log.says(t, "level=WARN", "client broke a rule", "segment=nav-001", "remote=127.0.0.1")
	if err := r.b.Send("nav-002", []byte("still there")); err != nil {
		t.Error(err)
	}
	if p, err := witness.read(); err != nil || string(p.(*packets.PublishPacket).Payload) != "still there" {
		t.Errorf("the other terminal got %v, %v", p, err)
	}
}

// What a CONNECT must not ask for, with the code that it is refused with (255:
// no CONNACK at all).
func TestConnectRules(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	tests := map[string]struct {
		id    string
		tweak func(*packets.ConnectPacket)
		code  byte
		says  string
	}{
		"MQTT 3.1":             {"nav-001", func(p *packets.ConnectPacket) { p.ProtocolName, p.ProtocolVersion = "MQIsdp", 3 }, 1, ""},
		"level 6":              {"nav-001", func(p *packets.ConnectPacket) { p.ProtocolVersion = 6 }, 0x82, ""},
		"will":                 {"nav-001", func(p *packets.ConnectPacket) { p.WillFlag, p.WillTopic, p.WillMessage = true, "a", []byte("b") }, 5, "a will"},
		"password":             {"nav-001", func(p *packets.ConnectPacket) { p.UsernameFlag, p.Username = true, "root" }, 5, "a user name"},
		"no id":                {"", nil, 2, "client id"},
		"a wild id":            {"nav/#", nil, 2, "client id"},
		"another's id":         {"nav-002", nil, 2, "client id nav-002 of terminal nav-001"},
		"the library's own id": {"inline", nil, 2, "client id inline of terminal nav-001"},
		"large":                {strings.Repeat("n", maxConnect), nil, 255, ""},
	}
	for name, test := range tests {
		c := r.raw(t, r.ca.Terminal(t, "nav-001"))
		if code := c.connect(test.id, test.tweak); code != test.code {
			t.Errorf("%s: CONNACK %d, want %d", name, code, test.code)
		}
		if got := c.closed(); len(got) != 0 {
			t.Errorf("%s: after CONNACK: %v", name, got)
		}
		if test.says != "" {
			r.log.says(t, "level=INFO", "client refused", test.says)
		}
	}
	none(t, r.arrived)
}

// There is no session but a clean one, whatever a client asks for.
func TestNoPersistentSession(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	_, down := transport.Topics("nav-001")
	for range 2 { // connect fails if the second CONNACK says session present
		c := r.raw(t, r.ca.Terminal(t, "nav-001"))
		if code := c.connect("nav-001", func(p *packets.ConnectPacket) { p.CleanSession = false }); code != 0 {
			t.Fatal(code)
		}
		if err := r.b.Send("nav-001", nil); !errors.Is(err, ErrNotConnected) {
			t.Errorf("a subscription survived: %v", err)
		}
		if code := c.subscribe(down); code != 0 {
			t.Errorf("SUBACK %#x, want QoS 0 for a request of QoS 1", code)
		}
		c.Close()
		next(t, r.left)
	}
	if n := len(r.b.mqtt.Clients.GetAll()); n != 0 {
		t.Errorf("the library remembers %d clients", n)
	}
}

// A terminal may be called like the library's own client.
func TestTerminalNamedInline(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	c := r.dial(t, "inline")
	for i := range 3 {
		if err := r.b.Send("inline", fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
		if got := next(t, c.Receive()); string(got) != fmt.Sprint(i) {
			t.Errorf("got %q", got)
		}
	}
}
