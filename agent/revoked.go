package agent

import (
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"sync"
	"time"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

// Which gates may not be talked to any more (req: L10): the server CA's list of
// revoked certificates, which the management server pushes on connect and at
// every change. It is kept, so that it also holds after a restart without the
// server. Relays ask it at each handshake, and again when it changes; the link
// asks it about the management server itself.
//
// No list, or an old one, stops nothing: a terminal works for weeks without the
// server. Whoever keeps a terminal from its server thereby keeps it from
// learning of revocations. For the same reason a list's times are not judged:
// what it revokes stays revoked.

const (
	bucketRevoked = "revoked" // issuer's id in hexadecimal → revokedRecord
	// maxListIssuers is how many server CAs' lists are kept: one, and successors.
	maxListIssuers = 4
)

// revokedRecord is one issuer's list.
type revokedRecord struct {
	Issuer    []byte `cbor:"1,keyasint"` // DER
	CRL       []byte `cbor:"2,keyasint"` // DER; empty: none has come yet
	Announced int64  `cbor:"3,keyasint"` // the highest number that the server spoke of
}

// heldList is a revokedRecord, read.
type heldList struct {
	issuer    transport.ListIssuer
	list      *transport.RevocationList // nil: none has come yet
	announced int64
}

func (h *heldList) number() int64 {
	if h.list == nil {
		return -1
	}
	return h.list.Number
}

// revoked is how many gates it revokes; nil and a list that is not here count as none.
func (h *heldList) revoked() int {
	if h == nil || h.list == nil {
		return 0
	}
	return h.list.Len()
}

// revocations are the lists in force.
type revocations struct {
	mu      sync.RWMutex
	held    map[transport.ListIssuerID]*heldList // guarded by mu
	problem string                               // guarded by mu: why the last one was not taken
}

// RevokedStatus is what a terminal knows of revoked gates.
type RevokedStatus struct {
	Number  int64     `json:"number"`            // of the newest list
	Issued  time.Time `json:"issued,omitzero"`   // of the newest list
	Revoked int       `json:"revoked"`           // certificates on all lists
	Problem string    `json:"problem,omitempty"` // why not all is known
}

// check says why the server that proved itself with this chain may not be
// talked to.
func (r *revocations) check(chain []*x509.Certificate) error {
	if len(chain) == 0 {
		return nil
	}
	leaf := chain[0]
	serial := transport.NewSerial(leaf.SerialNumber)
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, h := range r.held {
		if h.list != nil && h.list.Has(serial) && h.issuer.Signed(leaf) {
			return fmt.Errorf("%w: the management server has revoked it (serial %s): ask the administrator what became of this gate", transport.ErrCertificate, serial)
		}
	}
	return nil
}

// load reads what is kept. What cannot be read is as good as absent.
func (r *revocations) load(tx *store.Tx) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = map[transport.ListIssuerID]*heldList{}
	return tx.Each(bucketRevoked, func(_ string, decode func(any) error) error {
		var rec revokedRecord
		if err := decode(&rec); err != nil {
			return err
		}
		h, err := rec.read()
		if err != nil {
			r.problem = err.Error()
			return nil
		}
		r.held[h.issuer.ID] = h
		return nil
	})
}

func (rec *revokedRecord) read() (h *heldList, err error) {
	h = &heldList{announced: rec.Announced}
	if h.issuer, err = transport.ReadListIssuer(rec.Issuer); err != nil || len(rec.CRL) == 0 {
		return h, err
	}
	h.list, err = transport.ParseRevocationList(rec.CRL, h.issuer)
	return h, err
}

// status is nil while nothing is known.
func (r *revocations) status() *RevokedStatus {
	r.mu.RLock()
	defer r.mu.RUnlock()
	s := &RevokedStatus{Problem: r.problem}
	for _, h := range r.held {
		if h.list != nil {
			s.Revoked += h.list.Len()
			if h.list.This.After(s.Issued) {
				s.Number, s.Issued = h.list.Number, h.list.This.UTC()
			}
		}
		if s.Problem == "" && h.number() < h.announced {
			s.Problem = fmt.Sprintf("list %d is too large to be sent: what it revokes beyond the one that is here is not known", h.announced)
		}
	}
	if s.Problem == "" && s.Issued.IsZero() {
		return nil
	}
	return s
}

