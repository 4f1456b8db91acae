package gate

import (
	"crypto/x509"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"sync"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// The lists that are held, one for each issuing CA, and since when nobody has
// confirmed them.
//
// What confirms a list is not that some HTTP server still sends it: whoever
// sits on that path can send an old one for ever. It is confirmed
//   - as of now, when the management server pushes or announces it over the
//     link, and as long as that link then stays up: the server tells of every
//     change (transport.ServiceRevoked);
//   - as of its own signed thisUpdate, when it is fetched.

// crls is the set. Its methods may be called from several goroutines.
type crls struct {
	path   string
	maxAge time.Duration
	log    *slog.Logger

	mu     sync.RWMutex
	held   map[transport.ListIssuerID]*heldCRL // guarded by mu
	loaded bool                                // guarded by mu: the file has been read
	dirty  bool                                // guarded by mu: the file is to be written
	saved  moment                              // guarded by mu: when it was written last
	// problem is why the last message could not be laid to any issuer's list;
	// guarded by mu.
	problem string

	writing sync.Mutex // held while the file is written; taken before mu
}

// heldCRL is what is known about one issuer's list. list is nil while a list
// is announced and not here yet.
type heldCRL struct {
	issuer    transport.ListIssuer
	list      *transport.RevocationList
	url       string
	announced int64 // the highest number that the server spoke of
	linked    bool  // announced over a link that has been up since
	confirmed moment
	problem   string // why the last one was not taken; empty: it was
}

func newCRLs(path string, maxAge time.Duration, log *slog.Logger) *crls {
	return &crls{path: path, maxAge: maxAge, log: log, held: map[transport.ListIssuerID]*heldCRL{}}
}

// issuerOf finds the CA that signed a certificate among those whose lists are
// held; the zero id is none of them. It does not go by what the terminal sent along.
func (s *crls) issuerOf(leaf *x509.Certificate) transport.ListIssuerID {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for id, h := range s.held {
		if h.issuer.Signed(leaf) {
			return id
		}
	}
	return transport.ListIssuerID{}
}

// check says whether the certificate of that issuer and serial number may be
// used: Revoked, NoList, StaleList or Admitted. [GATE-3]
func (s *crls) check(id transport.ListIssuerID, n transport.Serial, now moment) Reason {
	s.mu.RLock()
	defer s.mu.RUnlock()
	h := s.held[id]
	if h == nil || h.list == nil {
		return NoList
	}
	if h.list.Has(n) {
		return Revoked
	}
	if h.age(now) > s.maxAge {
		return StaleList
	}
	return Admitted
}

// age is how long ago the list was last confirmed, by the clock that says more.
func (h *heldCRL) age(now moment) time.Duration {
	return max(now.judged.Sub(h.confirmed.judged), now.steady.Sub(h.confirmed.steady), 0)
}

// confirm carries the confirmation on while the link stays up.
func (s *crls) confirm(now moment, linked bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.held {
		h.linked = h.linked && linked
		if h.linked && !h.behind() {
			h.confirmed = now
			s.dirty = s.dirty || now.steady.Sub(s.saved.steady) > s.maxAge/confirmWrites
		}
	}
}

// pushed takes in what the management server says over the link. fetch is true
// when a list is still to be fetched. Whatever cannot be used also ends the
// confirmation of what is held: the server spoke of a change.
func (s *crls) pushed(m *transport.ServiceRevoked, roots *x509.CertPool, now moment) (fetch bool, err error) {
	by, err := parseIssuer(m.Issuer, roots, now.judged)
	if err == nil {
		err = checkURL(m.URL)
	}
	var list *transport.RevocationList
	var bad error
	if err == nil && len(m.CRL) > 0 {
		if list, bad = parseCRL(m.CRL, by, now.judged); bad == nil && list.Number != m.Number {
			bad = fmt.Errorf("%w: announced as number %d, it is number %d", errList, m.Number, list.Number)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var h *heldCRL
	if err == nil {
		h, err = s.of(by, now)
	}
	if err != nil {
		s.problem = err.Error()
		for _, h := range s.held {
			h.linked = false
		}
		return false, err
	}
	s.problem = ""
	if m.Number < max(h.announced, h.number()) && h.linked {
		return false, nil // overtaken: the server told a newer one over this very link
	}
	if err := h.announce(m); err != nil {
		return false, err
	}
	if list != nil && bad == nil {
		bad = s.take(h, list, now)
	}
	if bad != nil {
		h.problem, h.linked = bad.Error(), false
		return true, bad
	}
	if h.behind() {
		return true, nil
	}
	h.confirmed, h.problem = now, ""
	return false, nil
}

// announce notes the number that the server speaks of.
func (h *heldCRL) announce(m *transport.ServiceRevoked) error {
	if known := max(h.announced, h.number()); m.Number < known {
		err := fmt.Errorf("%w: the server announces number %d after number %d", errList, m.Number, known)
		h.problem, h.linked = err.Error(), false
		return err
	}
	h.url, h.announced, h.linked = m.URL, m.Number, true
	return nil
}

// number of the list that is held, -1 when there is none.
func (h *heldCRL) number() int64 {
	if h.list == nil {
		return -1
	}
	return h.list.Number
}

// behind says that the server spoke of a newer list than the one held.
func (h *heldCRL) behind() bool { return h.list == nil || h.list.Number < h.announced }

// fetched takes in a list that came over HTTP for this issuer.
func (s *crls) fetched(id transport.ListIssuerID, data []byte, now moment) error {
	s.mu.RLock()
	h := s.held[id]
	var by transport.ListIssuer
	if h != nil {
		by = h.issuer
	}
	s.mu.RUnlock()
	if h == nil {
		return nil
	}
	list, err := parseCRL(data, by, now.judged) // outside of the lock: it may be large
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		err = s.take(h, list, now)
	}
	if err != nil {
		h.problem = err.Error()
	}
	return err
}

// failed notes why a fetch brought nothing.
func (s *crls) failed(id transport.ListIssuerID, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.held[id]; h != nil {
		h.problem = err.Error()
	}
}

// of finds or makes the place of an issuer's list.
func (s *crls) of(by transport.ListIssuer, now moment) (*heldCRL, error) {
	if h := s.held[by.ID]; h != nil {
		h.issuer = by // the same key, perhaps a renewed certificate
		return h, nil
	}
	if len(s.held) >= maxIssuers {
		maps.DeleteFunc(s.held, func(_ transport.ListIssuerID, h *heldCRL) bool {
			return now.judged.After(h.issuer.Certificate.NotAfter)
		})
	}
	if len(s.held) >= maxIssuers {
		return nil, fmt.Errorf("%w: it is by a CA beyond the %d whose lists are held", errList, maxIssuers)
	}
	h := &heldCRL{issuer: by}
	s.held[by.ID] = h
	return h, nil
}

// take puts a list just received into its place. Its errors leave all as it was.
func (s *crls) take(h *heldCRL, list *transport.RevocationList, now moment) error {
	if err := current(list, now.judged); err != nil {
		return err
	}
	order, err := replaces(list, h.list)
	if err != nil {
		return err
	}
	h.problem = ""
	if order > 0 {
		h.list, s.dirty = list, true
		s.log.Info("revocation list taken", "issuer", h.issuer.Certificate.Subject.CommonName, "number", list.Number, "revoked", list.Len())
	}
	if h.linked && !h.behind() {
		h.confirmed = now
	} else if at := list.This; at.After(h.confirmed.judged) {
		at = minTime(at, now.judged)
		h.confirmed = moment{judged: at, steady: now.steady.Add(at.Sub(now.judged))}
	}
	return nil
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// target is one list to fetch.
type target struct {
	id  transport.ListIssuerID
	url string
}

// targets are the lists to fetch; behind says whether one of them is known to
// be older than what the server announced.
func (s *crls) targets() (list []target, behind bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for id, h := range s.held {
		if h.url == "" {
			continue
		}
		list = append(list, target{id, h.url})
		behind = behind || h.behind()
	}
	return list, behind
}

// checkURL wants a plain web address: it is fetched from this machine.
func checkURL(s string) error {
	if s == "" {
		return nil
	}
	u, err := url.Parse(s)
	if err != nil || len(s) > maxURL || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || u.Fragment != "" {
		return fmt.Errorf("%w: its address is not a plain http or https one", errList)
	}
	return nil
}
