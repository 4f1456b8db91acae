package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"github.com/kagimori/kagimori/transport"
)

// ErrRequest is a signing request that is not one, or does not fit.
var ErrRequest = errors.New("signing request refused")

// A Request is a PKCS#10 request (RFC 2986) whose signature was checked: who
// sent it has the private key. Its names are never copied into a certificate;
// those that it gives must be the ones that the certificate will have.
type Request struct {
	Public *ecdsa.PublicKey
	SPKI   []byte // DER SubjectPublicKeyInfo
	csr    *x509.CertificateRequest
}

// ParseRequest reads and checks a request: at most transport.MaxCertificate
// bytes, ECDSA on P-256 with SHA-256, in the one encoding of its key.
func ParseRequest(der []byte) (*Request, error) {
	if len(der) > transport.MaxCertificate {
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", ErrRequest, len(der), transport.MaxCertificate)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	public, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() || csr.SignatureAlgorithm != x509.ECDSAWithSHA256 {
		return nil, fmt.Errorf("%w: want a P-256 key that signs with SHA-256", ErrRequest)
	}
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil || !bytes.Equal(spki, csr.RawSubjectPublicKeyInfo) {
		return nil, fmt.Errorf("%w: unusual encoding of the key", ErrRequest)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	return &Request{Public: public, SPKI: spki, csr: csr}, nil
}

// Device is the id that a device with this identity key has.
func (r *Request) Device() transport.DeviceID { return transport.NewDeviceID(r.SPKI) }

// fits checks the names that the request gives, if any, against those that
// the certificate will have.
func (r *Request) fits(uri string, hosts []string) error {
	for _, u := range r.csr.URIs {
		if u.String() != uri {
			return fmt.Errorf("%w: it names %q, not %q", ErrRequest, u, uri)
		}
	}
	given := slices.Clone(r.csr.DNSNames)
	for _, ip := range r.csr.IPAddresses {
		given = append(given, ip.String())
	}
	for _, name := range given {
		if !slices.ContainsFunc(hosts, sameHost(name)) {
			return fmt.Errorf("%w: it names %q, which was not ordered", ErrRequest, name)
		}
	}
	if len(r.csr.EmailAddresses) > 0 {
		return fmt.Errorf("%w: it names a mail address", ErrRequest)
	}
	return nil
}