// put takes a list into force.
func (r *revocations) put(h *heldList) (before *heldList) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before = r.held[h.issuer.ID]
	r.held[h.issuer.ID], r.problem = h, ""
	return before
}

func (r *revocations) failed(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.problem = err.Error()
}

// next is what m makes of the list that is held for its issuer; news is false
// if that changes nothing.
func (r *revocations) next(m *transport.ServiceRevoked, by transport.ListIssuer) (next *heldList, news bool, err error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	next = &heldList{issuer: by, announced: m.Number}
	old := r.held[by.ID]
	switch {
	case old == nil && len(r.held) >= maxListIssuers:
		return nil, false, fmt.Errorf("%w: it is by a CA beyond the %d whose lists are kept", transport.ErrRevocationList, maxListIssuers)
	case old != nil && m.Number < max(old.announced, old.number()):
		return nil, false, fmt.Errorf("%w: number %d after number %d: the server was restored from an old backup; what it revokes is not known here until it has counted up again",
			transport.ErrRevocationList, m.Number, max(old.announced, old.number()))
	case old != nil:
		next.list = old.list
	}
	if len(m.CRL) == 0 {
		return next, old == nil || old.announced != m.Number, nil // announced only: there is no way to fetch it
	}
	if len(m.CRL) > transport.MaxPushedCRL {
		return nil, false, fmt.Errorf("%w: %d bytes, the limit is %d", transport.ErrRevocationList, len(m.CRL), transport.MaxPushedCRL)
	}
	list, err := transport.ParseRevocationList(m.CRL, by)
	if err == nil && list.Number != m.Number {
		err = fmt.Errorf("%w: announced as number %d, it is number %d", transport.ErrRevocationList, m.Number, list.Number)
	}
	if err != nil {
		return nil, false, err
	}
	order, err := list.Order(next.list)
	next.list = list
	return next, order > 0, err
}

// revoked takes in which gates the server has revoked.
func (s *session) revoked(m *transport.ServiceRevoked) error {
	err := s.takeRevoked(m, s.roots)
	if err != nil {
		s.revocations.failed(err)
		return fmt.Errorf("list of revoked gates: %w", err)
	}
	return nil
}

// takeRevoked checks, keeps and puts into force.
func (v *vault) takeRevoked(m *transport.ServiceRevoked, roots *x509.CertPool) error {
	by, err := transport.ReadListIssuer(m.Issuer)
	if err != nil {
		return err
	}
	at := v.clock.Judge([]*x509.Certificate{by.Certificate})
	if by, err = transport.ParseListIssuer(m.Issuer, roots, x509.ExtKeyUsageServerAuth, at); err != nil {
		return err
	}
	next, news, err := v.revocations.next(m, by)
	if err != nil {
		return err
	}
	before := v.revocations.put(next).revoked()
	if !news {
		return nil
	}
	v.relisted() // before it is kept: a full disk must not delay a revocation
	record := revokedRecord{Issuer: m.Issuer, Announced: next.announced}
	if next.list != nil {
		record.CRL = next.list.DER
	}
	if next.number() < next.announced {
		v.log.Warn("list of revoked gates is too large to be sent; what it adds is not known here", "number", next.announced, "held", next.number())
	} else {
		v.log.Info("list of revoked gates taken", "number", next.number(), "revoked", next.list.Len())
	}
	return v.update(func(tx *store.Tx) error {
		err := tx.Put(bucketRevoked, hex.EncodeToString(by.ID[:]), &record)
		if err == nil && next.revoked() != before { // a list is also made anew when nothing has changed
			err = v.audit(tx, audit.GatesRevoked, fmt.Sprintf("list %d", m.Number), "%d gates", next.revoked())
		}
		return err
	})
}
