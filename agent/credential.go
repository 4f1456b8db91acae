package agent

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

// How a terminal comes by a credential (req: L4, L9): it makes the key itself,
// asks for a certificate, and checks what it gets. What is pending is durable
// before the first question, so that a lost reply or a power cut repeats the
// same request and gets the same certificate.

const (
	bucketPending = "pending" // command id → pendingRecord

	maxOrderDNS   = 16  // names in one order
	maxDNSName    = 253 // characters (RFC 1035 §2.3.4, less the root's dot)
	maxEndpoints  = 16
	maxAnchors    = 8
	maxServerName = maxDNSName
)

// pendingRecord is a credential that is asked for.
type pendingRecord struct {
	Order transport.CredentialOrder  `cbor:"1,keyasint"`
	Key   transport.CredentialSecret `cbor:"2,keyasint"`
	CSR   []byte                     `cbor:"3,keyasint"`
	Since int64                      `cbor:"4,keyasint"`
}

// issue obeys a CredentialOrder: it makes the key, keeps it, and asks.
func (s *session) issue(ctx context.Context, c *transport.Command) (step, error) {
	var p pendingRecord
	defer p.Key.Bytes.Wipe()
	var held *holdingRecord
	var order transport.CredentialOrder
	if err := transport.Unmarshal(c.Body, &order, len(c.Body)); err != nil {
		return refuse("the order is malformed"), nil
	}
	if err := checkOrder(&order); err != nil {
		return refuse("%v", err), nil
	}
	var pending bool
	var moving string
	err := s.store.View(func(tx *store.Tx) (err error) {
		if pending, err = tx.Get(bucketPending, c.ID.String(), &p); err != nil {
			return err
		}
		if held, err = holding(tx, order.Credential); err != nil {
			return err
		}
		moving, err = movingBy(tx, held, order.Credential)
		return err
	})
	if err != nil {
		return step{}, err
	}
	defer held.wipe()
	switch {
	case pending:
		return step{ask: &transport.CredentialRequest{Command: c.ID, CSR: p.CSR}}, nil
	case moving != "":
		return refuse("credential %s is %s: settle that first", order.Credential, moving), nil
	case held != nil && (held.Record.Service != order.Service || held.Record.Usage != order.Usage):
		return refuse("this terminal holds credential %s for service %s already", order.Credential, held.Record.Service), nil
	}
	if why := s.noChip(); order.ChipOnly && why != "" {
		return refuse("%s", why), nil
	}
	fresh, err := s.newPending(ctx, order)
	if err != nil {
		return step{}, err
	}
	defer fresh.Key.Bytes.Wipe()
	if err := s.update(func(tx *store.Tx) error { return tx.Put(bucketPending, c.ID.String(), fresh) }); err != nil {
		return step{}, err
	}
	return step{ask: &transport.CredentialRequest{Command: c.ID, CSR: fresh.CSR}}, nil
}

// checkOrder says what is wrong with an order, in words for the result.
func checkOrder(o *transport.CredentialOrder) error {
	for _, n := range []transport.Name{o.Credential, o.Service, o.Subject} {
		if _, err := transport.ParseName(string(n)); err != nil {
			return fmt.Errorf("the order has a bad name: %w", err)
		}
	}
	if len(o.Fleet) > 0 {
		if _, err := transport.ParseFleetKey(o.Fleet); err != nil {
			return fmt.Errorf("the order has a bad fleet key: %w", err)
		}
	}
	switch o.Transfer {
	case transport.TransferCopy, transport.TransferMove, transport.TransferNever:
	default:
		return fmt.Errorf("the order has an unknown transfer rule %.20q: update this terminal", o.Transfer)
	}
	switch {
	case o.ChipOnly && o.Usage != transport.UsageClient:
		return errors.New("the order is for a key in a chip that serves terminals: issue it without chip-only")
	case len(o.Fleet) > 0 && !o.ChipOnly:
		return errors.New("the order names a fleet key, and is for no key in a chip")
	case o.Usage == transport.UsageClient && len(o.DNS) == 0:
		return nil
	case o.Usage == transport.UsageServer && len(o.DNS) > 0 && len(o.DNS) <= maxOrderDNS:
		for _, n := range o.DNS {
			if n == "" || len(n) > maxDNSName {
				return fmt.Errorf("the order has a DNS name of %d characters", len(n))
			}
		}
		return nil
	}
	return fmt.Errorf("the order is for usage %.20q with %d DNS names", o.Usage, len(o.DNS))
}

// newPending makes the key of an order, and the request for it, which names the
// credential and its service.
func (s *session) newPending(ctx context.Context, order transport.CredentialOrder) (*pendingRecord, error) {
	secret, key, err := s.keyFor(ctx, &order)
	if err != nil {
		return nil, err
	}
	request := &x509.CertificateRequest{Subject: pkix.Name{CommonName: string(order.Subject)}, SignatureAlgorithm: x509.ECDSAWithSHA256}
	if order.Usage == transport.UsageServer {
		for _, n := range order.DNS {
			if ip := net.ParseIP(n); ip != nil {
				request.IPAddresses = append(request.IPAddresses, ip)
			} else {
				request.DNSNames = append(request.DNSNames, n)
			}
		}
	} else {
		u := transport.URI{Deployment: s.self.Deployment, Service: order.Service, Credential: order.Credential}
		request.URIs = []*url.URL{u.URL()}
	}
	csr, err := signingRequest(key, request)
	if err != nil {
		secret.Bytes.Wipe()
		return nil, err
	}
	return &pendingRecord{Order: order, Key: secret, CSR: csr, Since: s.clock.Stamp()}, nil
}

