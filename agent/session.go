package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

// maxAsked is how many questions on one connection may wait for an answer; the
// oldest are forgotten, their answers are then no longer matched.
const maxAsked = 4 * sendAtOnce

// A session is the conversation with the management server over one
// authenticated connection. It is pure but for the store: payloads come in,
// payloads go out. One goroutine uses it.
type session struct {
	*vault
	self   *terminalRecord
	roots  *x509.CertPool
	proof  []*x509.Certificate // what the server proved itself with
	random io.Reader
	// other takes messages that the agent does not know; nil: there are none.
	other func(context.Context, *transport.Envelope) error

	incarnation uint32 // that the server was told on this connection

	nonce     *[32]byte               // of the last CommandNext: claims are signed over it
	polling   bool                    // a poll has had no answer
	pollAgain bool                    // and another is wanted
	results   map[transport.ID]bool   // sent since the last repetition
	claims    map[transport.Name]bool // likewise
	refused   map[transport.Name]bool // claims that are not sent again on this connection
	reporting *reporting              // the page of a report that has had no answer
	// unreported are key copies that are not reported again on this connection.
	unreported map[transport.ID]bool
	asked      []question
	out        [][]byte
}

// A question is a message whose answer may be a fault.
type question struct {
	id       transport.ID
	command  transport.ID   // of a CommandResult or CredentialRequest
	claim    transport.Name // of a CredentialClaim
	result   bool
	poll     bool
	report   *transport.ID // of a KeycopyReport
	settle   *settleAsk    // of a KeycopySettle
	state    bool          // of a TerminalState or ChipReport
	recovery string        // the store that is set aside, of a RecoveryRequest or RecoveryTaken
}

// open gives what to say first: results that wait, then a poll.
func (s *session) open() ([][]byte, error) {
	s.refused, s.unreported = map[transport.Name]bool{}, map[transport.ID]bool{}
	return s.repeat(true)
}

// again repeats what has had no answer, and polls.
func (s *session) again() ([][]byte, error) { return s.repeat(false) }

func (s *session) repeat(first bool) ([][]byte, error) {
	s.results, s.claims = map[transport.ID]bool{}, map[transport.Name]bool{}
	s.polling, s.pollAgain, s.reporting = false, false, nil
	return s.saying(func() error {
		var err error
		if first {
			err = errors.Join(s.sayState(), s.sayChip())
		}
		return errors.Join(err, s.poll(), s.report(), s.claim(), s.ask(first))
	})
}

// more says what has come up on this terminal: key copies, new holdings to claim.
func (s *session) more() ([][]byte, error) {
	return s.saying(func() error { return errors.Join(s.report(), s.claim()) })
}

// receive takes one message from the server and gives what to answer. An error
// does not end the connection: it is a message that was not understood, or
// something on this terminal that did not work.
func (s *session) receive(ctx context.Context, payload []byte) ([][]byte, error) {
	env, err := transport.Unpack(payload, transport.MaxEnvelope)
	if err != nil {
		return nil, err
	}
	if env.Time > 0 {
		if err := s.clock.Sync(time.Unix(env.Time, 0), s.proof); err != nil {
			s.log.Warn("server time not taken", "err", err)
		}
	}
	return s.saying(func() error { return s.hear(ctx, env) })
}

func (s *session) hear(ctx context.Context, env *transport.Envelope) error {
	switch env.Type {
	case (*transport.CommandReady)(nil).Type():
		return s.poll()
	case (*transport.CommandNext)(nil).Type():
		return heard(env, func(m *transport.CommandNext) error { return s.next(ctx, m) })
	case (*transport.CommandAck)(nil).Type():
		return heard(env, s.acked)
	case (*transport.CredentialCertificate)(nil).Type():
		return heard(env, s.certificate)
	case (*transport.CredentialClaimed)(nil).Type():
		return heard(env, s.claimTaken)
	case (*transport.KeycopyReported)(nil).Type():
		return heard(env, s.reported)
	case (*transport.KeycopySettled)(nil).Type():
		return heard(env, func(m *transport.KeycopySettled) error { return s.settled(env, m) })
	case (*transport.TerminalNoted)(nil).Type():
		return heard(env, s.noted)
	case (*transport.ChipApproval)(nil).Type():
		return heard(env, func(m *transport.ChipApproval) error { return s.chipAnswer(ctx, m) })
	case (*transport.RecoveryState)(nil).Type():
		return heard(env, s.recoveryState)
	case (*transport.RecoveryRelease)(nil).Type():
		return heard(env, func(m *transport.RecoveryRelease) error { return s.released(ctx, m) })
	case (*transport.ServiceRevoked)(nil).Type():
		if s.other == nil { // a gate's list is of credentials, and the gate's affair
			return heard(env, s.revoked)
		}
	case (*transport.Fault)(nil).Type():
		return heard(env, func(f *transport.Fault) error { return s.fault(env, f) })
	}
	if s.other == nil {
		return fmt.Errorf("%w: unknown type %.40q", transport.ErrMalformed, env.Type)
	}
	return s.other(ctx, env)
}

func heard[T any, P interface {
	*T
	transport.Body
}](env *transport.Envelope, do func(P) error) error {
	m, err := transport.Open[T, P](env)
	if err != nil {
		return err
	}
	return do(m)
}

