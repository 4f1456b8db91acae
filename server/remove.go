package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

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
	Enrolled  bool             `json:"enrolled"`  // it had an identity, which is revoked
	Withdrawn []transport.Name `json:"withdrawn"` // credentials ordered and not yet there
	Revoked   []transport.Name `json:"revoked"`   // credentials that nobody else held
	Kept      []KeptCredential `json:"kept"`      // credentials in force for others
	Warnings  []string         `json:"warnings,omitempty"`
}

// KeptCredential is one that the removed terminal held together with others.
type KeptCredential struct {
	ID      transport.Name   `json:"id"`
	Service transport.Name   `json:"service"`
	Subject transport.Name   `json:"subject"`
	Expires time.Time        `json:"expires,omitzero"` // until when the removed box can use its key; zero: it no longer can
	Holders []transport.Name `json:"holders"`
	Next    string           `json:"next,omitempty"` // what shuts the removed box out
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
	r = TerminalRemoved{Name: x.Name, Enrolled: x.State == store.TerminalEnrolled, Withdrawn: []transport.Name{}, Revoked: []transport.Name{}, Kept: []KeptCredential{}}
	if out, err = s.identityEnds(tx, x.Name, ca.ReasonCessationOfOperation, "the terminal was removed"); err != nil {
		return r, out, err
	}
	if err := errors.Join(endRecoveries(tx, x.Name, "the terminal was removed"), tx.RemoveTerminal(x.Name), s.judgeGone(tx, x.Device)); err != nil {
		return r, out, err
	}
	w, err := withdraw(tx, x.Name, "the terminal was removed")
	if err != nil {
		return r, out, err
	}
	r.Withdrawn, out.settled = w.ids, w.settled
	if out.revoked, err = s.endHoldings(tx, x.Name, w.issuers, &r); err != nil {
		return r, out, err
	}
	if x.Kind == store.KindGate {
		r.Warnings = append(r.Warnings, fmt.Sprintf("service %s has no gate now; kagimori-server terminal reenroll %s makes a bundle for a new one", x.Service, x.Name))
	}
	return r, out, tx.Audit("terminal.remove", string(x.Name), fmt.Sprintf("device %s, revoked %s", x.Device, join(r.Revoked)))
}

// withdraw takes back all orders to a terminal. Credentials that were ordered
// and have no certificate end with them, and what was signed for a renewal is
// revoked; issuers names those whose lists have to change.
func withdraw(tx *store.Tx, name transport.Name, why string) (w withdrawn, err error) {
	w.ids = []transport.Name{}
	pending, err := tx.Pending(name)
	if err != nil {
		return w, err
	}
	for _, c := range pending {
		if err := tx.Settle(c.ID, store.CommandWithdrawn, why); err != nil {
			return w, err
		}
		w.settled = append(w.settled, c.ID)
		if c.Kind != transport.CommandIssue {
			continue
		}
		record, err := tx.Credential(c.Credential)
		if err != nil {
			return w, err
		}
		switch {
		case renews(record, c):
			issuer, err := notRenewed(tx, record, c)
			if err != nil {
				return w, err
			}
			w.issuers = with(w.issuers, issuer)
		case c.Serial == nil:
			w.ids = append(w.ids, c.Credential)
			if err := tx.SetCredential(c.Credential, store.CredentialWithdrawn, operationWithdraw); err != nil {
				return w, err
			}
		}
	}
	return w, nil
}

// withdrawn are the orders that were taken back.
type withdrawn struct {
	ids     []transport.Name // credentials that ended with them
	settled []transport.ID
	issuers []string
}

// with adds a name that is not there yet; the empty one stays out.
func with[T ~string](names []T, name T) []T {
	if name == "" || slices.Contains(names, name) {
		return names
	}
	return append(names, name)
}

