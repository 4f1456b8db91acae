package broker

import (
	"errors"
	"fmt"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/mqtt/frame"
)

// Bounds on packets in bytes of remaining length, besides a payload.
const (
	maxConnect   = 1 << 10 // client id, and room for what is refused politely
	maxSubscribe = 1 << 10
	maxTopic     = len("kagimori/1//down") + transport.MaxName
)

// checkFrame judges a packet by its fixed header, before the library reads it.
func (l *link) checkFrame(h frame.Header) error {
	if first := !l.opened; first != (h.Type == frame.Connect) {
		return fmt.Errorf("packet type %d where CONNECT is expected once, and first", h.Type)
	}
	l.opened = true
	limit := 0
	switch h.Type {
	case frame.Connect:
		limit = maxConnect
	case frame.Publish:
		if h.QoS() != 1 {
			return fmt.Errorf("a publication with QoS %d (want 1)", h.QoS())
		}
		if h.Retain() {
			return errors.New("a retained publication")
		}
		limit = 2 + maxTopic + 2 + max(l.limit, l.b.cfg.MaxEnrollPayload)
	case frame.Subscribe, frame.Unsubscribe:
		limit = maxSubscribe
	case frame.Pingreq, frame.Disconnect:
	default:
		return fmt.Errorf("packet type %d", h.Type)
	}
	if h.Length > limit {
		return fmt.Errorf("packet type %d of %d bytes (the limit is %d)", h.Type, h.Length, limit)
	}
	return nil
}

// checkPacket judges a decoded packet of a client that has been admitted.
func (l *link) checkPacket(pk packets.Packet) error {
	switch pk.FixedHeader.Type {
	case packets.Publish:
		if pk.TopicName != l.up {
			return fmt.Errorf("publishes to %.120q (want %s)", pk.TopicName, l.up)
		}
		if len(pk.Payload) > l.limit {
			return fmt.Errorf("a payload of %d bytes (the limit is %d)", len(pk.Payload), l.limit)
		}
	case packets.Subscribe, packets.Unsubscribe:
		for _, f := range pk.Filters {
			if f.Filter != l.down {
				return fmt.Errorf("subscribes to %.120q (want %s)", f.Filter, l.down)
			}
		}
	}
	return nil
}

// hook is how the protocol machine asks us. Its methods run in the goroutine of
// the connection's serve, except OnACLCheck and OnPublishDropped for reading,
// which run in Send.
type hook struct {
	mochi.HookBase
	b *Broker
}

func (*hook) ID() string { return "broker" }

func (*hook) Provides(event byte) bool {
	switch event {
	case mochi.OnConnect, mochi.OnConnectAuthenticate, mochi.OnSessionEstablished, mochi.OnPacketRead,
		mochi.OnACLCheck, mochi.OnSubscribe, mochi.OnSubscribed, mochi.OnUnsubscribe, mochi.OnPublish, mochi.OnPublishDropped:
		return true
	}
	return false
}

// linkOf is nil for the client in whose name the server itself publishes.
func linkOf(cl *mochi.Client) *link {
	l, _ := cl.Net.Conn.(*link)
	return l
}

// OnConnect admits or refuses. The library writes no CONNACK when a hook fails.
func (h *hook) OnConnect(cl *mochi.Client, pk packets.Packet) error {
	l := linkOf(cl)
	err := l.admit(cl, pk)
	if err == nil {
		return nil
	}
	if no, ok := errors.AsType[refusal](err); ok {
		if l.cause() == nil {
			_ = h.b.mqtt.SendConnack(cl, no.code, false, nil) // the connection ends anyway
		}
		h.b.noise.info("client refused", "client", fmt.Sprintf("%.80s", pk.Connect.ClientIdentifier), "remote", l.peer.Remote, "err", err)
	}
	return err
}

// OnConnectAuthenticate agrees: OnConnect has decided.
func (*hook) OnConnectAuthenticate(*mochi.Client, packets.Packet) bool { return true }

func (h *hook) OnSessionEstablished(cl *mochi.Client, _ packets.Packet) {
	l := linkOf(cl)
	l.announced = true
	h.b.log.Debug("client connected", "segment", l.peer.Segment, "remote", l.peer.Remote, "session", l.peer.Session)
	l.handling = true
	h.b.handler.Connected(l.peer)
	l.handling = false
}

// OnPacketRead sees every packet before the library acts on it. ErrRejectPacket
// is the only error that the library obeys here; it ends the connection.
func (h *hook) OnPacketRead(cl *mochi.Client, pk packets.Packet) (packets.Packet, error) {
	l := linkOf(cl)
	switch {
	case l.cause() != nil: // the library still has packets in its buffer
		return pk, packets.ErrRejectPacket
	case pk.FixedHeader.Type == packets.Connect:
		return pk, nil
	}
	if err := l.checkPacket(pk); err != nil {
		l.end(fmt.Errorf("%w: %w", ErrRule, err))
		return pk, packets.ErrRejectPacket
	}
	return pk, nil
}

// OnACLCheck is asked again, for publications both ways and for subscriptions.
func (*hook) OnACLCheck(cl *mochi.Client, topic string, write bool) bool {
	l := linkOf(cl)
	return l != nil && (write && topic == l.up || !write && topic == l.down)
}

// OnSubscribe grants QoS 0, whatever was asked for: the library loses QoS 1
// deliveries when packet ids cross (research: mqtt.md §4).
func (*hook) OnSubscribe(_ *mochi.Client, pk packets.Packet) packets.Packet {
	for i := range pk.Filters {
		pk.Filters[i].Qos = 0
	}
	return pk
}

func (*hook) OnSubscribed(cl *mochi.Client, _ packets.Packet, _ []byte) {
	linkOf(cl).subscribed.Store(true)
}

func (*hook) OnUnsubscribe(cl *mochi.Client, pk packets.Packet) packets.Packet {
	linkOf(cl).subscribed.Store(false)
	return pk
}

// OnPublish takes a message before its PUBACK. CodeSuccessIgnore means: answer
// with PUBACK, route to nobody. Any error but these two would be acknowledged.
func (h *hook) OnPublish(cl *mochi.Client, pk packets.Packet) (packets.Packet, error) {
	l := linkOf(cl)
	if l == nil {
		return pk, nil // Send
	}
	l.handling = true
	err := h.b.handler.Receive(l.ctx, l.peer, pk.Payload)
	l.handling = false
	if err != nil {
		l.end(fmt.Errorf("%w: %w", ErrReceive, err))
		return pk, packets.ErrRejectPacket
	}
	h.b.count.received.Add(1)
	return pk, packets.CodeSuccessIgnore
}

// OnPublishDropped ends a client whose queue is full: a gap that nobody sees is
// worse than a new connection.
func (*hook) OnPublishDropped(cl *mochi.Client, _ packets.Packet) {
	if l := linkOf(cl); l != nil {
		l.end(ErrSlow)
	}
}
