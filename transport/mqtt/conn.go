// Package mqtt is the terminal's end of the MQTT wire (DESIGN D1): one
// connection per Dial, and no life after it. START HERE; socket.go is what lies
// between the library and the network, backoff.go how long to wait before the
// next Dial.
//
// The library is paho, which can do much more than is asked of it here:
// reconnecting, resuming and storing belong to the caller, who has the durable
// outbox and knows when a certificate has changed.
package mqtt

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/kagimori/kagimori/transport"
)

// Config says where to connect and as whom; zero durations and sizes take the
// defaults.
type Config struct {
	Address string // host:port
	// TLS has the roots and, unless this is an enrollment, the identity. It is
	// copied; the copy insists on TLS 1.3 and checks Address's host if
	// ServerName is empty.
	TLS        *tls.Config
	ClientID   string        // also the segment of both topics
	Up, Down   string        // transport.Topics
	KeepAlive  time.Duration // in whole seconds, default 60 s
	MaxPayload int           // bytes, both ways, default transport.MaxEnvelope
	DialTime   time.Duration // bounds all of Dial, default 30 s
	// Dial replaces net.Dialer.DialContext, if set.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// Tests shorten these.
	pingTime  time.Duration // how long the answer to a ping may take, default 10 s
	writeTime time.Duration // how long one write may take, default 30 s (a full message at 2 KiB/s)
}

// What ends a connection, or keeps it from coming up.
var (
	// ErrRefused is a server that does not accept who we are: waiting does not
	// help, renewing the identity or enrolling might.
	ErrRefused = errors.New("the server refused this identity")
	// ErrBusy is a server that cannot answer now.
	ErrBusy     = errors.New("the server is not available now: try again later")
	ErrOverflow = errors.New("messages came faster than they were taken")
	ErrProtocol = errors.New("MQTT outside of what this system speaks")
	ErrTooLarge = errors.New("payload is too large")
	ErrClosed   = errors.New("connection closed")
)

const (
	queueLength = 64 // received messages that wait to be taken
	inFlight    = 16 // sent messages that wait for their PUBACK
	goodbyeTime = 250 * time.Millisecond
)

// Conn is one live connection, subscribed to its down topic.
type Conn struct {
	cfg    Config
	client paho.Client
	socket *socket
	queue  chan []byte
	slots  chan struct{} // one for each message in flight
	done   chan struct{}
	once   sync.Once
	err    error       // set before done is closed
	bye    atomic.Bool // Close was called: whatever happens next is its doing
}

// Dial connects, proves the identity, and subscribes to the down topic. When it
// returns a Conn, the server has granted the subscription.
func Dial(ctx context.Context, cfg Config) (*Conn, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.DialTime)
	defer cancel()
	c := &Conn{
		cfg:   cfg,
		queue: make(chan []byte, queueLength),
		slots: make(chan struct{}, inFlight),
		done:  make(chan struct{}),
	}
	if c.socket, err = openSocket(ctx, cfg, c.end); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", cfg.Address, explain(err))
	}
	c.client = paho.NewClient(c.options())
	defer context.AfterFunc(ctx, func() { c.end(ctx.Err()) })()
	if err = c.handshake(); err != nil {
		c.end(err)
		return nil, fmt.Errorf("connect to %s as %s: %w", cfg.Address, cfg.ClientID, c.Err())
	}
	return c, nil
}

func (cfg Config) withDefaults() (Config, error) {
	host, _, err := net.SplitHostPort(cfg.Address)
	if err != nil {
		return cfg, fmt.Errorf("server address %q: want host:port: %w", cfg.Address, err)
	}
	if cfg.TLS == nil || cfg.ClientID == "" || cfg.Up == "" || cfg.Down == "" {
		return cfg, errors.New("mqtt: TLS, ClientID, Up and Down are all needed")
	}
	if cfg.KeepAlive < time.Second {
		cfg.KeepAlive = time.Minute
	}
	if cfg.MaxPayload <= 0 {
		cfg.MaxPayload = transport.MaxEnvelope
	}
	if cfg.DialTime <= 0 {
		cfg.DialTime = 30 * time.Second
	}
	if cfg.pingTime <= 0 {
		cfg.pingTime = 10 * time.Second
	}
	if cfg.writeTime <= 0 {
		cfg.writeTime = 30 * time.Second
	}
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	cfg.TLS = cfg.TLS.Clone()
	cfg.TLS.MinVersion = tls.VersionTLS13
	if cfg.TLS.ServerName == "" {
		cfg.TLS.ServerName = host
	}
	return cfg, nil
}