// certificate takes what the server issued: the credential, the ledger and the
// end of what was pending are one transaction.
func (s *session) certificate(m *transport.CredentialCertificate) error {
	var p pendingRecord
	defer p.Key.Bytes.Wipe()
	var pending, done bool
	var before ledgerRecord
	err := s.store.View(func(tx *store.Tx) (err error) {
		if before, done, err = settled(tx, m.Command); err != nil || done {
			return err
		}
		pending, err = tx.Get(bucketPending, m.Command.String(), &p)
		return err
	})
	switch {
	case err != nil:
		return err
	case done:
		return s.sayAnswer(m.Command, before.result(m.Command))
	case !pending:
		return fmt.Errorf("certificate for credential %.63q: this terminal asked for none", m.Credential)
	}
	record, err := s.accept(&p, m)
	if err != nil {
		s.log.Error("certificate not accepted", "credential", p.Order.Credential, "err", err)
		return s.give(m.Command, refuse("the certificate that the server issued was not accepted: %v", err))
	}
	h := holdingRecord{Record: *record, Origin: OriginIssue, Since: s.clock.Stamp()}
	err = s.give(m.Command, step{state: transport.CommandDone, effect: func(tx *store.Tx) error {
		held, err := holding(tx, h.Record.ID)
		defer held.wipe()
		if err != nil {
			return err
		}
		switch moving, err := movingBy(tx, held, h.Record.ID); {
		case err != nil:
			return err
		case moving != "":
			return movingError(moving)
		}
		if err := hold(tx, &h); err != nil {
			return err
		}
		if err := s.audit(tx, audit.Installed, h.Record.ID, "for service %s", h.Record.Service); err != nil {
			return err
		}
		return s.supersede(tx, &h.Record)
	}})
	if moving, ok := errors.AsType[movingError](err); ok { // what is here now is another terminal's to use
		return s.give(m.Command, refuse("credential %s is %s: settle that first", h.Record.ID, moving.Error()))
	}
	return err
}

// movingError is a credential that a key copy takes away, or is about to: nothing
// may take its place.
type movingError string

func (e movingError) Error() string { return string(e) }

// requestRefused settles an order that the server did not let through.
func (s *session) requestRefused(command transport.ID, f *transport.Fault) error {
	return s.give(command, refuse("the server refused the request: %v", f))
}

// give finishes a pending command and sends its result.
func (s *session) give(command transport.ID, done step) error {
	effect := done.effect
	done.effect = func(tx *store.Tx) error {
		if effect != nil {
			if err := effect(tx); err != nil {
				return err
			}
		}
		return tx.Delete(bucketPending, command.String())
	}
	answer, err := s.finish(command, transport.CommandIssue, done)
	if err != nil {
		return err
	}
	return s.sayAnswer(command, answer)
}

// accept checks a certificate against its order and key, and makes the record.
func (s *session) accept(p *pendingRecord, m *transport.CredentialCertificate) (*transport.CredentialRecord, error) {
	o := &p.Order
	if m.Credential != o.Credential {
		return nil, fmt.Errorf("it is for credential %.63q", m.Credential)
	}
	chain, err := transport.ParseChain(m.Chain)
	if err != nil {
		return nil, err
	}
	request, err := x509.ParseCertificateRequest(p.CSR)
	if err != nil {
		return nil, err
	}
	if err := certifies(chain[0], request.PublicKey); err != nil {
		return nil, err
	}
	if err := checkUsage(o, chain, s.roots, s.self.Deployment, s.clock.Judge(chain)); err != nil {
		return nil, err
	}
	if err := checkReach(m.ServerName, m.Endpoints, m.Anchors); err != nil {
		return nil, err
	}
	return &transport.CredentialRecord{
		ID: o.Credential, Kind: transport.KindCertificate, Service: o.Service, Subject: o.Subject, Usage: o.Usage,
		ServerName: m.ServerName, Endpoints: m.Endpoints, Anchors: m.Anchors, Chain: m.Chain, Secret: p.Key,
		Expires: chain[0].NotAfter.Unix(), State: transport.CredentialActive, Transfer: o.Transfer, ChipOnly: o.ChipOnly,
	}, nil
}

// checkUsage verifies the chain for what the credential is to be used for.
func checkUsage(o *transport.CredentialOrder, chain []*x509.Certificate, roots *x509.CertPool, deployment transport.Name, at time.Time) error {
	if o.Usage == transport.UsageServer {
		for _, n := range o.DNS {
			if err := transport.VerifyServer(chain, roots, n, at); err != nil {
				return err
			}
		}
		return nil
	}
	id, err := transport.VerifyCredential(chain, roots, deployment, o.Service, at)
	if err != nil {
		return err
	}
	if id != o.Credential {
		return fmt.Errorf("it is for credential %s", id)
	}
	return nil
}

// checkReach checks how the service is to be reached and judged (req: L18).
func checkReach(serverName string, endpoints []string, anchors [][]byte) error {
	if len(serverName) > maxServerName || len(endpoints) > maxEndpoints || len(anchors) > maxAnchors {
		return fmt.Errorf("server name of %d characters, %d endpoints, %d anchors: more than this terminal keeps", len(serverName), len(endpoints), len(anchors))
	}
	for _, e := range endpoints {
		if _, _, err := net.SplitHostPort(e); err != nil || len(e) > maxDNSName+len(":65535") {
			return fmt.Errorf("endpoint %.80q is not host:port", e)
		}
	}
	for _, a := range anchors {
		if _, err := transport.ParseChain([][]byte{a}); err != nil {
			return fmt.Errorf("anchor: %w", err)
		}
	}
	return nil
}
