package transport

import (
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math/big"
	"testing"
	"time"
)

// Each issuing CA speaks for its own kind of certificate only. What is refused
// in a list itself is shown by the gate's tests, which have all four CAs.
//
// req: L18
func TestListIssuersSpeakForTheirOwnKind(t *testing.T) {
	key, rootKey := newKey(t), newKey(t)
	root := sign(t, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, rootKey, rootKey)
	roots := x509.NewCertPool()
	roots.AddCert(root)
	issuing := func(usage x509.ExtKeyUsage, may x509.KeyUsage) []byte {
		return sign(t, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: may, ExtKeyUsage: []x509.ExtKeyUsage{usage}}, root, key, rootKey).Raw
	}
	const both = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	for name, c := range map[string]struct {
		ca    []byte
		asked x509.ExtKeyUsage
		good  bool
	}{
		"server CA, of servers":   {issuing(x509.ExtKeyUsageServerAuth, both), x509.ExtKeyUsageServerAuth, true},
		"service CA, of clients":  {issuing(x509.ExtKeyUsageClientAuth, both), x509.ExtKeyUsageClientAuth, true},
		"service CA, of servers":  {issuing(x509.ExtKeyUsageClientAuth, both), x509.ExtKeyUsageServerAuth, false},
		"server CA, of clients":   {issuing(x509.ExtKeyUsageServerAuth, both), x509.ExtKeyUsageClientAuth, false},
		"a CA that signs no list": {issuing(x509.ExtKeyUsageServerAuth, x509.KeyUsageCertSign), x509.ExtKeyUsageServerAuth, false},
	} {
		by, err := ParseListIssuer(c.ca, roots, c.asked, testNow)
		if (err == nil) != c.good || err != nil && !errors.Is(err, ErrRevocationList) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil {
			continue
		}
		der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
			Number: big.NewInt(3), ThisUpdate: testNow, NextUpdate: testNow.Add(time.Minute),
			RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(0xfe), RevocationTime: testNow}},
		}, by.Certificate, key)
		if err != nil {
			t.Fatal(err)
		}
		l, err := ParseRevocationList(der, by)
		if err != nil || l.Number != 3 || l.Len() != 1 || !l.Has(NewSerial(big.NewInt(0xfe))) || l.Has(NewSerial(big.NewInt(0xff))) {
			t.Errorf("%s: %+v, %v", name, l, err)
		}
	}
}
