package server

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// credentialInfo reads a management record; former holders only if asked.
func (s *Server) credentialInfo(tx *store.Tx, id transport.Name, former bool) (CredentialInfo, error) {
	c, err := tx.Credential(id)
	if err != nil {
		return CredentialInfo{}, err
	}
	return s.withHolders(tx, c, former)
}

func (s *Server) withHolders(tx *store.Tx, c store.Credential, former bool) (CredentialInfo, error) {
	i := CredentialInfo{ID: c.ID, Kind: c.Kind, Service: c.Service, Subject: c.Subject, Usage: c.Usage, Transfer: c.Transfer, ChipOnly: c.ChipOnly,
		Serial: serialText(c.Serial), Holders: []HolderInfo{}, Expires: c.Expires, State: c.State, Operation: c.Operation, Operated: c.Operated}
	list, err := tx.Holdings(c.ID)
	if err != nil {
		return i, err
	}
	if !former {
		list = slices.DeleteFunc(list, store.Holding.Ended)
	}
	for _, h := range list {
		holder := holderInfo(h)
		if former && h.Active() {
			if holder.Rule, err = ruleOf(tx, h); err != nil {
				return i, err
			}
		}
		i.Holders = append(i.Holders, holder)
		i.InForce = i.InForce || !h.Ended() && s.cfg.Now().Before(h.Expires)
	}
	if i.Conflict, err = markHolders(tx, list, i.Holders); err != nil {
		return i, err
	}
	if i.Conflict != "" {
		i.Next = fmt.Sprintf("end it and give one of them another: kagimori-server credential revoke %s, then kagimori-server credential issue TERMINAL --service %s --subject %s", c.ID, c.Service, c.Subject)
	}
	i.InForce = i.InForce && c.State == store.CredentialActive
	i.Ordered, err = tx.OrderedOf(c.ID)
	if errors.Is(err, store.ErrNotFound) {
		err = nil
	}
	return i, err
}

func (s *Server) credentialList(ctx context.Context, call *control.Call) error {
	var in ListParams
	if err := call.Params(&in); err != nil {
		return err
	}
	out := CredentialPage{Credentials: []CredentialInfo{}}
	err := s.store.View(ctx, func(tx *store.Tx) error {
		list, next, err := tx.Credentials(in.query(s.cfg.Now()))
		if err != nil {
			return err
		}
		for _, c := range list {
			i, err := s.withHolders(tx, c, false)
			if err != nil {
				return err
			}
			out.Credentials = append(out.Credentials, i)
		}
		out.Next = next
		return nil
	})
	if err != nil {
		return problem(err)
	}
	return call.Reply(out)
}

func (s *Server) credentialShow(ctx context.Context, call *control.Call) error {
	var in NameParams
	if err := call.Params(&in); err != nil {
		return err
	}
	var out CredentialInfo
	err := s.store.View(ctx, func(tx *store.Tx) (err error) {
		out, err = s.credentialInfo(tx, transport.Name(in.Name), true)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return control.Problemf(control.NotFound, "see: kagimori-server credential list", "there is no credential %q", in.Name)
	}
	if err != nil {
		return problem(err)
	}
	return call.Reply(out)
}
