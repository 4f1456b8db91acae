package server

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/kagimori/kagimori/server/ca"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// commandPoll answers with the oldest order that is not settled, or an explicit
// none (req: L8).
func (s *Server) commandPoll(ctx context.Context, ses *session) (outcome, error) {
	next := &transport.CommandNext{Nonce: ses.nonce}
	err := s.store.View(ctx, func(tx *store.Tx) error {
		x, err := ses.stillIn(tx)
		if err != nil {
			return err
		}
		c, err := tx.NextCommand(ses.terminal)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err == nil && c.Kind == transport.CommandCodeInstall {
			c.Body, err = installBody(tx, x, c)
		}
		next.Command = &transport.Command{ID: c.ID, Kind: c.Kind, Body: c.Body}
		return err
	})
	if err != nil {
		return outcome{}, err
	}
	ses.given = true
	return outcome{reply: next}, nil
}

// commandResult settles an order by what its terminal says, and acknowledges.
// A repeated result is acknowledged again and changes nothing. An order of
// another terminal does not exist.
func (s *Server) commandResult(ctx context.Context, ses *session, m *transport.CommandResult) (outcome, error) {
	states := []transport.CommandState{transport.CommandDone, transport.CommandRefused, transport.CommandUnknown}
	if !slices.Contains(states, m.State) || len(m.Detail) > transport.MaxDetail {
		return refusal(transport.FaultMalformed, ""), nil
	}
	var out outcome
	err := s.store.Update(ctx, s.by(ses.actor()), func(tx *store.Tx) error {
		out = outcome{reply: &transport.CommandAck{Command: m.Command}}
		if _, err := ses.stillIn(tx); err != nil {
			return err
		}
		c, err := tx.Command(m.Command)
		if errors.Is(err, store.ErrNotFound) || err == nil && c.Terminal != ses.terminal {
			out = refusal(transport.FaultRefused, "")
			return nil
		}
		if err != nil || c.State != store.CommandPending {
			return err
		}
		out.settled = []transport.ID{c.ID}
		if err := tx.Settle(c.ID, m.State, m.Detail); err != nil {
			return err
		}
		if err := tx.Audit("command."+string(m.State), c.ID.String(), c.Kind+" "+string(c.Credential)+" "+m.Detail); err != nil {
			return err
		}
		if err := s.settleCode(tx, c, m.State); err != nil {
			return err
		}
		out.revoked, err = s.settleIssue(tx, c, m.State)
		return err
	})
	return out, err
}

// settleIssue ends a credential that its terminal did not take: nobody has the
// key, or nobody may use it. It names the issuer whose list has changed.
func (s *Server) settleIssue(tx *store.Tx, c store.Command, state transport.CommandState) (revoked []string, err error) {
	if c.Kind != transport.CommandIssue {
		return nil, nil
	}
	record, err := tx.Credential(c.Credential)
	if err != nil {
		return nil, err
	}
	if renews(record, c) {
		return s.settleRenewal(tx, record, c, state)
	}
	if state == transport.CommandDone && c.Serial != nil {
		return nil, nil
	}
	if err := tx.SetCredential(c.Credential, store.CredentialRefused, operationIssue); err != nil {
		return nil, err
	}
	if err := tx.EndHoldingsOf(c.Credential); err != nil {
		return nil, err
	}
	issuer, err := revokeCredential(tx, c.Credential, ca.ReasonCessationOfOperation)
	if err != nil || issuer == "" {
		return nil, err
	}
	return []string{issuer}, s.relist(tx, issuer)
}

// settleRenewal records a renewal, or leaves the credential as it was.
func (s *Server) settleRenewal(tx *store.Tx, record store.Credential, c store.Command, state transport.CommandState) (revoked []string, err error) {
	if state == transport.CommandDone && c.Serial != nil {
		return nil, renewed(tx, record, c)
	}
	issuer, err := notRenewed(tx, record, c)
	if err != nil || issuer == "" {
		return nil, err
	}
	return []string{issuer}, s.relist(tx, issuer)
}

// settled lets callers wait for the end of a command.
type settled struct {
	mu   sync.Mutex
	wait map[transport.ID][]chan struct{} // guarded by mu
}

// watch returns a channel that closes when the command ends; stop frees it.
// Watch first, then look at the state: otherwise the end may fall in between.
func (x *settled) watch(id transport.ID) (end <-chan struct{}, stop func()) {
	c := make(chan struct{})
	x.mu.Lock()
	defer x.mu.Unlock()
	x.wait[id] = append(x.wait[id], c)
	return c, func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		list := slices.DeleteFunc(x.wait[id], func(o chan struct{}) bool { return o == c })
		if len(list) == 0 {
			delete(x.wait, id)
			return
		}
		x.wait[id] = list
	}
}

func (x *settled) tell(ids []transport.ID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, id := range ids {
		for _, c := range x.wait[id] {
			close(c)
		}
		delete(x.wait, id)
	}
}
