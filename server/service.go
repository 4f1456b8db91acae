package server

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kagimori/kagimori/server/broker"
	"github.com/kagimori/kagimori/server/ca"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// Who is told what is revoked: gates the service CA's list, so that they turn
// revoked credentials away, and terminals the server CA's, so that they talk to
// no gate that was removed.

// listFor is whose list a client is told.
func listFor(x store.Terminal) (issuer string) {
	if x.Kind == store.KindGate {
		return ca.Service
	}
	return ca.Server
}

// revokedMessage is an issuer's list in force.
func (s *Server) revokedMessage(tx *store.Tx, issuer string) (*transport.ServiceRevoked, error) {
	list, err := tx.CRL(issuer)
	if err != nil {
		return nil, err
	}
	m := &transport.ServiceRevoked{Number: list.Number, CRL: list.DER, Issuer: s.ca.Certificate(issuer).Raw}
	if urls := s.ca.URLs(issuer); len(urls) > 0 {
		m.URL = urls[0]
	}
	if len(m.CRL) > transport.MaxPushedCRL {
		m.CRL = nil
	}
	return m, nil
}

// greet tells a client what is revoked, when it has connected and listens. A
// client that cannot be told is not served: it would go by the list that it
// has for as long as it is connected.
func (s *Server) greet(ctx context.Context, ses *session) error {
	var m *transport.ServiceRevoked
	err := s.store.View(ctx, func(tx *store.Tx) error {
		x, err := tx.Terminal(ses.terminal)
		if err != nil {
			return err
		}
		m, err = s.revokedMessage(tx, listFor(x))
		return err
	})
	if err == nil {
		err = s.send(string(ses.terminal), nil, m)
	}
	switch {
	case errors.Is(err, store.ErrNotFound), errors.Is(err, broker.ErrNotConnected):
		return nil // it was removed, or listens later
	case err != nil:
		return fmt.Errorf("tell what is revoked: %w", err)
	}
	ses.greeted = true
	return nil
}

// tellRevoked tells every connected client whose list has changed (req: L10).
// Who cannot be told is cut off: a gate takes its list for the present one as
// long as it is connected.
func (s *Server) tellRevoked(ctx context.Context, issuers []string) {
	toGates, toTerminals := slices.Contains(issuers, ca.Service), slices.Contains(issuers, ca.Server)
	if !toGates && !toTerminals {
		return
	}
	var service, server *transport.ServiceRevoked
	var gates []transport.Name
	err := s.store.View(context.WithoutCancel(ctx), func(tx *store.Tx) (err error) {
		if gates, err = tx.Gates(); err != nil {
			return err
		}
		if service, err = s.revokedMessage(tx, ca.Service); err != nil {
			return err
		}
		server, err = s.revokedMessage(tx, ca.Server)
		return err
	})
	if err != nil {
		s.log.Error("clients cannot be told what is revoked, and are cut off", "err", err)
		for _, name := range s.sessions.terminals() {
			s.broker.Kick(string(name), "the list of what is revoked cannot be read")
		}
		return
	}
	for _, name := range s.sessions.terminals() {
		switch gate := slices.Contains(gates, name); {
		case gate && toGates:
			s.push(name, service)
		case !gate && toTerminals:
			s.push(name, server)
		}
	}
}
