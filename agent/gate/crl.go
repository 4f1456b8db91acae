package gate

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// One list of revoked certificates (RFC 5280 CRL): reading it, and whether it
// may take the place of another. Nothing here keeps state or asks the clock.

// errList is any list that may not be used.
var errList = errors.New("revocation list refused")

// An issuerID names a CA by subject and key, so that a CA whose certificate is
// renewed stays the same one.
type issuerID [sha256.Size]byte

func newIssuerID(c *x509.Certificate) issuerID {
	h := sha256.New()
	h.Write(c.RawSubject) // DER: it says its own length
	h.Write(c.RawSubjectPublicKeyInfo)
	return issuerID(h.Sum(nil))
}

// An issuer is a CA whose lists are taken.
type issuer struct {
	id   issuerID
	cert *x509.Certificate
}

// parseIssuer reads the certificate of a CA that may sign lists: under the
// roots now, for CRLs, and for client certificates.
func parseIssuer(der []byte, roots *x509.CertPool, at time.Time) (issuer, error) {
	if len(der) == 0 || len(der) > transport.MaxCertificate {
		return issuer{}, fmt.Errorf("%w: issuer certificate of %d bytes, want 1 to %d", errList, len(der), transport.MaxCertificate)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return issuer{}, fmt.Errorf("%w: issuer: %w", errList, err)
	}
	if !c.BasicConstraintsValid || !c.IsCA || c.KeyUsage&x509.KeyUsageCRLSign == 0 {
		return issuer{}, fmt.Errorf("%w: its issuer %q is not a CA that may sign lists", errList, c.Subject)
	}
	if _, err := c.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return issuer{}, fmt.Errorf("%w: its issuer %q: %w", errList, c.Subject, err)
	}
	return issuer{newIssuerID(c), c}, nil
}

// signed says whether the issuer signed the certificate.
func (i issuer) signed(c *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, i.cert.RawSubject) && c.CheckSignatureFrom(i.cert) == nil
}

// A crl is a list that its issuer signed. It does not change.
type crl struct {
	issuer     issuer
	der        []byte
	number     int64
	this, next time.Time
	revoked    map[serial]struct{}
}

// A serial is a certificate's serial number, in hexadecimal.
type serial string

func newSerial(n *big.Int) serial { return serial(n.Text(16)) }

// parseCRL reads a list by this issuer, in DER or PEM. A list that covers only
// a part (delta, partition, indirect) says so in a critical extension and is
// refused: what is not on it might still be revoked. [GATE-4]
func parseCRL(data []byte, by issuer, at time.Time) (*crl, error) {
	if len(data) > maxCRL {
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", errList, len(data), maxCRL)
	}
	if block, rest := pem.Decode(data); block != nil && block.Type == "X509 CRL" && len(bytes.TrimSpace(rest)) == 0 {
		data = block.Bytes
	}
	l, err := x509.ParseRevocationList(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errList, err)
	}
	switch {
	case len(l.Raw) != len(data):
		return nil, fmt.Errorf("%w: %d bytes after its end", errList, len(data)-len(l.Raw))
	case !bytes.Equal(l.RawIssuer, by.cert.RawSubject):
		return nil, fmt.Errorf("%w: it is by %q, not by %q", errList, l.Issuer, by.cert.Subject)
	}
	if err := l.CheckSignatureFrom(by.cert); err != nil {
		return nil, fmt.Errorf("%w: signature: %w", errList, err)
	}
	c := &crl{issuer: by, der: data, this: l.ThisUpdate, next: l.NextUpdate, revoked: make(map[serial]struct{}, len(l.RevokedCertificateEntries))}
	for _, e := range l.Extensions {
		if e.Critical {
			return nil, fmt.Errorf("%w: critical extension %v: it may cover only a part", errList, e.Id)
		}
	}
	for _, e := range l.RevokedCertificateEntries {
		for _, x := range e.Extensions {
			if x.Critical {
				return nil, fmt.Errorf("%w: critical extension %v of an entry", errList, x.Id)
			}
		}
		c.revoked[newSerial(e.SerialNumber)] = struct{}{}
	}
	if l.Number == nil || !l.Number.IsInt64() || l.Number.Sign() < 0 {
		return nil, fmt.Errorf("%w: it has no number, or none that fits 63 bits", errList)
	}
	c.number = l.Number.Int64()
	return c, c.checkTimes(at)
}

func (c *crl) checkTimes(at time.Time) error {
	switch {
	case !c.next.After(c.this):
		return fmt.Errorf("%w: it has no nextUpdate after its thisUpdate", errList)
	case c.this.After(at.Add(maxSkew)):
		return fmt.Errorf("%w: it is of %s, which is still to come: compare the clocks of server and gate", errList, stamp(c.this))
	}
	return nil
}

// current says whether a list just received is one that its issuer still
// stands by. A list already held is judged by crl_max_age instead.
func (c *crl) current(at time.Time) error {
	if at.After(c.next) {
		return fmt.Errorf("%w: number %d expired on %s", errList, c.number, stamp(c.next))
	}
	return nil
}

// order compares c with the list that is held: +1 newer, 0 the same, and an
// error when it may not take the held one's place. [GATE-4]
func (c *crl) order(held *crl) (int, error) {
	switch {
	case held == nil || c.number > held.number:
		return +1, nil
	case bytes.Equal(c.der, held.der):
		return 0, nil
	case c.number < held.number:
		return 0, fmt.Errorf("%w: number %d after number %d: an old list, or a server restored from an old backup (then stop the gate, remove its list file, start it)",
			errList, c.number, held.number)
	case c.this.After(held.this):
		return +1, nil // signed anew under the same number
	}
	return 0, fmt.Errorf("%w: another list with the same number %d, and not a later one", errList, c.number)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
