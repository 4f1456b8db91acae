package transport

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// One list of revoked certificates (RFC 5280 CRL): reading it, and whether it
// may take the place of another. Gates read the service CA's, terminals the
// server CA's. Nothing here keeps state or asks the clock: how old a list may
// be is for those who use it.

// ErrRevocationList is any list that may not be used.
var ErrRevocationList = errors.New("revocation list refused")

// A ListIssuerID names a CA by subject and key, so that a CA whose certificate
// is renewed stays the same one.
type ListIssuerID [sha256.Size]byte

// A ListIssuer is a CA whose lists are taken. ParseListIssuer makes it.
type ListIssuer struct {
	ID          ListIssuerID
	Certificate *x509.Certificate
}

// ParseListIssuer reads the certificate of a CA that may sign lists: under the
// roots at the given time, for CRLs, and for certificates of that usage.
func ParseListIssuer(der []byte, roots *x509.CertPool, usage x509.ExtKeyUsage, at time.Time) (ListIssuer, error) {
	i, err := ReadListIssuer(der)
	if err != nil {
		return ListIssuer{}, err
	}
	if _, err := i.Certificate.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
		return ListIssuer{}, fmt.Errorf("%w: its issuer %q: %w", ErrRevocationList, i.Certificate.Subject, err)
	}
	return i, nil
}

// ReadListIssuer reads one that was verified before it was kept.
func ReadListIssuer(der []byte) (ListIssuer, error) {
	if len(der) == 0 || len(der) > MaxCertificate {
		return ListIssuer{}, fmt.Errorf("%w: issuer certificate of %d bytes, want 1 to %d", ErrRevocationList, len(der), MaxCertificate)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return ListIssuer{}, fmt.Errorf("%w: issuer: %w", ErrRevocationList, err)
	}
	if !c.BasicConstraintsValid || !c.IsCA || c.KeyUsage&x509.KeyUsageCRLSign == 0 {
		return ListIssuer{}, fmt.Errorf("%w: its issuer %q is not a CA that may sign lists", ErrRevocationList, c.Subject)
	}
	h := sha256.New()
	h.Write(c.RawSubject) // DER: it says its own length
	h.Write(c.RawSubjectPublicKeyInfo)
	return ListIssuer{ListIssuerID(h.Sum(nil)), c}, nil
}

// Signed says whether the issuer signed the certificate.
func (i ListIssuer) Signed(c *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, i.Certificate.RawSubject) && c.CheckSignatureFrom(i.Certificate) == nil
}

// A Serial is a certificate's serial number, in hexadecimal.
type Serial string

// NewSerial writes n down.
func NewSerial(n *big.Int) Serial { return Serial(n.Text(16)) }

// A RevocationList is a list that its issuer signed. It does not change.
type RevocationList struct {
	Issuer     ListIssuer
	DER        []byte
	Number     int64
	This, Next time.Time // thisUpdate and nextUpdate
	revoked    map[Serial]struct{}
}

// Has says whether the certificate of that serial number is revoked.
func (l *RevocationList) Has(n Serial) bool {
	_, ok := l.revoked[n]
	return ok
}

// Len is how many certificates are on it.
func (l *RevocationList) Len() int { return len(l.revoked) }

// ParseRevocationList reads a list by this issuer, in DER or PEM, of at most
// MaxCRL bytes. A list that covers only a part (delta, partition, indirect) says
// so in a critical extension and is refused: what is not on it might still be
// revoked.
func ParseRevocationList(data []byte, by ListIssuer) (*RevocationList, error) {
	if len(data) > MaxCRL {
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", ErrRevocationList, len(data), MaxCRL)
	}
	if block, rest := pem.Decode(data); block != nil && block.Type == "X509 CRL" && len(bytes.TrimSpace(rest)) == 0 {
		data = block.Bytes
	}
	raw, err := x509.ParseRevocationList(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRevocationList, err)
	}
	switch {
	case len(raw.Raw) != len(data):
		return nil, fmt.Errorf("%w: %d bytes after its end", ErrRevocationList, len(data)-len(raw.Raw))
	case !bytes.Equal(raw.RawIssuer, by.Certificate.RawSubject):
		return nil, fmt.Errorf("%w: it is by %q, not by %q", ErrRevocationList, raw.Issuer, by.Certificate.Subject)
	}
	if err := raw.CheckSignatureFrom(by.Certificate); err != nil {
		return nil, fmt.Errorf("%w: signature: %w", ErrRevocationList, err)
	}
	l := &RevocationList{Issuer: by, DER: data, This: raw.ThisUpdate, Next: raw.NextUpdate, revoked: make(map[Serial]struct{}, len(raw.RevokedCertificateEntries))}
	for _, e := range raw.Extensions {
		if e.Critical {
			return nil, fmt.Errorf("%w: critical extension %v: it may cover only a part", ErrRevocationList, e.Id)
		}
	}
	for _, e := range raw.RevokedCertificateEntries {
		for _, x := range e.Extensions {
			if x.Critical {
				return nil, fmt.Errorf("%w: critical extension %v of an entry", ErrRevocationList, x.Id)
			}
		}
		l.revoked[NewSerial(e.SerialNumber)] = struct{}{}
	}
	if raw.Number == nil || !raw.Number.IsInt64() || raw.Number.Sign() < 0 {
		return nil, fmt.Errorf("%w: it has no number, or none that fits 63 bits", ErrRevocationList)
	}
	l.Number = raw.Number.Int64()
	if !l.Next.After(l.This) {
		return nil, fmt.Errorf("%w: it has no nextUpdate after its thisUpdate", ErrRevocationList)
	}
	return l, nil
}

// Order compares l with the list of the same issuer that is held, nil if there
// is none: +1 newer, 0 the same, and an error when it may not take the held
// one's place.
func (l *RevocationList) Order(held *RevocationList) (int, error) {
	switch {
	case held == nil || l.Number > held.Number:
		return +1, nil
	case bytes.Equal(l.DER, held.DER):
		return 0, nil
	case l.Number < held.Number:
		return 0, fmt.Errorf("%w: number %d after number %d: an old list, or a server restored from an old backup", ErrRevocationList, l.Number, held.Number)
	case l.This.After(held.This):
		return +1, nil // signed anew under the same number
	}
	return 0, fmt.Errorf("%w: another list with the same number %d, and not a later one", ErrRevocationList, l.Number)
}
