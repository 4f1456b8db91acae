package agent

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/mqtt"
)

const (
	enrollTime = 30 * time.Second // the server gives no more (DESIGN D8)
	sendTime   = 10 * time.Second // from a message to its PUBACK
	attempted  = 45 * time.Second // the longest that one attempt to connect takes
)

// A trip is one connection to one server.
type trip struct {
	*linker
	self   *terminalRecord
	chain  [][]byte // of the identity; nil: none yet
	server string

	roots *x509.CertPool
	proof []*x509.Certificate // what the server proved itself with
}

// dial connects; the loop beats meanwhile, since dialling has a deadline.
func (t *trip) dial(ctx context.Context, segment string, identity [][]byte, limit int) (*mqtt.Conn, error) {
	host, _, err := net.SplitHostPort(t.server)
	if err != nil {
		return nil, control.Problemf(control.BadInput, "have a bundle made with a correct server address", "server address %q is not host:port", t.server)
	}
	if t.roots, err = t.self.roots(); err != nil {
		return nil, err
	}
	up, down := transport.Topics(segment)
	cfg := mqtt.Config{Address: t.server, TLS: t.tls(host, identity), ClientID: segment, Up: up, Down: down, MaxPayload: limit}
	ctx, cancel := context.WithTimeout(ctx, attempted)
	defer cancel()
	var conn *mqtt.Conn
	t.beating(t.loop, attempted, func() { conn, err = mqtt.Dial(ctx, cfg) })
	return conn, err
}

// tls accepts the deployment's management server and nobody else.
func (t *trip) tls(host string, identity [][]byte) *tls.Config {
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: host,
		// The built-in check cannot judge at a time that depends on the chain
		// (DESIGN D12) nor ask for the server's URI. VerifyConnection makes the
		// same checks and those, on every handshake, and fails closed.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			chain := state.PeerCertificates
			at := t.clock.Judge(chain)
			err := transport.VerifyManagement(chain, t.roots, t.self.Deployment, host, at)
			if err == nil {
				err = t.vault.revocations.check(chain)
			}
			if err != nil {
				return serverRefused(t.server, err)
			}
			t.proof = chain
			return nil
		},
	}
	if identity != nil {
		cfg.Certificates = []tls.Certificate{{Certificate: identity, PrivateKey: t.vault.identity}}
	}
	return cfg
}

// serverRefused explains a server that did not prove itself.
func serverRefused(server string, err error) error {
	next := "check that " + server + " is the management server of this deployment; its certificate must be for that very name or address"
	if _, early := errors.AsType[transport.NotYetValid](err); early {
		next = "nothing to do if the server was just set up; else set its clock"
	}
	return control.Problemf(control.Unavailable, next, "the server at %s does not prove itself: %w", server, err)
}

// enroll gets this terminal its identity certificate, or renews it.
func (t *trip) enroll(ctx context.Context) error {
	t.link.set(LinkStatus{State: LinkEnrolling, Server: t.server})
	segment, err := transport.NewEnrollSegment(rand.Reader)
	if err != nil {
		return err
	}
	order, err := t.order()
	if err != nil {
		return err
	}
	size, limit := transport.MaxEnrollEnvelope, enrollTime
	if order.prover != nil { // the server may ask
		size, limit = transport.MaxAttestEnvelope, attestTime
	}
	conn, err := t.dial(ctx, segment, nil, size)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	order.roots = t.roots
	if order.exporter, err = conn.Exporter(transport.EnrollExporter, transport.EnrollExporterSize); err != nil {
		return err
	}
	conversation, payload, err := order.hello()
	if err != nil {
		return err
	}
	for {
		if err := t.send(ctx, conn, payload); err != nil {
			return fmt.Errorf("enroll: %w", err)
		}
		answer, err := t.await(ctx, conn)
		if err != nil {
			return fmt.Errorf("enroll: %w", err)
		}
		var result *enrolled
		t.beating(t.loop, limit, func() { payload, result, err = conversation.answer(ctx, answer) })
		if err != nil {
			if payload != nil {
				_ = t.send(ctx, conn, payload) // the last word, for the server's log
			}
			return err
		}
		if result != nil {
			return t.enrolled(ctx, result)
		}
	}
}

// order is what an enrollment needs to know, but for the connection.
func (t *trip) order() (enrollOrder, error) {
	o := enrollOrder{
		terminal: t.self.Terminal, deployment: t.self.Deployment, device: t.vault.device, commonKey: t.self.CommonKey,
		identity: t.vault.identity, level: string(t.vault.module.Level()), judge: t.clock.Judge, random: rand.Reader,
	}
	chip, ok := t.vault.module.(hsm.Attester)
	if !ok {
		return o, nil
	}
	err := t.vault.store.View(func(tx *store.Tx) error {
		o.prover = &prover{chip: chip, identity: tx.Blob(blobIdentity)}
		return nil
	})
	return o, err
}

