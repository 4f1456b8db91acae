package server

import (
	"context"
	"errors"
	"fmt"

	"github.com/kagimori/kagimori/server/ca"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// CredentialRevoked says what a revocation ended.
type CredentialRevoked struct {
	ID        transport.Name        `json:"id"`
	Service   transport.Name        `json:"service"`
	Subject   transport.Name        `json:"subject"`
	State     store.CredentialState `json:"state"`     // revoked; withdrawn, if there was no certificate yet
	Holders   []transport.Name      `json:"holders"`   // terminals that had it
	Withdrawn []transport.Name      `json:"withdrawn"` // terminals that were told to get it
}

// credentialRevoke ends a credential for good, whoever has it: all of its
// certificates are on the list of revoked ones, and gates told at once.
func (s *Server) credentialRevoke(ctx context.Context, call *control.Call) error {
	var in NameParams
	if err := call.Params(&in); err != nil {
		return err
	}
	var reply CredentialRevoked
	err := s.change(ctx, call, func(tx *store.Tx) (out outcome, err error) {
		reply, out, err = s.revoke(tx, in.Name)
		return out, err
	})
	if err != nil {
		return err
	}
	return call.Reply(reply)
}

func (s *Server) revoke(tx *store.Tx, given string) (r CredentialRevoked, out outcome, err error) {
	c, err := tx.Credential(transport.Name(given))
	if errors.Is(err, store.ErrNotFound) {
		return r, out, control.Problemf(control.NotFound, "see: kagimori-server credential list", "there is no credential %q", given)
	}
	if err != nil {
		return r, out, err
	}
	if c.State != store.CredentialOrdered && c.State != store.CredentialActive {
		return r, out, control.Problemf(control.Conflict, "see: kagimori-server credential show "+string(c.ID), "%s is %s already", c.ID, c.State)
	}
	r = CredentialRevoked{ID: c.ID, Service: c.Service, Subject: c.Subject, State: store.CredentialRevoked, Withdrawn: []transport.Name{}}
	if r.Holders, err = activeHolders(tx, c.ID); err != nil {
		return r, out, err
	}
	pending, err := tx.PendingOf(c.ID)
	if err != nil {
		return r, out, err
	}
	for _, o := range pending {
		if err := tx.Settle(o.ID, store.CommandWithdrawn, "the credential was revoked"); err != nil {
			return r, out, err
		}
		out.settled = append(out.settled, o.ID)
		if o.Kind == transport.CommandIssue {
			r.Withdrawn = append(r.Withdrawn, o.Terminal)
		}
	}
	if c.State == store.CredentialOrdered {
		r.State = store.CredentialWithdrawn
		return r, out, errors.Join(tx.SetCredential(c.ID, r.State, operationWithdraw), tx.Audit("credential.withdraw", string(c.ID), ""))
	}
	issuer, err := s.endCredential(tx, c.ID, ca.ReasonCessationOfOperation)
	if err := errors.Join(err, tx.EndHoldingsOf(c.ID), s.relist(tx, issuer)); err != nil {
		return r, out, fmt.Errorf("revoke %s: %w", c.ID, err)
	}
	out.revoked = []string{issuer}
	return r, out, nil
}
