package ca

import (
	"crypto/x509"
	"fmt"
	"math/big"
	"time"
)

// Reasons of RFC 5280 §5.3.1 that are used here.
const (
	ReasonSuperseded           = 4
	ReasonCessationOfOperation = 5
)

// Revoked is one line of a revocation list.
type Revoked struct {
	Serial *big.Int
	At     time.Time
	Reason int
}

// List is a signed revocation list.
type List struct {
	DER          []byte
	Issued, Next time.Time
}

// CRL signs an issuer's revocation list (RFC 5280 §5): complete, without
// critical extensions. number must be larger than that of every list before.
// thisUpdate is backdated as certificates are, so that slow clocks take it.
func (c *CA) CRL(issuer string, number int64, revoked []Revoked, now time.Time) (List, error) {
	i := c.by[issuer]
	if i == nil {
		return List{}, fmt.Errorf("there is no %s CA", issuer)
	}
	now = now.Truncate(time.Second)
	template := &x509.RevocationList{
		Number:             big.NewInt(number),
		ThisUpdate:         now.Add(-c.cfg.Backdate),
		NextUpdate:         now.Add(c.cfg.CRLLifetime),
		SignatureAlgorithm: x509.ECDSAWithSHA256,
	}
	for _, r := range revoked {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: r.Serial, RevocationTime: r.At.Truncate(time.Second), ReasonCode: r.Reason,
		})
	}
	der, err := x509.CreateRevocationList(c.random, template, i.certificate, i.key)
	if err != nil {
		return List{}, fmt.Errorf("sign the %s CA's revocation list: %w", issuer, err)
	}
	return List{DER: der, Issued: now, Next: template.NextUpdate}, nil
}

// ListLifetime is how long a list is good from its issue.
func (c *CA) ListLifetime() time.Duration { return c.cfg.CRLLifetime }
