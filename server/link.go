package server

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"

	"github.com/kagimori/kagimori/server/broker"
	"github.com/kagimori/kagimori/server/ca"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// link joins the conversations to the broker: who may connect, what a message leads to, who is woken and who is cut off.
type link Server

var _ broker.Handler = (*link)(nil)

// Authenticate lets in whoever enrolls, to his own topics, and terminals whose
// very certificate the store has, not revoked, for a terminal that is enrolled
// with the very device. The certificate alone is not enough: a list of revoked
// ones is always late (req: L4, L18).
func (l *link) Authenticate(ctx context.Context, p broker.Peer) (string, error) {
	s := (*Server)(l)
	if p.Enroll {
		return p.ID, nil
	}
	name, err := transport.VerifyTerminal(p.TLS.PeerCertificates, s.ca.Roots(), s.deployment.Name, s.cfg.Now())
	if err != nil {
		return "", err
	}
	err = s.store.View(ctx, func(tx *store.Tx) error { return known(tx, name, p.TLS.PeerCertificates[0]) })
	if err != nil {
		return "", fmt.Errorf("identity of %s: %w", name, err)
	}
	return string(name), nil
}

// known checks a verified identity certificate against the store. What it
// refuses is broker.ErrRefused; other errors are the store's.
func known(tx *store.Tx, name transport.Name, leaf *x509.Certificate) error {
	refuse := func(why string) error { return fmt.Errorf("%w: %s", broker.ErrRefused, why) }
	c, err := tx.Certificate(leaf.SerialNumber)
	if errors.Is(err, store.ErrNotFound) {
		return refuse("this certificate was never issued here")
	}
	if err != nil {
		return err
	}
	x, err := tx.Terminal(name)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	device := transport.NewDeviceID(leaf.RawSubjectPublicKeyInfo)
	switch {
	case err != nil:
		return refuse("unknown terminal")
	case c.Issuer != ca.Identity || c.Terminal != name || string(c.DER) != string(leaf.Raw):
		return refuse("another certificate has this serial")
	case !c.Revoked.IsZero():
		return refuse("the certificate is revoked")
	case x.State != store.TerminalEnrolled:
		return refuse("the terminal is " + string(x.State))
	case x.Device != device || c.Device != device:
		return refuse("the terminal is enrolled with another device")
	}
	return nil
}

// Connected makes the session.
func (l *link) Connected(p broker.Peer) {
	s := (*Server)(l)
	var ses *session
	var err error
	if p.Enroll {
		var exporter []byte
		if exporter, err = p.TLS.ExportKeyingMaterial(transport.EnrollExporter, nil, transport.EnrollExporterSize); err == nil {
			ses = &session{enroll: &enrollment{exporter: exporter}}
		}
	} else {
		device := transport.NewDeviceID(p.TLS.PeerCertificates[0].RawSubjectPublicKeyInfo)
		if ses, err = newSession(s.cfg.Random, transport.Name(p.Segment), device); err == nil && p.Remote.IsValid() {
			ses.remote = p.Remote.Addr().Unmap().String()
		}
	}
	if err != nil {
		s.log.Error("connection cannot be served", "segment", p.Segment, "err", err)
		s.broker.Kick(p.Segment, "internal error")
		return
	}
	s.sessions.put(p.Session, ses)
	if p.Enroll {
		return
	}
	s.log.Info("terminal connected", "terminal", p.Segment, "remote", p.Remote)
	if err := s.store.Update(context.Background(), s.by(ses.actor()), func(tx *store.Tx) error { return tx.Seen(ses.terminal) }); err != nil {
		s.log.Warn("last contact is not recorded", "terminal", p.Segment, "err", err)
	}
}

// Disconnected ends the session.
func (l *link) Disconnected(p broker.Peer, why error) {
	s := (*Server)(l)
	s.sessions.drop(p.Session)
	if !p.Enroll {
		s.log.Info("terminal disconnected", "terminal", p.Segment, "err", why)
	}
}

// Receive has a message answered. It acknowledges what was refused, and what
// failed before it had an effect, since the answer says so. Of a store that
// fails nobody knows what it has kept: then there is neither answer nor PUBACK,
// and the terminal connects anew and repeats what it has to say (DESIGN D1).
func (l *link) Receive(ctx context.Context, p broker.Peer, payload []byte) error {
	s := (*Server)(l)
	ses := s.sessions.get(p.Session)
	if ses == nil {
		return errors.New("there is no session")
	}
	if ses.enroll == nil { // an enrolling one has a few messages in all
		if err := ses.pace.Wait(ctx); err != nil {
			return err
		}
	}
	if ses.enroll == nil && !ses.greeted {
		if err := s.greet(ctx, ses); err != nil {
			return err
		}
	}
	e, out, err := s.answer(ctx, ses, payload)
	if err != nil {
		s.log.Error("message is not answered", "segment", p.Segment, "type", typeOf(e), "err", err)
		if !errors.Is(err, errLater) {
			return err
		}
	}
	if out.attesting {
		s.broker.Extend(p, transport.MaxAttestEnvelope, attestTime)
	}
	if out.reply != nil {
		s.send(p.Segment, e, out.reply)
	}
	s.carry(ctx, out)
	return nil
}

func typeOf(e *transport.Envelope) string {
	if e == nil {
		return ""
	}
	return fmt.Sprintf("%.40q", e.Type)
}

// send packs a message and hands it to the broker. Whether it arrives is the
// receiver's to say. An error has been logged, unless it is
// broker.ErrNotConnected.
func (s *Server) send(segment string, reply *transport.Envelope, body transport.Body) error {
	payload, err := transport.Pack(s.cfg.Random, s.cfg.Now(), reply, body)
	if err == nil {
		err = s.broker.Send(segment, payload)
	}
	if err != nil && !errors.Is(err, broker.ErrNotConnected) {
		s.log.Warn("message not sent", "segment", segment, "type", body.Type(), "err", err)
	}
	return err
}

// push is send for what the receiver would never miss by itself: whoever
// cannot be told is cut off, and is told when it is back.
func (s *Server) push(name transport.Name, body transport.Body) {
	if err := s.send(string(name), nil, body); err != nil && !errors.Is(err, broker.ErrNotConnected) {
		s.broker.Kick(string(name), "it cannot be told what is revoked")
	}
}

// carry does what an outcome leaves to do, for conversations and for the
// control socket alike. Its effect is durable by now.
func (s *Server) carry(ctx context.Context, out outcome) {
	for name, why := range out.kick {
		s.broker.Kick(string(name), why)
	}
	for _, name := range out.wake {
		if s.broker.Connected(string(name)) {
			s.send(string(name), nil, &transport.CommandReady{})
		}
	}
	s.tellRevoked(ctx, out.revoked)
	s.settled.tell(out.settled)
}

// connected says whether a terminal is there now.
func (s *Server) connected(name transport.Name) bool { return s.broker.Connected(string(name)) }

// serialText is how people see a serial: hexadecimal, as openssl prints it.
func serialText(n *big.Int) string {
	if n == nil {
		return ""
	}
	return fmt.Sprintf("%032x", n)
}