func (t *trip) enrolled(ctx context.Context, r *enrolled) (err error) {
	var code *heldCode
	t.beating(t.loop, attestTime, func() { code, err = t.vault.takeCode(ctx, t.self, r.code) })
	if err != nil {
		return err
	}
	if err := t.clock.Sync(r.serverTime, t.proof); err != nil {
		t.log.Warn("server time not taken", "err", err)
	}
	if err := t.vault.keepEnrolled(t.self.newest(), r.chain, code); err != nil {
		return fmt.Errorf("keep identity certificate: %w", err)
	}
	t.log.Info("enrolled", "terminal", t.self.Terminal, "server", t.server)
	return nil
}

// await gives the next payload.
func (t *trip) await(ctx context.Context, conn *mqtt.Conn) ([]byte, error) {
	tick, stop := t.dog.Tick()
	defer stop()
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case p := <-conn.Receive():
			return p, nil
		case <-conn.Done():
			return nil, conn.Err()
		case <-tick:
			t.loop.Beat()
		}
	}
}

func (t *trip) send(ctx context.Context, conn *mqtt.Conn, payloads ...[]byte) error {
	for _, p := range payloads {
		t.loop.Beat()
		ctx, cancel := context.WithTimeout(ctx, sendTime)
		err := conn.Send(ctx, p)
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

// session talks to the server until the connection or ctx ends. again is true
// when it should be made anew at once.
func (t *trip) session(ctx context.Context) (lived time.Duration, again bool, err error) {
	t.link.set(LinkStatus{State: LinkConnecting, Server: t.server})
	conn, err := t.dial(ctx, string(t.self.Terminal), t.chain, transport.MaxEnvelope)
	if err != nil {
		return 0, false, err
	}
	defer conn.Close()
	began := time.Now()
	t.link.set(LinkStatus{State: LinkConnected, Server: t.server})
	t.log.Info("connected", "terminal", t.self.Terminal, "server", t.server)
	s := &session{vault: t.vault, self: t.self, roots: t.roots, proof: t.proof, random: rand.Reader, other: t.cfg.Receive}
	again, err = t.converse(ctx, conn, s)
	return time.Since(began), again, err
}

// converse moves payloads. Whatever goes wrong inside the session is logged and
// the conversation goes on; only the connection's end ends it.
func (t *trip) converse(ctx context.Context, conn *mqtt.Conn, s *session) (again bool, end error) {
	tick, stop := t.dog.Tick()
	defer stop()
	poll := newPoller(t.cfg.Poll)
	defer poll.stop()
	out, trouble := s.open()
	for {
		if trouble != nil {
			t.log.Error("message not dealt with", "err", trouble)
		}
		if err := t.send(ctx, conn, out...); err != nil {
			return false, err
		}
		unsettled, err := s.unsettled()
		if err != nil {
			return false, err
		}
		poll.arm(unsettled)
		if out, again, trouble = t.event(ctx, conn, s, poll, tick); again || ctx.Err() != nil {
			return again, nil
		}
		if conn.Err() != nil {
			return false, conn.Err()
		}
	}
}

// event waits for whatever comes next and gives what to say to it.
func (t *trip) event(ctx context.Context, conn *mqtt.Conn, s *session, poll *poller, tick <-chan time.Time) (out [][]byte, again bool, err error) {
	for {
		t.loop.Beat()
		select {
		case <-ctx.Done():
			return nil, false, nil
		case <-conn.Done():
			return nil, false, nil
		case p := <-conn.Receive():
			poll.heard()
			out, err = s.receive(ctx, p)
			return out, false, err
		case <-poll.timer.C:
			poll.fired()
			out, err = s.again()
			return out, false, err
		case ask := <-t.copies.settling():
			out, err = s.settle(ask)
			return out, false, err
		case <-t.changed:
			if t.rebundled() {
				return nil, true, nil // enroll anew, perhaps elsewhere
			}
			if out, err = s.more(); len(out) > 0 || err != nil {
				return out, false, err
			}
		case <-tick:
			if t.renewal.due(t.chain, t.clock, t.clock.raw()) {
				return nil, true, nil
			}
		}
	}
}

// rebundled says whether another bundle has been taken in.
func (t *trip) rebundled() bool {
	self, err := t.vault.self()
	if err != nil || self == nil {
		return false
	}
	self.wipe()
	return self.newest() != t.self.newest()
}
