package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/kagimori/kagimori/server/ca"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// What is done to a credential, as its management record says (req: L1). The
// origins of a holding, copy and move, are operations too.
const (
	operationIssue    = "issue"
	operationRevoke   = "revoke"
	operationWithdraw = "withdraw" // the order was taken back before it was obeyed
)

// order is a command to issue with all that a certificate for it needs.
type order struct {
	command store.Command
	order   transport.CredentialOrder
	service store.Service
	issued  store.Certificate // what was issued for it before, if command.Serial is set
}

// credentialRequest issues the certificate that a command ordered (req: L4).
// The same key for the same command gets the same certificate, since the reply
// may have been lost; another key is refused.
func (s *Server) credentialRequest(ctx context.Context, ses *session, m *transport.CredentialRequest) (outcome, error) {
	now := s.cfg.Now()
	request, err := ca.ParseRequest(m.CSR)
	if err != nil {
		return refusal(transport.FaultRequest, err.Error()), nil
	}
	if request.Device() == ses.device {
		return refusal(transport.FaultRequest, "a credential needs a key of its own"), nil
	}
	var o order
	err = s.store.View(ctx, func(tx *store.Tx) (err error) {
		o, err = s.orderFor(tx, ses, m.Command)
		return err
	})
	if err != nil {
		return faultOf(err)
	}
	if o.command.Serial == nil {
		fresh, err := s.certify(request, o, now)
		if errors.Is(err, ca.ErrRequest) || errors.Is(err, ca.ErrHost) {
			return refusal(transport.FaultRequest, err.Error()), nil
		}
		if err != nil {
			return outcome{}, later(err)
		}
		err = s.store.Update(ctx, s.by(ses.actor()), func(tx *store.Tx) (err error) {
			if o, err = s.orderFor(tx, ses, m.Command); err != nil || o.command.Serial != nil {
				return err // or somebody was quicker: then that one counts
			}
			o.issued, err = s.putCredential(tx, ses, o, fresh, request)
			return err
		})
		if err != nil {
			return faultOf(err)
		}
	}
	leaf, err := x509.ParseCertificate(o.issued.DER)
	if err != nil {
		return outcome{}, fmt.Errorf("read certificate %s: %w", serialText(o.issued.Serial), err)
	}
	if string(leaf.RawSubjectPublicKeyInfo) != string(request.SPKI) {
		return refusal(transport.FaultRequest, "a certificate for another key was issued for this command"), nil
	}
	return outcome{reply: &transport.CredentialCertificate{
		Command: m.Command, Credential: o.order.Credential, Chain: s.ca.Chain(o.issued.Issuer, o.issued.DER),
		ServerName: o.service.DNS[0], Endpoints: o.service.Endpoints, Anchors: [][]byte{s.ca.Certificate(ca.Root).Raw},
		Remaining: int64(leaf.NotAfter.Sub(now) / time.Second),
	}}, nil
}

// faultOf lets a transaction end with a Fault.
func faultOf(err error) (outcome, error) {
	var fault *transport.Fault
	if errors.As(err, &fault) {
		return outcome{reply: fault}, nil
	}
	return outcome{}, err
}

// orderFor finds the pending order to issue, of this terminal and no other.
func (s *Server) orderFor(tx *store.Tx, ses *session, id transport.ID) (o order, err error) {
	if _, err := ses.stillIn(tx); err != nil {
		return o, err
	}
	o.command, err = tx.Command(id)
	if errors.Is(err, store.ErrNotFound) || err == nil && (o.command.Terminal != ses.terminal || o.command.Kind != transport.CommandIssue) {
		return o, &transport.Fault{Code: transport.FaultRefused}
	}
	if err != nil {
		return o, err
	}
	if o.command.State != store.CommandPending {
		return o, &transport.Fault{Code: transport.FaultClosed}
	}
	if err := transport.Unmarshal(o.command.Body, &o.order, transport.MaxEnvelope); err != nil {
		return o, fmt.Errorf("order %s: %w", id, err)
	}
	if o.service, err = tx.Service(o.order.Service); err != nil {
		return o, err
	}
	if o.command.Serial != nil {
		o.issued, err = tx.Certificate(o.command.Serial)
	}
	return o, err
}

