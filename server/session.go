package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// A session is one connection of a terminal, from Connected to Disconnected.
// The broker makes its calls one after the other, so it needs no lock.
type session struct {
	terminal   transport.Name     // empty while it enrolls
	device     transport.DeviceID // whose key the TLS handshake proved
	nonce      [32]byte           // what proofs of holding on this connection are made over
	given      bool               // the terminal has the nonce
	greeted    bool               // it has been told what is revoked, so it has subscribed
	enroll     *enrollment        // only while it enrolls
	pace       *rate.Limiter      // of its messages
	remote     string             // address it comes from; empty if that is not known
	falseWraps int                // recovery wraps that did not open
	losses     int                // of its store, that it told of on this connection
	warned     time.Time          // when it last put a line into the log
}

// A terminal has a few messages to say. One that says more is slowed down, not
// refused: the broker holds its PUBACK back. What one session adds to the log
// for the asking is a line in logPause.
const (
	messageRate  = 20  // a second
	messageBurst = 500 // a terminal that comes back with many credentials to claim
	logPause     = 10 * time.Second
)

func newSession(random io.Reader, terminal transport.Name, device transport.DeviceID) (*session, error) {
	ses := &session{terminal: terminal, device: device, pace: rate.NewLimiter(messageRate, messageBurst)}
	if _, err := io.ReadFull(random, ses.nonce[:]); err != nil {
		return nil, fmt.Errorf("draw a nonce: %w", err)
	}
	return ses, nil
}

// warn logs what a terminal can bring about at will.
func (s *Server) warn(ses *session, message string, attributes ...any) {
	level, now := slog.LevelDebug, s.cfg.Now()
	if now.Sub(ses.warned) >= logPause {
		level, ses.warned = slog.LevelWarn, now
	}
	s.log.Log(context.Background(), level, message, append([]any{"terminal", ses.terminal}, attributes...)...)
}

// actor names the terminal in rows that it changed.
func (ses *session) actor() string { return "terminal " + string(ses.terminal) }

// An outcome is what a conversation leaves to do once its effect is durable.
type outcome struct {
	reply   transport.Body            // nil: nothing is said
	wake    []transport.Name          // terminals that have a command to fetch
	kick    map[transport.Name]string // terminals to disconnect, and why
	revoked []string                  // issuers whose lists have changed
	settled []transport.ID            // commands that came to their end
	// attesting: who is at the other end of an enrollment has proven its common
	// key and may now send what proves a TPM.
	attesting bool
}

// refusal answers with a fault.
func refusal(code transport.FaultCode, text string) outcome {
	return outcome{reply: &transport.Fault{Code: code, Text: text}}
}

// errGone is a terminal whose identity was refused after it had connected.
var errGone = errors.New("the terminal is no longer enrolled with this device")

// errLater wraps what failed before anything was changed.
var errLater = errors.New("not now")

func later(err error) error { return fmt.Errorf("%w: %w", errLater, err) }

// answer is the whole of what a connected client can make the server do. It
// changes nothing but the store and ses. After an error that is not errLater
// nothing is known about the effect, and nothing may be said about it.
func (s *Server) answer(ctx context.Context, ses *session, payload []byte) (*transport.Envelope, outcome, error) {
	limit := transport.MaxEnvelope
	if ses.enroll != nil {
		limit = transport.MaxEnrollEnvelope
		if ses.enroll.attest.request != nil {
			limit = transport.MaxAttestEnvelope
		}
	}
	e, err := transport.Unpack(payload, limit)
	if err != nil {
		return nil, refusal(transport.FaultMalformed, ""), nil
	}
	out, err := s.converse(ctx, ses, e)
	switch {
	case errors.Is(err, transport.ErrMalformed):
		return e, refusal(transport.FaultMalformed, ""), nil
	case errors.Is(err, errGone):
		out := refusal(transport.FaultRefused, "")
		out.kick = map[transport.Name]string{ses.terminal: err.Error()}
		return e, out, nil
	case errors.Is(err, errLater):
		return e, refusal(transport.FaultLater, ""), err
	case err != nil:
		return e, outcome{}, err
	}
	return e, out, nil
}

