package server

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kagimori/kagimori/server/ca"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// TerminalRemoved says what a removal did, and what it could not do: a key that
// another terminal holds too stays in force, so the removed box could still
// use it.
type TerminalRemoved struct {
	Name      transport.Name   `json:"name"`
	Withdrawn []transport.Name `json:"withdrawn"` // credentials ordered and not yet there
	Revoked   []transport.Name `json:"revoked"`   // credentials that nobody else held
	Kept      []KeptCredential `json:"kept"`      // credentials in force for others
	Warnings  []string         `json:"warnings,omitempty"`
}

// KeptCredential is one that the removed terminal held together with others.
type KeptCredential struct {
	ID      transport.Name   `json:"id"`
	Service transport.Name   `json:"service"`
	Holders []transport.Name `json:"holders"`
}

func (s *Server) terminalRemove(ctx context.Context, call *control.Call) error {
	var in NameParams
	if err := call.Params(&in); err != nil {
		return err
	}
	var reply TerminalRemoved
	err := s.change(ctx, call, func(tx *store.Tx) (out outcome, err error) {
		reply, out, err = s.remove(tx, in.Name)
		return out, err
	})
	if err != nil {
		return err
	}
	return call.Reply(reply)
}

// remove takes a terminal out of the deployment in one transaction.
func (s *Server) remove(tx *store.Tx, given string) (r TerminalRemoved, out outcome, err error) {
	x, err := findTerminal(tx, given)
	if err != nil {
		return r, out, err
	}
	if x.State == store.TerminalRemoved {
		return r, out, control.Problemf(control.Conflict, "see: kagimori-server terminal show "+string(x.Name), "terminal %s is removed already", x.Name)
	}
	r = TerminalRemoved{Name: x.Name, Withdrawn: []transport.Name{}, Revoked: []transport.Name{}, Kept: []KeptCredential{}}
	if out, err = s.identityEnds(tx, x.Name, ca.ReasonCessationOfOperation, "the terminal was removed"); err != nil {
		return r, out, err
	}
	if err := tx.RemoveTerminal(x.Name); err != nil {
		return r, out, err
	}
	if r.Withdrawn, out.settled, err = withdraw(tx, x.Name, "the terminal was removed"); err != nil {
		return r, out, err
	}
	if out.revoked, err = s.endHoldings(tx, x.Name, &r); err != nil {
		return r, out, err
	}
	if x.Kind == store.KindGate {
		r.Warnings = append(r.Warnings, fmt.Sprintf("service %s has no gate now; kagimori-server terminal reenroll %s makes a bundle for a new one", x.Service, x.Name))
	}
	return r, out, tx.Audit("terminal.remove", string(x.Name), fmt.Sprintf("device %s, revoked %s", x.Device, join(r.Revoked)))
}

// withdraw takes back all orders to a terminal. Credentials that were ordered
// and have no certificate end with them.
func withdraw(tx *store.Tx, name transport.Name, why string) (ids []transport.Name, settled []transport.ID, err error) {
	pending, err := tx.Pending(name)
	if err != nil {
		return nil, nil, err
	}
	ids = []transport.Name{}
	for _, c := range pending {
		if err := tx.Settle(c.ID, store.CommandWithdrawn, why); err != nil {
			return nil, nil, err
		}
		settled = append(settled, c.ID)
		if c.Kind == transport.CommandIssue && c.Serial == nil {
			ids = append(ids, c.Credential)
			if err := tx.SetCredential(c.Credential, store.CredentialRefused, operationIssue); err != nil {
				return nil, nil, err
			}
		}
	}
	return ids, settled, nil
}

// endHoldings ends what a terminal holds, and revokes what nobody else does. It
// names the issuers whose lists have changed.
func (s *Server) endHoldings(tx *store.Tx, name transport.Name, r *TerminalRemoved) (issuers []string, err error) {
	held, err := tx.HeldBy(name)
	if err != nil {
		return nil, err
	}
	if err := tx.EndHoldings(name); err != nil {
		return nil, err
	}
	for _, id := range idsOf(held) {
		holders, err := activeHolders(tx, id)
		if err != nil {
			return nil, err
		}
		if len(holders) > 0 {
			c, err := tx.Credential(id)
			if err != nil {
				return nil, err
			}
			r.Kept = append(r.Kept, KeptCredential{ID: id, Service: c.Service, Holders: holders})
			r.Warnings = append(r.Warnings, fmt.Sprintf("the box that was %s still has the key of %s for %s until that is renewed: %s holds it too, so it stays in force",
				name, id, c.Service, join(holders)))
			continue
		}
		issuer, err := s.endCredential(tx, id, ca.ReasonCessationOfOperation)
		if err != nil {
			return nil, err
		}
		r.Revoked = append(r.Revoked, id)
		if !slices.Contains(issuers, issuer) {
			issuers = append(issuers, issuer)
		}
	}
	return issuers, s.relist(tx, issuers...)
}

// endCredential revokes a credential for good; the issuer's list is the
// caller's to renew.
func (s *Server) endCredential(tx *store.Tx, id transport.Name, reason int) (issuer string, err error) {
	if issuer, err = revokeCredential(tx, id, reason); err != nil {
		return "", err
	}
	return issuer, errors.Join(tx.SetCredential(id, store.CredentialRevoked, operationRevoke), tx.Audit("credential.revoke", string(id), ""))
}

// activeHolders names the terminals that hold a credential.
func activeHolders(tx *store.Tx, id transport.Name) (names []transport.Name, err error) {
	list, err := tx.Holdings(id)
	for _, h := range list {
		if h.Active && !slices.Contains(names, h.Terminal) {
			names = append(names, h.Terminal)
		}
	}
	return names, err
}