// poll sends what waits in the outbox and asks for the next command. While a
// poll is under way, it is noted: its answer may be older than the reason.
func (s *session) poll() error {
	var waiting []*transport.CommandResult
	err := s.store.View(func(tx *store.Tx) (err error) {
		waiting, err = waitingResults(tx, sendAtOnce)
		return err
	})
	if err != nil {
		return err
	}
	for _, r := range waiting {
		if err := s.sayResult(r); err != nil {
			return err
		}
	}
	if s.polling {
		s.pollAgain = true
		return nil
	}
	s.polling, s.pollAgain = true, false
	return s.say(&transport.CommandPoll{}, question{poll: true})
}

// sayResult holds a result back while a key change is unfinished: until key storage
// has counted it, the files of before would open again, and with them what the
// server is about to believe gone. It stays in the outbox, and is repeated.
func (s *session) sayResult(r *transport.CommandResult) error {
	if s.results[r.Command] {
		return nil
	}
	if why := s.store.State().Unfinished; why != "" {
		s.log.Warn("the result of a command waits until the key change is finished", "command", r.Command, "err", why)
		return nil
	}
	s.results[r.Command] = true
	return s.say(r, question{command: r.Command, result: true})
}

// next obeys a command, or goes on to what else there is to do.
func (s *session) next(ctx context.Context, m *transport.CommandNext) error {
	s.nonce, s.polling = &m.Nonce, false
	var err error
	if m.Command != nil {
		var answer transport.Body
		if answer, err = s.obey(ctx, m.Command); err == nil {
			err = s.sayAnswer(m.Command.ID, answer)
		}
	}
	if s.pollAgain && m.Command == nil { // else the acknowledgement brings a poll
		err = s.poll()
	}
	return errors.Join(err, s.claim())
}

// sayAnswer sends what obey or finish gave.
func (s *session) sayAnswer(command transport.ID, answer transport.Body) error {
	if r, ok := answer.(*transport.CommandResult); ok {
		delete(s.results, command) // the server asks again, so it has not got it
		return s.sayResult(r)
	}
	return s.say(answer, question{command: command})
}

// acked forgets a result that the server has committed, and asks on.
func (s *session) acked(m *transport.CommandAck) error {
	err := s.update(func(tx *store.Tx) error { return acknowledged(tx, m.Command) })
	if err != nil {
		return err
	}
	return s.poll()
}

// fault is the answer to something that this session said.
func (s *session) fault(env *transport.Envelope, f *transport.Fault) error {
	if env.InReplyTo == nil {
		return f
	}
	i := slices.IndexFunc(s.asked, func(q question) bool { return q.id == *env.InReplyTo })
	if i < 0 {
		return f
	}
	q := s.asked[i]
	s.asked = slices.Delete(s.asked, i, i+1)
	switch {
	case q.poll:
		s.polling = false
		return f
	case q.state:
		if f.Code == transport.FaultUnknown {
			return nil // an older server
		}
		return f
	case q.report != nil:
		return s.reportRefused(*q.report, f)
	case q.settle != nil:
		q.settle.refused(f)
		return nil
	case q.recovery != "":
		return s.recoveryRefused(q.recovery, f)
	case q.claim != "":
		return errors.Join(s.claimRefused(q.claim, f), s.claim())
	case f.Code == transport.FaultLater:
		return f // it is asked again by itself
	case f.Code == transport.FaultClosed:
		return s.closed(q.command)
	case !q.result:
		return s.requestRefused(q.command, f)
	}
	return f
}

// closed drops everything about a command that the server has settled by itself.
func (s *session) closed(command transport.ID) error {
	return s.update(func(tx *store.Tx) error {
		if err := tx.Delete(bucketPending, command.String()); err != nil {
			return err
		}
		return acknowledged(tx, command)
	})
}

// saying collects what do says.
func (s *session) saying(do func() error) ([][]byte, error) {
	s.out = nil
	err := do()
	return s.out, err
}

// say queues a message and remembers the question.
func (s *session) say(body transport.Body, q question) error {
	payload, err := transport.Pack(s.random, s.clock.Said(), nil, body)
	if err != nil {
		return err
	}
	env, err := transport.Unpack(payload, transport.MaxEnvelope)
	if err != nil {
		return fmt.Errorf("encode %s: %w", body.Type(), err)
	}
	q.id = env.ID
	s.asked = append(s.asked, q)
	s.asked = s.asked[max(0, len(s.asked)-maxAsked):]
	s.out = append(s.out, payload)
	return nil
}

// unsettled says whether something waits for the server: then the session
// repeats itself sooner.
func (s *session) unsettled() (bool, error) {
	found := false
	err := s.store.View(func(tx *store.Tx) error {
		for _, bucket := range []string{bucketOutbox, bucketPending} {
			err := tx.Each(bucket, func(string, func(any) error) error {
				found = true
				return store.ErrStop
			})
			if err != nil {
				return err
			}
		}
		claims, err := openClaims(tx, 1, s.refused)
		found = found || len(claims) > 0
		if err != nil || found {
			return err
		}
		d, err := nextReport(tx, s.unreported)
		defer d.wipe()
		found = d != nil
		return err
	})
	return found, err
}
