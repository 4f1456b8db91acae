package server

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/server/ca"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// Enrollment, the server's side (DESIGN D8, req: L3, L4); transport/enroll.go
// says what the messages are. One attempt per connection: after a refusal the
// client connects anew, under the broker's limits.

// enrollment is the state of one attempt.
type enrollment struct {
	exporter  []byte // X: binds the proofs to this TLS connection
	hello     transport.EnrollHello
	helloRaw  []byte      // body (1) as it came
	challenge []byte      // body (2) as it went
	key       *hsm.Secret // the terminal's common key, or the decoy
	over      bool        // refused, or granted
	attest    attestation // of a terminal that must prove its TPM
}

// end forgets the secrets.
func (n *enrollment) end() {
	n.over = true
	n.key.Wipe()
	n.attest.secret.Wipe()
}

// levels are those that a terminal may claim of itself. What a chip proves is
// for the server to say.
var levels = []hsm.Level{hsm.LevelFile, hsm.LevelTPMSocket, hsm.LevelTPM}

// enrollStep takes the client's next message. Until the common key is proven
// every refusal is the same, and tells nothing of what the server knows.
func (s *Server) enrollStep(ctx context.Context, n *enrollment, e *transport.Envelope) (outcome, error) {
	if n.over {
		return refusal(transport.FaultRefused, ""), nil
	}
	if n.challenge == nil {
		hello, err := transport.Open[transport.EnrollHello](e)
		if err != nil {
			n.end()
			return refusal(transport.FaultRefused, ""), nil
		}
		return s.enrollHello(ctx, n, hello, e.Body)
	}
	out, more, err := s.enrollOn(ctx, n, e)
	if !more {
		n.end()
	}
	return out, err
}

// enrollOn takes every message but the first; more says that the conversation
// goes on.
func (s *Server) enrollOn(ctx context.Context, n *enrollment, e *transport.Envelope) (out outcome, more bool, err error) {
	switch {
	case n.attest.request != nil:
		return s.attestStep(ctx, n, e)
	default:
		return s.enrollRequest(ctx, n, e)
	}
}

// enrollRequest takes the proof of the common key. From here on refusals may
// say why.
func (s *Server) enrollRequest(ctx context.Context, n *enrollment, e *transport.Envelope) (out outcome, more bool, err error) {
	request, err := transport.Open[transport.EnrollRequest](e)
	if err != nil {
		return refusal(transport.FaultRefused, ""), false, nil
	}
	mac, err := transport.EnrollTerminalMAC(n.key.Bytes(), n.exporter, n.helloRaw, n.challenge, *request)
	if err != nil {
		return outcome{}, false, err
	}
	if !hmac.Equal(mac[:], request.MAC[:]) {
		s.log.Warn("enrollment refused: the common key is not proven", "terminal", loggable(n.hello.Terminal))
		return refusal(transport.FaultRefused, ""), false, nil
	}
	if out, asked, err := s.attestAsk(ctx, n, request, e.Body); asked || err != nil || out.reply != nil {
		return out, asked, err
	}
	out, err = s.enrollProven(ctx, n, request)
	return out, false, err
}

// loggable keeps what a stranger calls himself out of the log, unless it is a name.
func loggable(n transport.Name) transport.Name {
	if _, err := transport.ParseName(string(n)); err != nil {
		return "-"
	}
	return n
}

// enrollHello proves the server. An unknown or removed terminal takes the same
// path under a key that nobody has.
func (s *Server) enrollHello(ctx context.Context, n *enrollment, hello *transport.EnrollHello, raw []byte) (outcome, error) {
	key := s.decoy.Clone()
	err := s.store.View(ctx, func(tx *store.Tx) error {
		k, err := tx.CommonKey(hello.Terminal) // takes as long for a name that is unknown
		if err == nil {
			key.Wipe()
			key = k
		}
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		return err
	})
	if err != nil {
		key.Wipe()
		return outcome{}, err
	}
	n.hello, n.helloRaw, n.key = *hello, raw, key
	var c transport.EnrollChallenge
	if _, err := io.ReadFull(s.cfg.Random, c.Nonce[:]); err != nil {
		return outcome{}, fmt.Errorf("draw a nonce: %w", err)
	}
	if c.MAC, err = transport.EnrollServerMAC(key.Bytes(), n.exporter, raw, c); err != nil {
		return outcome{}, err
	}
	if n.challenge, err = transport.Marshal(&c); err != nil {
		return outcome{}, err
	}
	return outcome{reply: &c}, nil
}

