// Package broker is the server's end of the MQTT wire (DESIGN D1, D2). START
// HERE, then read along a connection's life: listen.go (the door), link.go (one
// connection), admit.go (CONNECT), hook.go (everything after).
//
// The protocol machine is mochi-mqtt, kept behind the Handler below and behind
// packet filters of our own, so that only this part of MQTT ever reaches it:
//
//   - MQTT 3.1.1 over TLS 1.3, clean session always, no will, no password
//   - the client publishes with QoS 1, to its own up topic only, never retained
//   - it subscribes to its own down topic only, and gets QoS 0
//   - the server sends to that topic; no client ever reaches another
//
// Whatever breaks these rules is disconnected. Nothing here is durable: a
// message is acknowledged after Handler.Receive has made it so.
package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/kagimori/kagimori/transport"
)

// A Peer is one connection and who is at its other end.
type Peer struct {
	ID      string         // the MQTT client id, as claimed
	Segment string         // what Authenticate returned: the topics' segment
	Enroll  bool           // it has no certificate and may do nothing but enroll
	Remote  netip.AddrPort // zero when the listener is not TCP
	// TLS is the connection's state; its ExportKeyingMaterial works. The chain
	// in PeerCertificates is not trusted unless Config.TLS verified it.
	TLS tls.ConnectionState
	// Session grows with every connection of this process: of two sessions of
	// one segment the larger is the newer.
	Session uint64
}

// A Handler is what stands behind the broker. All its calls for one connection
// are made one after the other, Connected first and Disconnected last, and the
// calls for two connections of one segment never overlap: the older one has
// been Disconnected before the newer one is Connected. Calls for different
// segments are concurrent. ctx ends with the connection.
type Handler interface {
	// Authenticate says which segment a client may use, before CONNACK; it must
	// be the client id. An error that wraps ErrRefused or
	// transport.ErrCertificate tells the client that its identity is refused,
	// any other that the server cannot answer now.
	Authenticate(ctx context.Context, p Peer) (segment string, err error)
	// Receive runs before the PUBACK: what it returns nil for is durable. After
	// an error there is no PUBACK and the connection is closed. The handler may
	// keep payload. While it runs the client's pings wait: be quick.
	Receive(ctx context.Context, p Peer, payload []byte) error
	// Connected runs after CONNACK, before any Receive. The client has not yet
	// subscribed, so a Send from here fails.
	Connected(p Peer)
	// Disconnected runs once for each Connected. why is nil when the client
	// said good-bye, else one of the errors of this package or of the network.
	Disconnected(p Peer, why error)
}

// Config tunes a broker; zero fields take the defaults.
type Config struct {
	// TLS must have the server's certificate. The broker copies it and insists
	// on TLS 1.3, no session tickets, and at least asking for a client certificate.
	TLS              *tls.Config
	MaxPayload       int           // bytes, default transport.MaxEnvelope
	MaxEnrollPayload int           // bytes, default transport.MaxEnrollEnvelope
	MaxConnections   int           // default 20,000; more are closed at once
	HandshakeTime    time.Duration // from accept to the end of the TLS handshake, default 5 s
	ConnectTime      time.Duration // from accept to CONNACK, default 10 s
	EnrollTime       time.Duration // how long a client without certificate may stay, default 30 s
	MaxKeepAlive     time.Duration // a longer or absent keepalive is cut to this, default 5 min
	WriteTime        time.Duration // how long one write may take, default 30 s
	StopTime         time.Duration // how long Run waits for Receive calls that still run, default 5 s
	EnrollAddress    Rate          // connections without certificate per address, default 30, then one in 2 s
	EnrollTotal      Rate          // the same in all, default 200, then one in 50 ms
}

// What ends a connection, or refuses a Send.
var (
	ErrRefused      = errors.New("identity refused")
	ErrNotConnected = errors.New("not connected")
	ErrTooLarge     = errors.New("payload is too large")
	ErrRule         = errors.New("MQTT outside of what this server speaks")
	ErrTime         = errors.New("time is over")
	ErrEvicted      = errors.New("a newer connection of the same identity took over")
	ErrKicked       = errors.New("closed by the server")
	ErrSlow         = errors.New("the client reads too slowly")
	ErrSilent       = errors.New("nothing was heard from the client")
	ErrReceive      = errors.New("a message could not be taken")
	ErrShutdown     = errors.New("the server is shutting down")
	errBusy         = errors.New("the server is busy")
	errDisplaced    = fmt.Errorf("no CONNECT while others wait: %w", errBusy)
)

// Sizes that are no business of a configuration.
const (
	maxPending   = 512             // connections between accept and CONNACK
	maxHandshake = 64              // of these, computing at the same time (DESIGN D2)
	maxEnrolling = 256             // clients without certificate at the same time
	evictTime    = 5 * time.Second // how long a newer connection waits for the older one to end
	maxQueue     = 64              // messages that wait for a slow client (research: mochi's 8192 costs 64 KiB each)
	bufferSize   = 512             // bytes, read and write buffer of one client
)

// Broker accepts terminals. Make one with New.
type Broker struct {
	cfg     Config
	handler Handler
	log     *slog.Logger
	mqtt    *mochi.Server
	self    *mochi.Client // in whose name the server publishes
	links   links
	slots   chan struct{} // one for each handshake that may compute
	enroll  *limiter
	noise   *quiet
	crowd   *quiet
	session atomic.Uint64
	turned  chan struct{} // the accept loop has come round since Probe looked
	count   counters
}

