package server

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/server/ca"
	"github.com/kagimori/kagimori/server/store"
)

// The server's own TLS certificate, from its own server CA. It is made at the
// first start and renewed, with a new key, when a third of its life is left or
// its names are no longer those of the deployment.

const metaOwnKey = "tls_key"

// certificate is tls.Config.GetCertificate.
func (s *Server) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return s.own.Load(), nil
}

// renewOwn makes sure that there is a good one.
func (s *Server) renewOwn(ctx context.Context) error {
	if now := s.own.Load(); now != nil && s.ownFits(now.Leaf) {
		return nil
	}
	if err := s.loadOwn(ctx); err != nil {
		return err
	}
	if now := s.own.Load(); now != nil && s.ownFits(now.Leaf) {
		return nil
	}
	return s.makeOwn(ctx)
}

func (s *Server) ownFits(leaf *x509.Certificate) bool {
	now := s.cfg.Now()
	if now.Before(leaf.NotBefore) || leaf.NotAfter.Sub(now) < leaf.NotAfter.Sub(leaf.NotBefore)/3 {
		return false
	}
	for _, host := range hostsOf(s.deployment.Servers) {
		if leaf.VerifyHostname(host) != nil {
			return false
		}
	}
	return true
}

// loadOwn takes the one that the store has, if any.
func (s *Server) loadOwn(ctx context.Context) error {
	var blob hsm.Blob
	var row store.Certificate
	err := s.store.View(ctx, func(tx *store.Tx) (err error) {
		if blob, err = tx.Meta(metaOwnKey); err != nil {
			return err
		}
		row, err = tx.OwnCertificate(ca.Server)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the server's certificate: %w", err)
	}
	key, err := s.module.Signer(ctx, blob)
	if err != nil {
		return fmt.Errorf("open the server's key: %w", err)
	}
	return s.useOwn(s.ca.Chain(ca.Server, row.DER), key)
}

// useOwn puts a certificate in force with its key, or else closes the key. The
// key before stays open: handshakes may still use it.
func (s *Server) useOwn(chain [][]byte, key hsm.Signer) error {
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return errors.Join(fmt.Errorf("read the server's certificate: %w", err), key.Close())
	}
	if public, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(key.Public()) {
		return key.Close() // half of a renewal: the next one makes both anew
	}
	s.own.Store(&tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf})
	return nil
}

func (s *Server) makeOwn(ctx context.Context) error {
	blob, err := s.module.NewKey(ctx)
	if err != nil {
		return fmt.Errorf("make the server's key: %w", err)
	}
	key, err := s.module.Signer(ctx, blob)
	if err != nil {
		return fmt.Errorf("make the server's key: %w", err)
	}
	i, err := s.ca.Management(key.Public(), s.cfg.Now())
	if err != nil {
		return errors.Join(err, key.Close())
	}
	err = s.store.Update(ctx, s.by(actorServer), func(tx *store.Tx) error {
		return errors.Join(
			tx.AddCertificate(store.Certificate{Serial: i.Serial, Issuer: i.Issuer, DER: i.Chain[0], NotAfter: i.NotAfter}),
			tx.PutMeta(metaOwnKey, blob),
			tx.Audit("server.certificate", string(s.deployment.Name), "serial "+serialText(i.Serial)))
	})
	if err != nil {
		return errors.Join(fmt.Errorf("keep the server's certificate: %w", err), key.Close())
	}
	s.log.Info("server certificate made", "serial", serialText(i.Serial), "until", i.NotAfter)
	return s.useOwn(i.Chain, key)
}

// hostsOf takes the hosts out of host:port.
func hostsOf(addresses []string) (hosts []string) {
	for _, a := range addresses {
		if host, _, err := net.SplitHostPort(a); err == nil {
			hosts = append(hosts, host)
		}
	}
	return hosts
}
