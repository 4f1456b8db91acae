package server

import (
	"context"
	"errors"
	"time"

	"github.com/kagimori/kagimori/server/ca"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// Every issuer has a signed list of what it has revoked. It changes in the
// transaction that revokes, so whoever sees one sees the other.

// revokeCredential revokes what is in force of a credential. It returns the
// issuer whose list has to change, or nothing.
func revokeCredential(tx *store.Tx, id transport.Name, reason int) (issuer string, err error) {
	n, err := tx.RevokeCredential(id, reason)
	if n == 0 || err != nil {
		return "", err
	}
	c, err := tx.Credential(id)
	return issuerOf(c), err
}

// relist signs the lists of issuers anew; an empty name is skipped.
func (s *Server) relist(tx *store.Tx, issuers ...string) error {
	for _, issuer := range issuers {
		if issuer == "" {
			continue
		}
		if err := relist(tx, s.ca, issuer); err != nil {
			return err
		}
	}
	return nil
}

func relist(tx *store.Tx, authority *ca.CA, issuer string) error {
	old, err := tx.CRL(issuer)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	now := tx.By().At
	// RFC 5280 §3.3: an entry stays for one regular list after the expiry.
	rows, err := tx.RevokedBy(issuer, now.Add(-authority.ListLifetime()))
	if err != nil {
		return err
	}
	var revoked []ca.Revoked
	for _, c := range rows {
		revoked = append(revoked, ca.Revoked{Serial: c.Serial, At: c.Revoked, Reason: c.Reason})
	}
	list, err := authority.CRL(issuer, old.Number+1, revoked, now)
	if err != nil {
		return err
	}
	return tx.PutCRL(store.CRL{Issuer: issuer, Number: old.Number + 1, DER: list.DER, Issued: list.Issued, Next: list.Next})
}

// maintainEvery is how often the loop looks what is due, at most: short list
// lifetimes make it quicker.
const maintainEvery = time.Minute

// maintain renews lists and this server's own certificate before they expire.
func (s *Server) maintain(ctx context.Context) error {
	due := time.NewTicker(min(maintainEvery, s.cfg.Lifetimes.CRL/8))
	defer due.Stop()
	for {
		if err := s.renewLists(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("revocation lists are not renewed", "err", err)
		}
		if err := s.renewOwn(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("the server's certificate is not renewed", "err", err)
		}
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return nil
			case <-s.turn:
			case <-due.C:
				waiting = false
			}
		}
	}
}

// renewLists signs every list anew that is due.
func (s *Server) renewLists(ctx context.Context) error {
	var due []string
	look := func(tx *store.Tx) (err error) {
		due, err = s.listsDue(tx)
		return err
	}
	if err := s.store.View(ctx, look); err != nil || len(due) == 0 {
		return err
	}
	err := s.store.Update(ctx, s.by(actorServer), func(tx *store.Tx) error {
		return errors.Join(look(tx), s.relist(tx, due...)) // a revocation may have been quicker
	})
	if err != nil {
		return err
	}
	s.log.Info("revocation lists renewed", "issuers", due)
	s.carry(ctx, outcome{revoked: due})
	return nil
}

// listsDue names the issuers whose list has passed half of its time, or is
// from the future of the clock.
func (s *Server) listsDue(tx *store.Tx) (due []string, err error) {
	now := s.cfg.Now()
	for _, issuer := range ca.Issuers() {
		list, err := tx.CRL(issuer)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
		if list.Next.Sub(now) < s.cfg.Lifetimes.CRL/2 || list.Issued.After(now) {
			due = append(due, issuer)
		}
	}
	return due, nil
}