// New makes a broker; it serves nobody before Run.
func New(cfg Config, h Handler, log *slog.Logger) (*Broker, error) {
	if cfg.TLS == nil || (len(cfg.TLS.Certificates) == 0 && cfg.TLS.GetCertificate == nil) {
		return nil, errors.New("broker: the TLS configuration has no server certificate")
	}
	if cfg.TLS.GetConfigForClient != nil {
		return nil, errors.New("broker: GetConfigForClient would bypass the broker's TLS rules; use GetCertificate")
	}
	cfg = cfg.withDefaults()
	b := &Broker{
		cfg:     cfg,
		handler: h,
		log:     log,
		links:   newLinks(),
		slots:   make(chan struct{}, maxHandshake),
		enroll:  newLimiter(cfg.EnrollAddress, cfg.EnrollTotal),
		turned:  make(chan struct{}, 1),
		noise:   newQuiet(log, quietRate),
		crowd:   newQuiet(log, crowdRate),
	}
	b.mqtt = mochi.New(&mochi.Options{
		// Its own log lines carry whole packets, secrets included.
		Logger:                   slog.New(slog.DiscardHandler),
		ClientNetReadBufferSize:  bufferSize,
		ClientNetWriteBufferSize: bufferSize,
		Capabilities: &mochi.Capabilities{
			MaximumClients:             int64(cfg.MaxConnections),
			MaximumClientWritesPending: maxQueue,
			MaximumInflight:            maxQueue,
			ReceiveMaximum:             maxQueue,
			MinimumProtocolVersion:     4,
			MaximumQos:                 1,
		},
	})
	if err := b.mqtt.AddHook(&hook{b: b}, nil); err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	// Never added to the library's table of clients, where "inline" would be a
	// client id like any other.
	b.self = b.mqtt.NewClient(nil, mochi.LocalListener, "", true)
	return b, nil
}

func (c Config) withDefaults() Config {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&c.HandshakeTime, 5*time.Second)
	set(&c.ConnectTime, 10*time.Second)
	set(&c.EnrollTime, 30*time.Second)
	set(&c.MaxKeepAlive, 5*time.Minute)
	set(&c.WriteTime, 30*time.Second)
	set(&c.StopTime, 5*time.Second)
	c.EnrollAddress = c.EnrollAddress.or(Rate{Burst: 30, Every: 2 * time.Second})
	c.EnrollTotal = c.EnrollTotal.or(Rate{Burst: 200, Every: 50 * time.Millisecond})
	if c.MaxPayload <= 0 {
		c.MaxPayload = transport.MaxEnvelope
	}
	if c.MaxEnrollPayload <= 0 {
		c.MaxEnrollPayload = transport.MaxEnrollEnvelope
	}
	if c.MaxConnections <= 0 {
		c.MaxConnections = 20_000
	}
	c.TLS = c.TLS.Clone()
	c.TLS.MinVersion = tls.VersionTLS13
	c.TLS.SessionTicketsDisabled = true // every connection proves its identity anew
	if c.TLS.ClientAuth == tls.NoClientCert {
		c.TLS.ClientAuth = tls.RequestClientCert
	}
	return c
}

// Run serves ln until ctx ends, then lets the Receive calls that still run
// finish and be acknowledged, and returns when every connection has ended and
// every Disconnected has returned. It closes ln. Call it once.
func (b *Broker) Run(ctx context.Context, ln net.Listener) error {
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	life, cut := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cut(ErrShutdown)
	var clients sync.WaitGroup
	err := b.accept(ctx, ln, func(conn net.Conn) {
		l := newLink(life, b, conn)
		if displaced := b.links.enter(l); displaced != nil {
			b.count.displaced.Add(1)
			b.crowd.warn("too many connections without CONNECT: the oldest made room; see who opens them", "remote", displaced.peer.Remote)
		}
		clients.Go(func() { b.serve(l) })
	})
	ln.Close()
	b.links.drain()
	late := time.AfterFunc(b.cfg.StopTime, func() { b.links.end(ErrShutdown) })
	defer late.Stop()
	clients.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("broker: %w", err)
}

// Send puts payload into the queue of a client that is connected and has
// subscribed, QoS 0: it may still be lost with the connection, so the truth is
// the client's own answer. A client whose queue is full is disconnected.
func (b *Broker) Send(segment string, payload []byte) error {
	l := b.links.get(segment)
	if l == nil || !l.subscribed.Load() {
		return fmt.Errorf("send to %s: %w", segment, ErrNotConnected)
	}
	if len(payload) > l.limit {
		return fmt.Errorf("send to %s: %w: %d bytes, the limit is %d", segment, ErrTooLarge, len(payload), l.limit)
	}
	err := b.mqtt.InjectPacket(b.self, packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish},
		TopicName:   l.down,
		Payload:     payload,
	})
	if err == nil {
		err = l.cause()
	}
	if err != nil {
		return fmt.Errorf("send to %s: %w", segment, err)
	}
	b.count.sent.Add(1)
	return nil
}

// Extend gives an enrolling client that has proven something of itself more
// room and time: payloads of at most limit bytes, and d from now instead of
// what is left of EnrollTime. Call it from Receive for that very client.
func (b *Broker) Extend(p Peer, limit int, d time.Duration) {
	if l := b.links.get(p.Segment); l != nil && l.peer.Session == p.Session && p.Enroll {
		l.limit = max(l.limit, limit)
		l.enrolling(d)
	}
}

// Kick closes the connection of a segment at once, also one that is only being
// authenticated, and reports whether there was one. Its Disconnected gets
// ErrKicked with the reason.
func (b *Broker) Kick(segment, reason string) bool {
	return b.links.kick(segment, fmt.Errorf("%w: %s", ErrKicked, reason))
}

// Connected reports whether a segment has a live connection here.
func (b *Broker) Connected(segment string) bool { return b.links.get(segment) != nil }