// certify signs what was ordered: names come from the store, never from the
// request.
func (s *Server) certify(r *ca.Request, o order, now time.Time) (ca.Issued, error) {
	if o.order.Usage == transport.UsageServer {
		if o.service.Gate != o.command.Terminal {
			return ca.Issued{}, fmt.Errorf("%w: this terminal is not the gate of %s", ca.ErrRequest, o.service.Name)
		}
		return s.ca.Gate(r, o.order.Service, o.service.DNS, now)
	}
	return s.ca.Credential(r, o.order.Service, o.order.Credential, o.order.Subject, now)
}

// putCredential records what was signed, before anybody gets it.
func (s *Server) putCredential(tx *store.Tx, ses *session, o order, i ca.Issued, r *ca.Request) (store.Certificate, error) {
	id := o.order.Credential
	c := store.Certificate{Serial: i.Serial, Issuer: i.Issuer, Credential: id, Device: ses.device, DER: i.Chain[0], NotAfter: i.NotAfter}
	if err := errors.Join(tx.AddCertificate(c), tx.CommandIssued(o.command.ID, i.Serial)); err != nil {
		return c, err
	}
	if record, err := tx.Credential(id); err != nil {
		return c, err
	} else if record.State == store.CredentialOrdered { // a renewal is recorded when the terminal has it
		h := store.Holding{Credential: id, Device: ses.device, Terminal: ses.terminal, Since: tx.By().At, Origin: store.OriginIssue, Serial: i.Serial}
		_, err := tx.PutHolding(h)
		if err := errors.Join(err, tx.CredentialIssued(id, i.Serial, i.NotAfter)); err != nil {
			return c, err
		}
	}
	return c, tx.Audit("credential.issue", string(id), fmt.Sprintf("service %s terminal %s device %s serial %s", o.order.Service, ses.terminal, ses.device, serialText(i.Serial)))
}

// credentialClaim records a holding that a terminal proves: a signature by the
// credential's key over this connection's nonce and this very device (DESIGN
// D7, req: L1), and says how the service is to be reached and judged. Every
// refusal is the same.
func (s *Server) credentialClaim(ctx context.Context, ses *session, m *transport.CredentialClaim) (outcome, error) {
	if m.Transfer != "" && m.Transfer != transport.TransferCopy && m.Transfer != transport.TransferMove {
		return outcome{}, fmt.Errorf("%w: claim of a %.8q", transport.ErrMalformed, m.Transfer)
	}
	if !ses.given || m.Nonce != ses.nonce {
		return s.claimRefused(ses, m, "the nonce is not this connection's"), nil
	}
	var why string
	var told bool
	reply := &transport.CredentialClaimed{Credential: m.Credential}
	err := s.store.Update(ctx, s.by(ses.actor()), func(tx *store.Tx) error {
		if _, err := ses.stillIn(tx); err != nil {
			return err
		}
		c, err := tx.Credential(m.Credential)
		if errors.Is(err, store.ErrNotFound) {
			why = "there is no such credential"
			return nil
		}
		if err != nil {
			return err
		}
		proven, refused, err := claimProven(tx, ses, m, c)
		if why = refused; why != "" || err != nil {
			return err
		}
		service, err := tx.Service(c.Service)
		if err != nil {
			return err
		}
		reply.ServerName, reply.Endpoints, reply.Anchors = service.DNS[0], service.Endpoints, [][]byte{s.ca.Certificate(ca.Root).Raw}
		told, err = s.putClaim(tx, ses, m, c, proven)
		return err
	})
	if err != nil {
		return outcome{}, err
	}
	if why != "" {
		return s.claimRefused(ses, m, why), nil
	}
	out := outcome{reply: reply}
	if told {
		out.wake = []transport.Name{ses.terminal}
	}
	return out, nil
}

func (s *Server) claimRefused(ses *session, m *transport.CredentialClaim, why string) outcome {
	s.warn(ses, "claim refused", "credential", loggable(m.Credential), "err", why)
	return refusal(transport.FaultRefused, "")
}