// enrollRefusal is a refusal after the proof: it may say why.
type enrollRefusal struct{ fault transport.Fault }

func (e enrollRefusal) Error() string { return e.fault.Error() }

func enrollRefused(code transport.FaultCode, text string) error {
	return enrollRefusal{transport.Fault{Code: code, Text: text}}
}

// enrollProven issues the identity to a terminal that has proven the common
// key, and pins its device.
func (s *Server) enrollProven(ctx context.Context, n *enrollment, m *transport.EnrollRequest) (outcome, error) {
	name, now := n.hello.Terminal, s.cfg.Now()
	request, err := ca.ParseRequest(m.CSR)
	switch {
	case err != nil:
		return refusal(transport.FaultRequest, err.Error()), nil
	case request.Device() != n.hello.Device:
		return refusal(transport.FaultRequest, "the key is not the device's"), nil
	case !slices.Contains(levels, hsm.Level(m.Level)):
		return refusal(transport.FaultMalformed, "level"), nil
	}
	level := m.Level
	if n.attest.proven != nil {
		level = string(hsm.LevelAttested)
	}
	fresh, err := s.ca.Identity(request, name, now)
	if errors.Is(err, ca.ErrRequest) {
		return refusal(transport.FaultRequest, err.Error()), nil
	}
	if err != nil {
		return outcome{}, later(err)
	}
	var granted store.Certificate
	var code *attestCode
	err = s.store.Update(ctx, s.by("terminal "+string(name)), func(tx *store.Tx) (err error) {
		if granted, err = s.enrollPin(tx, n, request, level, fresh); err != nil {
			return err
		}
		if code, err = n.attest.pin(tx, name, n.hello.Device); err != nil {
			return err
		}
		return s.codesAtEnrollment(tx, name, code.epoch())
	})
	defer code.wipe()
	var refused enrollRefusal
	if errors.As(err, &refused) {
		s.log.Warn("enrollment refused", "terminal", name, "device", n.hello.Device.Short(), "err", err)
		return outcome{reply: &refused.fault}, nil
	}
	if err != nil {
		return outcome{}, err
	}
	wrapped, err := code.wrap()
	if err != nil {
		return outcome{}, err
	}
	s.log.Info("terminal enrolled", "terminal", name, "device", n.hello.Device.Short(), "level", level)
	return outcome{reply: &transport.EnrollCertificate{
		Chain: s.ca.Chain(ca.Identity, granted.DER), Time: now.Unix(), Remaining: int64(granted.NotAfter.Sub(now) / time.Second), Code: wrapped,
	}}, nil
}

// enrollPin is the one transaction: it decides by the state as it is now, not
// as it was at the hello, and pins the device. The same terminal with the same
// key gets the certificate that it was given before, as long as that has a
// third of its life left: the reply may have been lost, or it renews.
func (s *Server) enrollPin(tx *store.Tx, n *enrollment, r *ca.Request, level string, fresh ca.Issued) (store.Certificate, error) {
	name, device := n.hello.Terminal, n.hello.Device
	none := store.Certificate{}
	key, err := tx.CommonKey(name)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return none, err
	}
	defer key.Wipe()
	if err != nil || !key.Equal(n.key) {
		return none, enrollRefused(transport.FaultRefused, "this bundle is no longer good")
	}
	x, err := tx.Terminal(name)
	if err != nil {
		return none, err
	}
	switch other, err := tx.EnrolledAs(device); {
	case err == nil && other.Name != name:
		return none, enrollRefused(transport.FaultRefused, fmt.Sprintf("this device is enrolled as %s; remove that one first", other.Name))
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return none, err
	}
	switch {
	case x.State == store.TerminalEnrolled && x.Device != device:
		return none, enrollRefused(transport.FaultDevice, "")
	case x.State == store.TerminalEnrolled:
		old, err := tx.IdentityOf(name, device)
		if err == nil && old.NotAfter.Sub(tx.By().At) > s.cfg.Lifetimes.Identity/3 {
			return old, nil
		}
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return none, err
		}
	default:
		if err := tx.Enroll(name, device, r.SPKI, level); err != nil {
			return none, err
		}
	}
	c := store.Certificate{Serial: fresh.Serial, Issuer: fresh.Issuer, Terminal: name, Device: device, DER: fresh.Chain[0], NotAfter: fresh.NotAfter}
	return c, errors.Join(tx.AddCertificate(c),
		tx.Audit("terminal.enroll", string(name), "device "+device.String()+" level "+level+" serial "+serialText(c.Serial)))
}
