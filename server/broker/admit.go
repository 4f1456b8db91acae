package broker

import (
	"errors"
	"fmt"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/kagimori/kagimori/transport"
)

// A refusal is an error with its CONNACK return code (MQTT 3.1.1 §3.2.2.3).
type refusal struct {
	code packets.Code
	err  error
}

func (r refusal) Error() string { return r.err.Error() }
func (r refusal) Unwrap() error { return r.err }

func refuse(code packets.Code, format string, args ...any) error {
	return refusal{code, fmt.Errorf(format, args...)}
}

// admit decides on a CONNECT. When it returns nil the link is the live one of
// its segment.
func (l *link) admit(cl *mochi.Client, pk packets.Packet) error {
	id := pk.Connect.ClientIdentifier
	if err := checkConnect(pk); err != nil {
		return err
	}
	l.peer.Enroll = transport.IsEnrollSegment(id)
	switch bare := len(l.peer.TLS.PeerCertificates) == 0; {
	case !transport.ValidSegment(id):
		return refuse(packets.Err3ClientIdentifierNotValid, "client id %.80q is neither a terminal's name nor an enrollment segment", id)
	case bare && !l.peer.Enroll:
		return refuse(packets.Err3NotAuthorized, "%w: client %s has no certificate", ErrRefused, id)
	case !bare && l.peer.Enroll:
		return refuse(packets.Err3NotAuthorized, "%w: client %s has a certificate and wants to enroll without", ErrRefused, id)
	case bare && !l.b.enroll.allow(l.peer.Remote.Addr(), time.Now()):
		return refuse(packets.Err3ServerUnavailable, "too many connections without certificate: %w", errBusy)
	}
	l.b.links.named(l, id)
	if err := l.authenticate(); err != nil {
		return err
	}
	if l.peer.Segment != id {
		return refuse(packets.Err3ClientIdentifierNotValid, "client id %s of terminal %s", id, l.peer.Segment)
	}
	l.up, l.down = transport.Topics(l.peer.Segment)
	l.limit = l.b.cfg.MaxPayload
	if l.peer.Enroll {
		l.limit = min(l.limit, l.b.cfg.MaxEnrollPayload)
	}
	if err := l.b.links.claim(l); err != nil {
		return refuse(packets.Err3ServerUnavailable, "%w", err)
	}
	l.settle(cl)
	return nil
}

// checkConnect holds a CONNECT against the subset. Clean session is not asked
// for but given: there is no other.
func checkConnect(pk packets.Packet) error {
	switch {
	case pk.ProtocolVersion == 5:
		return refuse(packets.ErrUnsupportedProtocolVersion, "%w: version 5 (want 3.1.1)", ErrRule)
	case pk.ProtocolVersion != 4:
		return refuse(packets.Err3UnsupportedProtocolVersion, "%w: protocol level %d (want 4, which is 3.1.1)", ErrRule, pk.ProtocolVersion)
	case pk.Connect.WillFlag:
		return refuse(packets.Err3NotAuthorized, "%w: a will", ErrRule)
	case pk.Connect.UsernameFlag || pk.Connect.PasswordFlag:
		return refuse(packets.Err3NotAuthorized, "%w: a user name or password (the certificate is the identity)", ErrRule)
	}
	return nil
}

func (l *link) authenticate() (err error) {
	l.handling = true
	l.peer.Segment, err = l.b.handler.Authenticate(l.ctx, l.peer)
	l.handling = false
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrRefused) || errors.Is(err, transport.ErrCertificate):
		return refuse(packets.Err3NotAuthorized, "%w", err)
	default:
		return refuse(packets.Err3ServerUnavailable, "authenticate: %w", err)
	}
}

// settle turns a connection that was on probation into a live one.
func (l *link) settle(cl *mochi.Client) {
	l.timer.Stop()
	if l.peer.Enroll {
		l.enrolling(l.b.cfg.EnrollTime)
	}
	cl.Properties.Clean = true
	most := uint16(min(l.b.cfg.MaxKeepAlive, maxKeepAlive) / time.Second)
	keep := cl.State.Keepalive
	if keep == 0 || keep > most {
		keep = max(1, most)
	}
	cl.State.Keepalive = keep + keep&1 // the library halves it in whole seconds
}

// enrolling ends the connection in d.
func (l *link) enrolling(d time.Duration) {
	l.timer.Stop()
	l.timer = time.AfterFunc(d, func() { l.end(fmt.Errorf("enrollment took longer than %v: %w", d, ErrTime)) })
}

// maxKeepAlive is where the library's keepalive arithmetic in 16 bits still
// holds: it waits for one and a half times as long.
const maxKeepAlive = 43_000 * time.Second