// claimed is the certificate that a claim has proven.
type claimed struct {
	store.Certificate
	leaf *x509.Certificate
}

// claimProven says why a claim is refused, or nothing, and then what it has
// proven: a copy may be of a key that was renewed meanwhile.
func claimProven(tx *store.Tx, ses *session, m *transport.CredentialClaim, c store.Credential) (proven claimed, why string, err error) {
	if c.State != store.CredentialActive {
		return proven, "the credential is " + string(c.State), nil
	}
	list, err := tx.CertificatesOf(c.ID)
	if err != nil {
		return proven, "", err
	}
	digest := transport.ClaimDigest(m.Nonce, ses.device, c.ID)
	for _, x := range list {
		leaf, err := x509.ParseCertificate(x.DER)
		if err != nil {
			return proven, "", fmt.Errorf("read certificate %s: %w", serialText(x.Serial), err)
		}
		public, ok := leaf.PublicKey.(*ecdsa.PublicKey)
		if !ok || !ecdsa.VerifyASN1(public, digest[:], m.Signature) {
			continue
		}
		if c.Transfer == transport.TransferNever && x.Device != ses.device {
			if recovered, err := tx.Recovered(ses.device, x.Device); err != nil || !recovered {
				return proven, "this credential must never travel, and here it is on another device", err
			}
		}
		return claimed{x, leaf}, "", nil
	}
	return proven, "the signature is not by a key of the credential over this nonce and device", nil
}

// putClaim records the holding. The terminal knows best since when it has it,
// unless its clock is ahead or says a time before the certificate was made. A
// device that claims what was issued to it comes back after its removal.
//
// A claim of its own past is one more thing: a device that says it has destroyed
// a key in a move, and proves to have it.
func (s *Server) putClaim(tx *store.Tx, ses *session, m *transport.CredentialClaim, c store.Credential, proven claimed) (told bool, err error) {
	h := store.Holding{Credential: c.ID, Device: ses.device, Terminal: ses.terminal, Since: tx.By().At, Origin: store.OriginCopy, Source: m.Source, Txn: m.Txn, Serial: proven.Serial}
	switch {
	case proven.Device == ses.device && m.Txn == nil:
		h.Origin, h.Source = store.OriginIssue, transport.DeviceID{}
	case m.Transfer == transport.TransferMove, m.Transfer == "" && c.Transfer == transport.TransferMove:
		h.Origin = store.OriginMove
	}
	k, again, disabled, err := revived(tx, ses, c.ID, m.Txn)
	if err != nil || disabled {
		return false, err
	}
	if again {
		if err := s.revive(tx, k); err != nil {
			return false, err
		}
	}
	if at := time.Unix(m.Time, 0); at.After(proven.leaf.NotBefore) && at.Before(h.Since) {
		h.Since = at
	}
	if h.Origin != store.OriginIssue {
		// With the key of its store the earlier device has lost all that it held.
		switch recovered, err := tx.Recovered(ses.device, m.Source); {
		case err != nil:
			return false, err
		case recovered:
			h.Origin = store.OriginMove
			if err := tx.EndHoldingOn(c.ID, m.Source); err != nil {
				return false, err
			}
		}
	}
	changed, err := tx.PutHolding(h)
	if err != nil || !changed {
		return false, err
	}
	if h.Origin == store.OriginIssue {
		return false, tx.Audit("credential.claim", string(c.ID), fmt.Sprintf("terminal %s device %s has it still", ses.terminal, ses.device))
	}
	by := ""
	if m.Txn != nil {
		by = " in key copy " + m.Txn.String()
	}
	err = errors.Join(tx.SetCredential(c.ID, c.State, string(h.Origin)),
		tx.Audit("credential."+string(h.Origin), string(c.ID), fmt.Sprintf("to terminal %s device %s from device %s%s", ses.terminal, ses.device, m.Source, by)),
		resolve(tx, c.ID))
	if err != nil {
		return false, err
	}
	return s.ruleForNew(tx, ses.terminal, c)
}