// endHoldings ends what a terminal holds, and revokes what nobody else does. It
// names the issuers whose lists have changed, first those given.
func (s *Server) endHoldings(tx *store.Tx, name transport.Name, issuers []string, r *TerminalRemoved) ([]string, error) {
	held, err := tx.HeldBy(name)
	if err != nil {
		return nil, err
	}
	onWay := map[transport.Name]transport.Name{} // credential: terminal that it was moved to
	for _, h := range held {
		to, err := endHolding(tx, h)
		if err != nil {
			return nil, err
		}
		if to != "" {
			onWay[h.Credential] = to
		}
	}
	for _, id := range idsOf(held) {
		holders, err := activeHolders(tx, id)
		if err != nil {
			return nil, err
		}
		if to := onWay[id]; to != "" {
			holders = with(slices.DeleteFunc(holders, func(n transport.Name) bool { return n == name }), to)
		}
		var issuer string
		if len(holders) > 0 {
			issuer, err = s.keep(tx, name, id, held, holders, r)
		} else {
			issuer, err = s.endCredential(tx, id, ca.ReasonCessationOfOperation)
			r.Revoked = append(r.Revoked, id)
		}
		if err != nil {
			return nil, err
		}
		issuers = with(issuers, issuer)
	}
	return issuers, s.relist(tx, issuers...)
}

// keep leaves a credential in force for other holders. A certificate that none
// of them has is revoked all the same; with one that they have, the removed box
// can go on.
func (s *Server) keep(tx *store.Tx, name, id transport.Name, held []store.Holding, holders []transport.Name, r *TerminalRemoved) (issuer string, err error) {
	n, err := tx.RevokeUnheld(id, ca.ReasonCessationOfOperation)
	if err != nil {
		return "", err
	}
	c, err := tx.Credential(id)
	if err != nil {
		return "", err
	}
	if n > 0 {
		issuer = issuerOf(c)
		if c, err = stillValid(tx, c); err != nil {
			return "", err
		}
	}
	k := KeptCredential{ID: id, Service: c.Service, Subject: c.Subject, Holders: holders}
	for _, h := range held {
		x, err := tx.Certificate(h.Serial)
		if err != nil {
			return "", err
		}
		if h.Credential == id && x.Revoked.IsZero() && x.NotAfter.After(k.Expires) && x.NotAfter.After(tx.By().At) {
			k.Expires = x.NotAfter
		}
	}
	if !k.Expires.IsZero() {
		k.Next = fmt.Sprintf("if that box is out of your hands, kagimori-server credential revoke %s && kagimori-server credential issue %s --service %s --subject %s",
			id, holders[0], c.Service, c.Subject)
		r.Warnings = append(r.Warnings, fmt.Sprintf("the box that was %s still has the key of %s for %s until %s: %s holds it too, so it stays in force",
			name, id, c.Service, minute(k.Expires), join(holders)))
	}
	r.Kept = append(r.Kept, k)
	return issuer, nil
}

// stillValid puts the newest certificate that somebody holds in force for a
// credential whose own is revoked.
func stillValid(tx *store.Tx, c store.Credential) (store.Credential, error) {
	own, err := tx.Certificate(c.Serial)
	if err != nil || own.Revoked.IsZero() {
		return c, err
	}
	list, err := tx.Holdings(c.ID)
	if err != nil {
		return c, err
	}
	c.Expires = time.Time{}
	for _, h := range list {
		if !h.Ended() && h.Expires.After(c.Expires) {
			c.Serial, c.Expires = h.Serial, h.Expires
		}
	}
	return c, tx.CredentialRenewed(c.ID, c.Serial, c.Expires, c.Operation)
}

// endCredential revokes a credential for good; the issuer's list is the
// caller's to renew.
func (s *Server) endCredential(tx *store.Tx, id transport.Name, reason int) (issuer string, err error) {
	if issuer, err = revokeCredential(tx, id, reason); err != nil {
		return "", err
	}
	return issuer, errors.Join(tx.SetCredential(id, store.CredentialRevoked, operationRevoke), tx.Audit("credential.revoke", string(id), ""))
}

// minute is a time in words for people.
func minute(at time.Time) string { return at.UTC().Format("2006-01-02 15:04 MST") }

// activeHolders names the terminals that hold a credential, or have given it up
// to somebody who has not proven to have it.
func activeHolders(tx *store.Tx, id transport.Name) (names []transport.Name, err error) {
	list, err := tx.Holdings(id)
	for _, h := range list {
		if !h.Ended() && !slices.Contains(names, h.Terminal) {
			names = append(names, h.Terminal)
		}
	}
	return names, err
}