// options turns off whatever makes the library outlive its connection.
func (c *Conn) options() *paho.ClientOptions {
	o := paho.NewClientOptions()
	o.AddBroker("tcp://server") // never looked at: the socket is open already
	o.SetCustomOpenConnectionFn(func(*url.URL, paho.ClientOptions) (net.Conn, error) { return c.socket, nil })
	o.SetClientID(c.cfg.ClientID)
	o.SetProtocolVersion(4) // else it tries 3.1 after a refusal
	o.SetCleanSession(true)
	o.SetAutoReconnect(false)
	o.SetConnectRetry(false)
	o.SetResumeSubs(false)
	o.SetStore(paho.NewMemoryStore()) // the file store panics when the disk is full
	o.SetKeepAlive(c.cfg.KeepAlive)
	o.SetPingTimeout(c.cfg.pingTime)
	o.SetWriteTimeout(c.cfg.writeTime)
	o.SetConnectTimeout(c.cfg.DialTime)
	// In order: the unordered mode starts a goroutine for each message, so that
	// an invalidation could overtake the order before it. The rule that makes
	// this mode safe is that receive never blocks.
	o.SetOrderMatters(true)
	o.SetDefaultPublishHandler(c.receive)
	o.SetConnectionLostHandler(func(_ paho.Client, err error) { c.end(explain(err)) })
	return o
}

// handshake is CONNECT and SUBSCRIBE, each with its answer. Dial's ctx ends the
// connection, and with it both waits.
func (c *Conn) handshake() error {
	if err := c.wait(c.client.Connect()); err != nil {
		return explain(err)
	}
	subscription := c.client.Subscribe(c.cfg.Down, 0, nil)
	if err := c.wait(subscription); err != nil {
		return explain(err)
	}
	s, ok := subscription.(*paho.SubscribeToken)
	if granted, found := s.Result()[c.cfg.Down]; !ok || !found || granted != 0 {
		return fmt.Errorf("subscription to %s: granted %#x: %w", c.cfg.Down, granted, ErrRefused)
	}
	return nil
}

func (c *Conn) wait(t paho.Token) error {
	select {
	case <-t.Done():
		if err := c.Err(); err != nil { // better than what the token knows
			return err
		}
		return t.Error()
	case <-c.done:
		return c.err
	}
}

// receive runs in the library's reading goroutine, where blocking stops
// everything, pings included.
func (c *Conn) receive(_ paho.Client, m paho.Message) {
	if m.Topic() != c.cfg.Down {
		c.end(fmt.Errorf("%w: a message on %.120q", ErrProtocol, m.Topic()))
		return
	}
	select {
	case c.queue <- m.Payload():
	default:
		c.end(ErrOverflow)
	}
}

// end closes the connection; the first reason stays. The library must be told as
// well: it takes a socket that was closed under it for a good-bye of its own,
// and would go on waiting for its next ping.
func (c *Conn) end(why error) {
	c.once.Do(func() {
		if c.err = why; c.bye.Load() {
			c.err = ErrClosed
		}
		close(c.done)
		c.socket.wire.Close()
		c.client.Disconnect(0) // does not wait
	})
}

// Send publishes payload on the up topic and returns nil when the server has
// acknowledged it: by then it is durable there. After any error it may have
// arrived all the same.
func (c *Conn) Send(ctx context.Context, payload []byte) error {
	if len(payload) > c.cfg.MaxPayload {
		return fmt.Errorf("send: %w: %d bytes, the limit is %d", ErrTooLarge, len(payload), c.cfg.MaxPayload)
	}
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("send: %w", ctx.Err())
	case <-c.done:
		return fmt.Errorf("send: %w", c.err)
	}
	result := make(chan error, 1)
	// Publish does not know ctx. It outlives a connection that is lost under it,
	// by writeTime at most.
	go func() {
		result <- c.wait(c.client.Publish(c.cfg.Up, 1, false, payload))
		<-c.slots
	}()
	select {
	case err := <-result:
		if err != nil {
			return fmt.Errorf("send: %w", explain(err))
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("send: %w", ctx.Err())
	case <-c.done:
		return fmt.Errorf("send: %w", c.err)
	}
}

// Receive gives the messages of the down topic in their order. It is never
// closed: select on Done as well.
func (c *Conn) Receive() <-chan []byte { return c.queue }

// Done is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err says why the connection ended; nil while it lives.
func (c *Conn) Err() error {
	select {
	case <-c.done:
		return c.err
	default:
		return nil
	}
}

// Exporter derives n bytes that both ends of this connection know and nobody
// else (RFC 8446 §7.5), without context.
func (c *Conn) Exporter(label string, n int) ([]byte, error) {
	state := c.socket.tls.ConnectionState()
	b, err := state.ExportKeyingMaterial(label, nil, n)
	if err != nil {
		return nil, fmt.Errorf("export from TLS: %w", err)
	}
	return b, nil
}

// Close says good-bye and ends the connection. It takes at most a quarter of a
// second; closing twice is allowed.
func (c *Conn) Close() {
	if c.Err() == nil {
		c.bye.Store(true)
		c.client.Disconnect(uint(goodbyeTime.Milliseconds()))
	}
	c.end(ErrClosed)
}
