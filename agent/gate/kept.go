package gate

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
)

// The file that keeps the lists: they are signed, so it needs no seal. The
// times of confirmation are not; whoever can write here owns the gate anyway.

const crlFileVersion = 1

type crlFile struct {
	Version uint8       `cbor:"1,keyasint"`
	Lists   []crlRecord `cbor:"2,keyasint"`
}

type crlRecord struct {
	Issuer    []byte `cbor:"1,keyasint"` // DER
	URL       string `cbor:"2,keyasint"`
	CRL       []byte `cbor:"3,keyasint"` // DER
	Announced int64  `cbor:"4,keyasint"`
	Confirmed int64  `cbor:"5,keyasint"` // Unix seconds
}

// load reads the file, once. What is wrong with it is logged, and the gate
// waits for a list from the server.
func (s *crls) load(roots *x509.CertPool, now moment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.loaded {
		return
	}
	s.loaded, s.saved = true, now
	if err := s.read(roots, now); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("kept revocation lists cannot be used; the gate waits for the server's", "file", s.path, "err", err)
	}
}

func (s *crls) read(roots *x509.CertPool, now moment) error {
	data, err := os.ReadFile(s.path)
	if err != nil {
		return err
	}
	var f crlFile
	if err := transport.Unmarshal(data, &f, maxIssuers*(transport.MaxCRL+transport.MaxCertificate+maxURL)); err != nil {
		return err
	}
	if f.Version != crlFileVersion || len(f.Lists) > maxIssuers {
		return fmt.Errorf("version %d with %d lists, this program reads version %d", f.Version, len(f.Lists), crlFileVersion)
	}
	for _, r := range f.Lists {
		err = errors.Join(err, s.restore(r, roots, now))
	}
	return err
}

// restore puts one kept list into its place, unless a newer one came first.
// It may be past its nextUpdate: crl_max_age decides how long it serves.
func (s *crls) restore(r crlRecord, roots *x509.CertPool, now moment) error {
	by, err := parseIssuer(r.Issuer, roots, now.judged)
	if err != nil {
		return err
	}
	if err := checkURL(r.URL); err != nil {
		return err
	}
	list, err := parseCRL(r.CRL, by, now.judged)
	if err != nil {
		return err
	}
	h, err := s.of(by, now)
	if err != nil {
		return err
	}
	if order, err := replaces(list, h.list); err != nil || order == 0 {
		return nil // a newer one came first
	}
	if h.url == "" {
		h.url = r.URL
	}
	at := minTime(time.Unix(r.Confirmed, 0), now.judged)
	h.linked = h.linked && h.announced >= list.Number
	h.list, h.announced = list, max(h.announced, r.Announced)
	h.confirmed = moment{judged: at, steady: now.steady.Add(at.Sub(now.judged))}
	s.log.Info("kept revocation list in use", "issuer", by.Certificate.Subject.CommonName, "number", list.Number, "confirmed", stamp(at))
	return nil
}

// flush writes the file if there is something new. It is no part of taking a
// list: a slow disk must not keep a revocation from taking effect. A failure
// is logged; the lists serve on, and the next change tries again.
func (s *crls) flush(now moment) {
	s.writing.Lock()
	defer s.writing.Unlock()
	f, ok := s.unsaved(now)
	if !ok {
		return
	}
	data, err := transport.Marshal(f)
	if err == nil {
		err = hsm.WriteFile(s.path, data, 0o600)
	}
	if err != nil {
		s.log.Error("cannot keep the revocation lists over a restart: make the state directory writable", "file", s.path, "err", err)
	}
}

func (s *crls) unsaved(now moment) (crlFile, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.dirty || !s.loaded {
		return crlFile{}, false // never over a file that is not read yet
	}
	s.dirty, s.saved = false, now
	f := crlFile{Version: crlFileVersion, Lists: []crlRecord{}}
	for _, id := range slices.SortedFunc(maps.Keys(s.held), func(a, b transport.ListIssuerID) int { return bytes.Compare(a[:], b[:]) }) {
		if h := s.held[id]; h.list != nil {
			f.Lists = append(f.Lists, crlRecord{
				Issuer: h.issuer.Certificate.Raw, URL: h.url, CRL: h.list.DER,
				Announced: h.announced, Confirmed: h.confirmed.judged.Unix(),
			})
		}
	}
	return f, true
}
