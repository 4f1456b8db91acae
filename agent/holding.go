package agent

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
)

// What this device holds (DESIGN D7): credentials, and where they came from. A
// holding that the server did not issue to this device is claimed, with proof,
// as soon as there is a server to claim it at.

const (
	bucketCredentials = "credentials" // credential id → holdingRecord
	bucketClaims      = "claims"      // credential id → claimRecord
)

// An Origin is how a credential came to this device.
type Origin string

// The ways for a credential to come here.
const (
	OriginIssue Origin = "issue" // made here, certified by the server
	OriginCopy  Origin = "copy"  // copied from another terminal, which still has it
	OriginMove  Origin = "move"  // moved from another terminal, which has it no more
	// OriginImport: an administrator brought it.
	OriginImport Origin = "import"
)

// holdingRecord is one credential that this device holds.
type holdingRecord struct {
	Record transport.CredentialRecord `cbor:"1,keyasint"`
	Origin Origin                     `cbor:"2,keyasint"`
	Since  int64                      `cbor:"3,keyasint"` // Unix seconds; 0: the clock was not plausible
	// Source and SourceName say where a copied one came from; the name is
	// empty if the source proved none.
	Source     transport.DeviceID `cbor:"4,keyasint"`
	SourceName transport.Name     `cbor:"5,keyasint"`
	// Away is set while it moves to another terminal: this one may not use it.
	Away *awayRecord `cbor:"6,keyasint,omitempty"`
	// Txn is the key copy that brought it; nil for others, and for earlier ones.
	Txn *transport.ID `cbor:"7,keyasint,omitempty"`
}

// awayRecord says where a credential has gone.
type awayRecord struct {
	Txn  transport.ID       `cbor:"1,keyasint"`
	Peer transport.DeviceID `cbor:"2,keyasint"`
	Name transport.Name     `cbor:"3,keyasint"` // empty if the other terminal proved none
}

// String is why it cannot be used.
func (w *awayRecord) String() string {
	who := "device " + w.Peer.Short()
	if w.Name != "" {
		who = "terminal " + string(w.Name)
	}
	return fmt.Sprintf("moving to %s by key copy %s", who, short(w.Txn))
}

func (h *holdingRecord) wipe() {
	if h != nil {
		h.Record.Secret.Bytes.Wipe()
	}
}

// claimRecord is a holding that the server does not know of yet.
type claimRecord struct {
	Source transport.DeviceID `cbor:"1,keyasint"`
	Time   int64              `cbor:"2,keyasint"`
	// Fault is why the server refused it last. A refused claim rests until the
	// next connection.
	Fault string `cbor:"3,keyasint"`
	// Txn and Transfer say which key copy brought it.
	Txn      *transport.ID      `cbor:"4,keyasint,omitempty"`
	Transfer transport.Transfer `cbor:"5,keyasint,omitempty"`
}

// holding looks a credential up, nil if it is not here. The caller wipes it.
func holding(tx *store.Tx, id transport.Name) (*holdingRecord, error) {
	var h holdingRecord
	found, err := tx.Get(bucketCredentials, string(id), &h)
	if err != nil || !found {
		return nil, err
	}
	return &h, nil
}

// hold writes a holding. What the server issued it also knows of.
func hold(tx *store.Tx, h *holdingRecord) error {
	if err := tx.Put(bucketCredentials, string(h.Record.ID), h); err != nil {
		return err
	}
	if h.Origin == OriginIssue {
		return tx.Delete(bucketClaims, string(h.Record.ID))
	}
	return claimLater(tx, h, h.Source)
}

// claimLater has a holding reported. One that this terminal cannot prove, or has
// given up, is not claimed: the report of the key copy has to do.
func claimLater(tx *store.Tx, h *holdingRecord, source transport.DeviceID) error {
	if h.Record.Kind != transport.KindCertificate || h.Away != nil {
		return tx.Delete(bucketClaims, string(h.Record.ID))
	}
	c := &claimRecord{Source: source, Time: h.Since, Txn: h.Txn}
	if c.Txn != nil {
		c.Transfer = transport.TransferCopy
		if h.Origin == OriginMove {
			c.Transfer = transport.TransferMove
		}
	}
	return tx.Put(bucketClaims, string(h.Record.ID), c)
}

