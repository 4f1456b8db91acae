package server

import (
	"context"
	"slices"

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

// greet tells a client what is revoked, when it has connected and listens.
func (s *Server) greet(ctx context.Context, terminal transport.Name) {
	var m *transport.ServiceRevoked
	err := s.store.View(ctx, func(tx *store.Tx) error {
		x, err := tx.Terminal(terminal)
		if err != nil {
			return err
		}
		m, err = s.revokedMessage(tx, listFor(x))
		return err
	})
	if err != nil {
		s.log.Error("client is not told what is revoked", "terminal", terminal, "err", err)
		return
	}
	s.send(string(terminal), nil, m)
}

// tellRevoked tells every connected client whose list has changed (req: L10).
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
		s.log.Error("clients are not told what is revoked", "err", err)
		return
	}
	for _, name := range s.sessions.terminals() {
		switch gate := slices.Contains(gates, name); {
		case gate && toGates:
			s.send(string(name), nil, service)
		case !gate && toTerminals:
			s.send(string(name), nil, server)
		}
	}
}
