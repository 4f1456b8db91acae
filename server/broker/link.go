package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kagimori/kagimori/transport/mqtt/frame"
)

// errGone says that the protocol machine closed the connection; why is what it
// returns.
var errGone = errors.New("gone")

// A link is one connection. To the protocol machine it is the net.Conn that it
// reads packets from; all reads are made by the goroutine of serve.
type link struct {
	b     *Broker
	wire  *wire
	tls   *tls.Conn
	ctx   context.Context // ends with the connection; its cause says why
	stop  context.CancelCauseFunc
	timer *time.Timer   // ends the connection: HandshakeTime, ConnectTime, for some EnrollTime
	since time.Time     // accept
	done  chan struct{} // closed when its Disconnected has returned

	peer       Peer // of the goroutine of serve; ID is also guarded by links.mu
	up, down   string
	limit      int // bytes of payload; 0 until admitted
	frames     *frame.Filter
	opened     bool // CONNECT has been seen
	handling   bool // inside the Handler: a panic is ours
	announced  bool // Connected has been called
	subscribed atomic.Bool

	mu       sync.Mutex // guards the read deadline
	draining bool
}

func newLink(life context.Context, b *Broker, conn net.Conn) *link {
	l := &link{
		b:     b,
		wire:  &wire{Conn: conn, slots: b.slots},
		peer:  Peer{Session: b.session.Add(1)},
		done:  make(chan struct{}),
		since: time.Now(),
	}
	l.ctx, l.stop = context.WithCancelCause(life)
	l.wire.over = l.ctx.Done()
	l.tls = tls.Server(l.wire, b.cfg.TLS)
	l.frames = frame.New(l.checkFrame)
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		a := a.AddrPort()
		l.peer.Remote = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	}
	l.deadline("TLS handshake", min(b.cfg.HandshakeTime, b.cfg.ConnectTime))
	return l
}

// deadline ends the connection so long after accept, whatever it sends until
// then, unless it gets another deadline.
func (l *link) deadline(missing string, limit time.Duration) {
	if l.timer != nil {
		l.timer.Stop()
	}
	l.timer = time.AfterFunc(time.Until(l.since.Add(limit)), func() {
		l.end(fmt.Errorf("no %s within %v: %w", missing, limit, ErrTime))
	})
}

// serve runs a connection from accept to its end. What lies on the stack here
// lies there for each idle terminal, and below 8 KiB in all the garbage
// collector halves the 32 KiB that the handshake needed: keep it shallow.
func (b *Broker) serve(l *link) {
	b.count.accepted.Add(1)
	err := l.handshake()
	if err == nil {
		err = l.attach()
	}
	b.finish(l, err)
}

// finish tells whoever cares that a connection is over, and forgets it.
func (b *Broker) finish(l *link, err error) {
	l.end(errGone)
	l.timer.Stop()
	why := l.why(err)
	switch {
	case errors.Is(why, ErrRule):
		b.count.violated.Add(1)
		b.noise.warn("client broke a rule", "segment", l.peer.Segment, "client", l.peer.ID, "remote", l.peer.Remote, "session", l.peer.Session, "err", why)
	case l.announced:
		b.log.Debug("client disconnected", "segment", l.peer.Segment, "session", l.peer.Session, "err", why)
	}
	if l.announced {
		b.handler.Disconnected(l.peer, why)
	} else {
		b.count.refused.Add(1)
		b.noise.debug("connection ended before CONNACK", "remote", l.peer.Remote, "err", why)
	}
	b.links.leave(l)
	close(l.done)
}

func (l *link) handshake() error {
	l.wire.pace()
	err := l.tls.HandshakeContext(l.ctx)
	l.wire.unpace()
	if err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	l.deadline("CONNECT", l.b.cfg.ConnectTime)
	l.peer.TLS = l.tls.ConnectionState()
	if l.peer.TLS.Version != tls.VersionTLS13 { // a config can't allow it, a bug might
		return fmt.Errorf("TLS: %s", tls.VersionName(l.peer.TLS.Version))
	}
	return nil
}

// attach hands the connection to the protocol machine until it ends. A packet
// that makes the machine panic costs its sender the connection and nobody else
// anything; a panic in the handler is a bug of ours and ends the process.
func (l *link) attach() (err error) {
	defer func() {
		if l.handling {
			return
		}
		if p := recover(); p != nil {
			err = fmt.Errorf("the MQTT library panicked: %v", p)
			l.b.log.Error("MQTT library panicked", "segment", l.peer.Segment, "remote", l.peer.Remote, "err", err, "stack", string(debug.Stack()))
		}
	}()
	return l.b.mqtt.EstablishConnection("", l)
}

// end closes the connection at once and reports whether it was the first to.
func (l *link) end(why error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx.Err() != nil {
		return false
	}
	l.stop(why)
	l.wire.Close()
	return true
}

// cause is nil while the connection lives.
func (l *link) cause() error { return context.Cause(l.ctx) }

// why says what ended the connection, given what the protocol machine said.
func (l *link) why(err error) error {
	if cause := l.cause(); cause != nil && cause != errGone {
		return cause
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.draining:
		return ErrShutdown
	case err == nil:
		return nil // DISCONNECT
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ErrSilent
	case errors.Is(err, io.EOF):
		return fmt.Errorf("the client hung up without DISCONNECT: %w", io.ErrUnexpectedEOF)
	}
	return err
}

// drain lets no further packet be read.
func (l *link) drain() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.draining = true
	l.wire.SetReadDeadline(time.Unix(1, 0))
}

// Read gives the protocol machine what has passed the filter.
func (l *link) Read(p []byte) (int, error) {
	n, err := l.tls.Read(p)
	if bad := l.frames.Pass(p[:n]); bad != nil {
		bad = fmt.Errorf("%w: %w", ErrRule, bad)
		l.end(bad)
		return 0, bad
	}
	return n, err
}

// Write never blocks for longer than WriteTime: TLS cannot go on after a write
// that timed out, so the connection ends.
func (l *link) Write(p []byte) (int, error) {
	l.wire.SetWriteDeadline(time.Now().Add(l.b.cfg.WriteTime))
	n, err := l.tls.Write(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		l.end(ErrSlow)
	} else if err != nil {
		l.end(err)
	}
	return n, err
}

// SetDeadline is the protocol machine's keepalive: it is for reading only, so
// that a client that sends but never reads is still cut by WriteTime.
func (l *link) SetDeadline(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.draining {
		return nil
	}
	return l.wire.SetReadDeadline(t)
}

// Close is the protocol machine's; it says good-bye in TLS if that does not block.
func (l *link) Close() error {
	if l.cause() == nil {
		l.wire.SetWriteDeadline(time.Now().Add(time.Second))
		l.tls.CloseWrite()
	}
	l.end(errGone)
	return nil
}

func (l *link) LocalAddr() net.Addr                { return l.wire.LocalAddr() }
func (l *link) RemoteAddr() net.Addr               { return l.wire.RemoteAddr() }
func (l *link) SetReadDeadline(t time.Time) error  { return l.SetDeadline(t) }
func (l *link) SetWriteDeadline(t time.Time) error { return nil }

var _ net.Conn = (*link)(nil)
