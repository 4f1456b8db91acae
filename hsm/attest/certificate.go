package attest

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Object identifiers in endorsement certificates.
var (
	// tcg-kp-EKCertificate (TCG EK Credential Profile): this is an EK's.
	oidEndorsement = asn1.ObjectIdentifier{2, 23, 133, 8, 1}
	// Subject alternative name (RFC 5280, 4.2.1.6): maker, model and version of
	// the chip, as a directory name, and critical, since the subject is empty.
	oidAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
	// id-RSAES-OAEP (RFC 4055, 4.1): how some makers mark RSA EKs. crypto/x509
	// does not know it.
	oidOAEP = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}
)

// MaxRoots bounds a file of roots, in bytes.
const MaxRoots = 1 << 20

// Roots are the makers of chips that an operator trusts.
type Roots struct{ pool *x509.CertPool }

// ParseRoots reads CA certificates in PEM: roots or issuing CAs of makers of
// TPMs. Each of them is trusted as it stands.
func ParseRoots(text []byte) (*Roots, error) {
	if len(text) > MaxRoots {
		return nil, fmt.Errorf("%d bytes of certificates, the limit is %d", len(text), MaxRoots)
	}
	r := &Roots{pool: x509.NewCertPool()}
	for n := 1; ; n++ {
		block, rest := pem.Decode(text)
		if block == nil {
			if n == 1 || len(bytes.TrimSpace(text)) > 0 {
				return nil, errors.New("no certificates in PEM, or text after the last one")
			}
			return r, nil
		}
		text = rest
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("item %d is a %s, not a certificate", n, block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", n, err)
		}
		if !cert.BasicConstraintsValid || !cert.IsCA {
			return nil, fmt.Errorf("certificate %d (%v) is not a CA's", n, cert.Subject)
		}
		r.pool.AddCert(cert)
	}
}

// endorsement checks the certificate of an EK up to the roots.
func (r *Roots) endorsement(der []byte, chain [][]byte, now time.Time) (*x509.Certificate, error) {
	cert, err := parse(der)
	if err != nil {
		return nil, err
	}
	if len(chain) > MaxChain {
		return nil, fmt.Errorf("a chain of %d certificates, the limit is %d", len(chain), MaxChain)
	}
	between := x509.NewCertPool()
	for _, der := range chain {
		c, err := parse(der)
		if err != nil {
			return nil, fmt.Errorf("its chain: %w", err)
		}
		between.AddCert(c)
	}
	if cert.IsCA || !slices.ContainsFunc(cert.UnknownExtKeyUsage, oidEndorsement.Equal) {
		return nil, errors.New("it is not an endorsement key's: extended key usage 2.23.133.8.1 is missing")
	}
	// The one critical extension that crypto/x509 leaves to us says what chip
	// it is; there is nothing in it to check.
	cert.UnhandledCriticalExtensions = slices.DeleteFunc(cert.UnhandledCriticalExtensions, oidAltName.Equal)
	_, err = cert.Verify(x509.VerifyOptions{
		Roots: r.pool, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return cert, err
}

func parse(der []byte) (*x509.Certificate, error) {
	if len(der) > MaxEndorsement {
		return nil, fmt.Errorf("%d bytes, the limit is %d", len(der), MaxEndorsement)
	}
	return x509.ParseCertificate(der)
}

// certifies checks that a certificate is for an EK.
func certifies(cert *x509.Certificate, ek crypto.PublicKey) error {
	certified := cert.PublicKey
	if certified == nil {
		certified = markedOAEP(cert.RawSubjectPublicKeyInfo)
	}
	if k, ok := ek.(interface{ Equal(crypto.PublicKey) bool }); !ok || certified == nil || !k.Equal(certified) {
		return errors.New("it is for another key")
	}
	return nil
}

// markedOAEP reads an RSA key that is marked as good for OAEP only, nil if it
// is none.
func markedOAEP(spki []byte) crypto.PublicKey {
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if rest, err := asn1.Unmarshal(spki, &info); err != nil || len(rest) > 0 || !info.Algorithm.Algorithm.Equal(oidOAEP) {
		return nil
	}
	key, err := x509.ParsePKCS1PublicKey(info.Key.RightAlign())
	if err != nil {
		return nil
	}
	return (*rsa.PublicKey)(key)
}

// sameKey checks a key against a DER SubjectPublicKeyInfo.
func sameKey(key crypto.PublicKey, spki []byte) error {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return err
	}
	if !bytes.Equal(der, spki) {
		return errors.New("it is not the key that the certificate is asked for")
	}
	return nil
}