// supersede invalidates what was issued to this device for the same end before:
// a device has one credential of its own for a service (req: L6), and the
// server issues another only when the one before is no longer good.
func (v *vault) supersede(tx *store.Tx, by *transport.CredentialRecord) error {
	return eachHolding(tx, func(h *holdingRecord) error {
		r := &h.Record
		if h.Origin != OriginIssue || r.ID == by.ID || r.Service != by.Service || r.Usage != by.Usage || r.State != transport.CredentialActive {
			return nil
		}
		r.State = transport.CredentialInvalid
		return errors.Join(tx.Put(bucketCredentials, string(r.ID), h), v.audit(tx, audit.Invalidated, r.ID, "%s took its place", by.ID))
	})
}

// eachHolding calls fn for every holding and wipes it afterwards.
func eachHolding(tx *store.Tx, fn func(*holdingRecord) error) error {
	return tx.Each(bucketCredentials, func(_ string, decode func(any) error) error {
		var h holdingRecord
		defer h.wipe()
		if err := decode(&h); err != nil {
			return err
		}
		return fn(&h)
	})
}

// claimEntry is a claim with its credential's id.
type claimEntry struct {
	id transport.Name
	claimRecord
}

// openClaims lists claims, at most limit, without those to skip.
func openClaims(tx *store.Tx, limit int, skip ...map[transport.Name]bool) (list []claimEntry, err error) {
	err = tx.Each(bucketClaims, func(key string, decode func(any) error) error {
		c := claimEntry{id: transport.Name(key)}
		switch {
		case len(list) == limit:
			return store.ErrStop
		case slices.ContainsFunc(skip, func(m map[transport.Name]bool) bool { return m[c.id] }):
			return nil
		}
		list = append(list, c)
		return decode(&list[len(list)-1].claimRecord)
	})
	return list, err
}

// claim sends proofs of holding, sendAtOnce at a time.
func (s *session) claim() error {
	if s.nonce == nil {
		return nil // the first poll brings one
	}
	var open []claimEntry
	err := s.store.View(func(tx *store.Tx) (err error) {
		open, err = openClaims(tx, sendAtOnce-len(s.out), s.claims, s.refused)
		return err
	})
	if err != nil {
		return err
	}
	for _, c := range open {
		s.claims[c.id] = true
		if err := s.claimOne(c); err != nil {
			return fmt.Errorf("claim credential %s: %w", c.id, err)
		}
	}
	return nil
}

func (s *session) claimOne(c claimEntry) error {
	var h *holdingRecord
	err := s.store.View(func(tx *store.Tx) (err error) {
		h, err = holding(tx, c.id)
		return err
	})
	if err != nil {
		return err
	}
	defer h.wipe()
	if h == nil || h.Away != nil {
		return s.update(func(tx *store.Tx) error { return tx.Delete(bucketClaims, string(c.id)) })
	}
	chain, err := transport.ParseChain(h.Record.Chain)
	if err != nil {
		return err
	}
	key, err := signer(s.module, &h.Record.Secret, chain[0])
	if err != nil {
		return err
	}
	digest := transport.ClaimDigest(*s.nonce, s.device, c.id)
	signature, err := key.Sign(s.random, digest[:], crypto.SHA256)
	if err != nil {
		return err
	}
	return s.say(&transport.CredentialClaim{Credential: c.id, Nonce: *s.nonce, Source: c.Source, Time: c.Time, Signature: signature, Txn: c.Txn, Transfer: c.Transfer}, question{claim: c.id})
}

// claimTaken: the server has the holding in its inventory. How the service is
// reached and judged is the server's to say, not the terminal's that it was
// copied from.
func (s *session) claimTaken(m *transport.CredentialClaimed) error {
	if _, err := transport.ParseName(string(m.Credential)); err != nil {
		return fmt.Errorf("%w: %w", transport.ErrMalformed, err)
	}
	if err := checkReach(m.ServerName, m.Endpoints, m.Anchors); err != nil {
		return fmt.Errorf("claimed credential %s: %w", m.Credential, err)
	}
	err := s.update(func(tx *store.Tx) error {
		if err := tx.Delete(bucketClaims, string(m.Credential)); err != nil || m.ServerName == "" {
			return err
		}
		h, err := holding(tx, m.Credential)
		defer h.wipe()
		if err != nil || h == nil {
			return err
		}
		h.Record.ServerName, h.Record.Endpoints, h.Record.Anchors = m.ServerName, m.Endpoints, m.Anchors
		return tx.Put(bucketCredentials, string(m.Credential), h)
	})
	if err != nil {
		return err
	}
	delete(s.claims, m.Credential) // should it be claimed anew: it may come back from where it went
	s.log.Info("holding reported", "credential", m.Credential)
	return errors.Join(s.reconciled(), s.claim())
}

