package server

import (
	"context"

	"github.com/kagimori/kagimori/server/ca"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// revokedMessage is the service CA's list in force, as gates get it.
func (s *Server) revokedMessage(tx *store.Tx) (*transport.ServiceRevoked, error) {
	list, err := tx.CRL(ca.Service)
	if err != nil {
		return nil, err
	}
	m := &transport.ServiceRevoked{Number: list.Number, CRL: list.DER, Issuer: s.ca.Certificate(ca.Service).Raw}
	if urls := s.ca.URLs(ca.Service); len(urls) > 0 {
		m.URL = urls[0]
	}
	if len(m.CRL) > transport.MaxPushedCRL {
		m.CRL = nil
	}
	return m, nil
}

// greet tells a gate what is revoked, when it has connected and listens.
func (s *Server) greet(ctx context.Context, terminal transport.Name) {
	var m *transport.ServiceRevoked
	err := s.store.View(ctx, func(tx *store.Tx) error {
		x, err := tx.Terminal(terminal)
		if err != nil || x.Kind != store.KindGate {
			return err
		}
		m, err = s.revokedMessage(tx)
		return err
	})
	if err != nil {
		s.log.Error("gate is not told what is revoked", "terminal", terminal, "err", err)
	}
	if m != nil {
		s.send(string(terminal), nil, m)
	}
}

// tellGates tells every gate that is connected (req: L10).
func (s *Server) tellGates(ctx context.Context) {
	var m *transport.ServiceRevoked
	var gates []transport.Name
	err := s.store.View(context.WithoutCancel(ctx), func(tx *store.Tx) (err error) {
		if gates, err = tx.Gates(); err != nil {
			return err
		}
		m, err = s.revokedMessage(tx)
		return err
	})
	if err != nil {
		s.log.Error("gates are not told what is revoked", "err", err)
		return
	}
	for _, gate := range gates {
		s.send(string(gate), nil, m)
	}
}
