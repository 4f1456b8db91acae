package mqtt

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"sync/atomic"
	"time"

	"github.com/kagimori/kagimori/transport/mqtt/frame"
)

// A socket is what the library takes for the network: TLS that is already up. It
// lets only well-sized packets of our subset through, knows the CONNACK's code
// itself (the library takes codes it does not know for success), and bounds
// every write.
type socket struct {
	cfg     Config
	wire    net.Conn
	tls     *tls.Conn
	end     func(error)
	frames  *frame.Filter
	closing atomic.Bool // the library closed it and will say why

	// Of the reading goroutine.
	connack   [4]byte // fixed header, flags, return code
	connacked int     // bytes of it that were read
	suback    bool
}

func openSocket(ctx context.Context, cfg Config, end func(error)) (*socket, error) {
	wire, err := cfg.Dial(ctx, "tcp", cfg.Address)
	if err != nil {
		return nil, err
	}
	s := &socket{cfg: cfg, wire: wire, tls: tls.Client(wire, cfg.TLS), end: end}
	s.frames = frame.New(s.check)
	if err := s.tls.HandshakeContext(ctx); err != nil {
		wire.Close()
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return s, nil
}

// check judges a packet by its fixed header, before the library reads it.
func (s *socket) check(h frame.Header) error {
	want := 0
	switch h.Type {
	case frame.Connack, frame.Puback:
		want = 2
	case frame.Suback:
		if s.suback {
			return errors.New("a second SUBACK")
		}
		s.suback, want = true, 3
	case frame.Pingresp:
	case frame.Publish:
		if h.QoS() != 0 || h.Retain() {
			return fmt.Errorf("a publication with QoS %d, retained: %v", h.QoS(), h.Retain())
		}
		if limit := 2 + len(s.cfg.Down) + s.cfg.MaxPayload; h.Length > limit {
			return fmt.Errorf("a publication of %d bytes (the limit is %d)", h.Length, limit)
		}
		return nil
	default:
		return fmt.Errorf("packet type %d", h.Type)
	}
	if h.Length != want {
		return fmt.Errorf("packet type %d of %d bytes (want %d)", h.Type, h.Length, want)
	}
	return nil
}

// Read passes on what the filter lets through. Every error ends the connection,
// with a better reason than the library would give.
func (s *socket) Read(p []byte) (int, error) {
	n, err := s.tls.Read(p)
	bad := s.frames.Pass(p[:n])
	if bad != nil {
		bad = fmt.Errorf("%w: %w", ErrProtocol, bad)
	} else {
		bad = s.checkConnack(p[:n])
	}
	if bad != nil {
		s.end(bad)
		return 0, bad
	}
	if err != nil {
		s.failed(err)
	}
	return n, err
}

// checkConnack looks at the first packet: it must be a CONNACK, and accept us.
func (s *socket) checkConnack(b []byte) error {
	if s.connacked == len(s.connack) {
		return nil
	}
	s.connacked += copy(s.connack[s.connacked:], b)
	if s.connacked > 0 && frame.Type(s.connack[0]>>4) != frame.Connack {
		return fmt.Errorf("%w: packet type %d before CONNACK", ErrProtocol, s.connack[0]>>4)
	}
	if s.connacked < len(s.connack) {
		return nil
	}
	switch code := s.connack[3]; code { // MQTT 3.1.1 §3.2.2.3
	case 0:
		return nil
	case 1:
		return fmt.Errorf("%w: the server does not speak MQTT 3.1.1", ErrProtocol)
	case 2, 4, 5:
		return fmt.Errorf("%w (CONNACK code %d)", ErrRefused, code)
	case 3:
		return ErrBusy
	default:
		return fmt.Errorf("%w: CONNACK code %d", ErrProtocol, code)
	}
}

func (s *socket) Write(p []byte) (int, error) {
	s.wire.SetWriteDeadline(time.Now().Add(s.cfg.writeTime))
	n, err := s.tls.Write(p)
	if err != nil {
		s.failed(s.lastWord(err))
	}
	return n, err
}

// lastWord looks for the server's alert after CONNECT could not be written: a
// server that refuses our certificate may have hung up before it reads. The
// library writes CONNECT and reads CONNACK in one goroutine.
func (s *socket) lastWord(err error) error {
	if s.connacked > 0 {
		return err
	}
	s.wire.SetReadDeadline(time.Now().Add(time.Second))
	if _, alert := s.tls.Read(make([]byte, 1)); errors.Is(explain(alert), ErrRefused) {
		return alert
	}
	return err
}

func (s *socket) failed(err error) {
	if !s.closing.Load() {
		s.end(explain(err))
	}
}

// Close is the library's. It tells afterwards why, if it was not asked to.
func (s *socket) Close() error {
	s.closing.Store(true)
	return s.wire.Close()
}

// Deadlines are ours alone: Dial's ctx, cfg.writeTime, and the library's pings.

func (s *socket) SetDeadline(time.Time) error      { return nil }
func (s *socket) SetReadDeadline(time.Time) error  { return nil }
func (s *socket) SetWriteDeadline(time.Time) error { return nil }
func (s *socket) LocalAddr() net.Addr              { return s.wire.LocalAddr() }
func (s *socket) RemoteAddr() net.Addr             { return s.wire.RemoteAddr() }

var _ net.Conn = (*socket)(nil)

// explain finds the meaning of a network error. In TLS 1.3 the server judges our
// certificate after our handshake is over, so its refusal arrives in place of
// the first packet (RFC 8446 §4.4.2.4, alerts of §6.2).
func explain(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		if v := reflect.ValueOf(op.Err); v.Kind() == reflect.Uint8 { // crypto/tls does not export this type
			switch v.Uint() {
			case 42, 43, 44, 45, 46, 48, 49, 116: // bad, unsupported, revoked, expired, unknown certificate, unknown CA, access denied, certificate required
				return fmt.Errorf("%w (%w)", ErrRefused, err)
			}
		}
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("the server hung up: %w", io.ErrUnexpectedEOF)
	}
	return err
}