// claimRefused keeps the reason for status.
func (s *session) claimRefused(id transport.Name, f *transport.Fault) error {
	if f.Code == transport.FaultLater {
		return nil
	}
	s.refused[id] = true
	s.log.Warn("holding not accepted by the server", "credential", id, "err", f)
	return s.update(func(tx *store.Tx) error {
		var c claimRecord
		found, err := tx.Get(bucketClaims, string(id), &c)
		if err != nil || !found {
			return err
		}
		c.Fault = shorten(f.Error(), transport.MaxDetail)
		return tx.Put(bucketClaims, string(id), &c)
	})
}

// A Credential is one ready for use.
type Credential struct {
	// Record is all about it but the secret, which is empty here.
	Record transport.CredentialRecord
	// Chain is Record.Chain parsed, Anchors are the roots for its service.
	Chain   []*x509.Certificate
	Anchors *x509.CertPool
	// TLS has the private key.
	TLS tls.Certificate
}

// newCredential readies a holding, whose key may be in the module.
func newCredential(h *holdingRecord, module hsm.Keys) (*Credential, error) {
	chain, err := transport.ParseChain(h.Record.Chain)
	if err != nil {
		return nil, fmt.Errorf("credential %s: %w", h.Record.ID, err)
	}
	key, err := signer(module, &h.Record.Secret, chain[0])
	if err != nil {
		return nil, fmt.Errorf("credential %s: %w", h.Record.ID, err)
	}
	c := &Credential{Record: h.Record, Chain: chain, Anchors: x509.NewCertPool()}
	c.Record.Secret = transport.CredentialSecret{Form: h.Record.Secret.Form}
	for _, der := range h.Record.Anchors {
		anchor, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("credential %s: anchor: %w", h.Record.ID, err)
		}
		c.Anchors.AddCert(anchor)
	}
	c.TLS = tls.Certificate{Certificate: h.Record.Chain, PrivateKey: key, Leaf: chain[0]}
	return c, nil
}

// ErrNoCredential is a service for which this device holds nothing usable.
var ErrNoCredential = errors.New("no usable credential")

// pick chooses the credential in force for a service: active, not expired, one
// that was issued to this device before one that was copied, since a copy comes
// with what another terminal says about the service; then the one that lasts
// longest. When there is none it says why.
func pick(tx *store.Tx, clock *Clock, module hsm.Keys, service transport.Name, usage transport.Usage) (*Credential, error) {
	var best *Credential
	var origin Origin // of best
	var problems []string
	err := eachHolding(tx, func(h *holdingRecord) error {
		r := &h.Record
		if r.Kind != transport.KindCertificate || r.Service != service || r.Usage != usage {
			return nil
		}
		if best != nil && (origin != h.Origin && origin == OriginIssue || origin == h.Origin && best.Record.Expires >= r.Expires) {
			return nil
		}
		if why := h.unusable(clock); why != "" {
			if _, expired := expiredSince(r, clock); expired {
				why += "; " + issueAnew("", service)
			}
			problems = append(problems, fmt.Sprintf("%s is %s", r.ID, why))
			return nil
		}
		c, err := newCredential(h, module)
		if err != nil {
			problems = append(problems, err.Error())
			return nil
		}
		best, origin = c, h.Origin
		return nil
	})
	if err != nil || best != nil {
		return best, err
	}
	if len(problems) == 0 {
		return nil, fmt.Errorf("%w for service %s: this terminal holds none; have one issued to it, or copy one from the terminal it replaces", ErrNoCredential, service)
	}
	slices.Sort(problems)
	return nil, fmt.Errorf("%w for service %s: %s", ErrNoCredential, service, problems[0])
}

// unusable says why a credential of this terminal's cannot be used now, or "".
func (h *holdingRecord) unusable(clock *Clock) string {
	if h.Away != nil {
		return h.Away.String()
	}
	return unusable(&h.Record, clock)
}

// unusable says why a credential cannot be used now, whoever has it, or "".
func unusable(r *transport.CredentialRecord, clock *Clock) string {
	if r.State != transport.CredentialActive {
		return "invalidated"
	}
	if r.Kind == transport.KindCertificate {
		if _, err := transport.ParseChain(r.Chain); err != nil {
			return "unreadable"
		}
	}
	if since, expired := expiredSince(r, clock); expired {
		return "expired since " + since.Format("2006-01-02 15:04 UTC")
	}
	return ""
}