func (s *Server) converse(ctx context.Context, ses *session, e *transport.Envelope) (outcome, error) {
	if ses.enroll != nil {
		return s.enrollStep(ctx, ses.enroll, e)
	}
	switch e.Type {
	case (*transport.CommandPoll)(nil).Type():
		return open(e, func(*transport.CommandPoll) (outcome, error) { return s.commandPoll(ctx, ses) })
	case (*transport.CommandResult)(nil).Type():
		return open(e, func(m *transport.CommandResult) (outcome, error) { return s.commandResult(ctx, ses, m) })
	case (*transport.CredentialRequest)(nil).Type():
		return open(e, func(m *transport.CredentialRequest) (outcome, error) { return s.credentialRequest(ctx, ses, m) })
	case (*transport.CredentialClaim)(nil).Type():
		return open(e, func(m *transport.CredentialClaim) (outcome, error) { return s.credentialClaim(ctx, ses, m) })
	case (*transport.KeycopyReport)(nil).Type():
		return open(e, func(m *transport.KeycopyReport) (outcome, error) { return s.keycopyReport(ctx, ses, m) })
	case (*transport.KeycopySettle)(nil).Type():
		return open(e, func(m *transport.KeycopySettle) (outcome, error) { return s.keycopySettle(ctx, ses, m) })
	case (*transport.TerminalState)(nil).Type():
		return open(e, func(m *transport.TerminalState) (outcome, error) { return s.terminalState(ctx, ses, m) })
	case (*transport.RecoveryRequest)(nil).Type():
		return open(e, func(m *transport.RecoveryRequest) (outcome, error) { return s.recoveryRequest(ctx, ses, m) })
	case (*transport.RecoveryTaken)(nil).Type():
		return open(e, func(m *transport.RecoveryTaken) (outcome, error) { return s.recoveryTaken(ctx, ses, m) })
	case (*transport.ChipReport)(nil).Type():
		return open(e, func(m *transport.ChipReport) (outcome, error) { return s.chipReport(ctx, ses, m) })
	case (*transport.Fault)(nil).Type():
		return open(e, func(m *transport.Fault) (outcome, error) {
			if len(m.Text) > transport.MaxDetail {
				return outcome{}, fmt.Errorf("%w: fault with a text of %d bytes", transport.ErrMalformed, len(m.Text))
			}
			s.warn(ses, "terminal reports a fault", "code", uint8(m.Code), "err", m.Error())
			return outcome{}, nil
		})
	}
	return refusal(transport.FaultUnknown, ""), nil
}

func open[T any, P interface {
	*T
	transport.Body
}](e *transport.Envelope, do func(P) (outcome, error)) (outcome, error) {
	m, err := transport.Open[T, P](e)
	if err != nil {
		return outcome{}, err
	}
	return do(m)
}

// stillIn refuses a session whose terminal was removed, or enrolled with
// another device, since it connected. Every transaction of a conversation
// begins with it.
func (ses *session) stillIn(tx *store.Tx) (store.Terminal, error) {
	x, err := tx.Terminal(ses.terminal)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return x, errGone
	case err != nil:
		return x, err
	case x.State != store.TerminalEnrolled || x.Device != ses.device:
		return x, errGone
	}
	return x, nil
}

// sessions finds the session of a connection.
type sessions struct {
	mu sync.Mutex
	by map[uint64]*session // guarded by mu; by the broker's session number
}

func (x *sessions) put(n uint64, ses *session) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.by[n] = ses
}

func (x *sessions) get(n uint64) *session {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.by[n]
}

// terminals names everybody who is connected and enrolled.
func (x *sessions) terminals() (names []transport.Name) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, ses := range x.by {
		if ses.enroll == nil {
			names = append(names, ses.terminal)
		}
	}
	slices.Sort(names) // one that is just being replaced by its successor is here twice
	return slices.Compact(names)
}

// drop forgets a session and what it knows.
func (x *sessions) drop(n uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if ses := x.by[n]; ses != nil && ses.enroll != nil {
		ses.enroll.end()
	}
	delete(x.by, n)
}
