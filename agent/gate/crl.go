package gate

import (
	"crypto/x509"
	"fmt"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// When a list may be used: transport reads it, this file looks at its times.
// Nothing here keeps state or asks the clock.

// errList is any list that may not be used.
var errList = transport.ErrRevocationList

// parseIssuer reads the certificate of a CA that may sign lists of revoked
// credentials: under the roots now, for CRLs, and for client certificates.
func parseIssuer(der []byte, roots *x509.CertPool, at time.Time) (transport.ListIssuer, error) {
	return transport.ParseListIssuer(der, roots, x509.ExtKeyUsageClientAuth, at)
}

// parseCRL reads a list by this issuer that is not of a time still to come. [GATE-4]
func parseCRL(data []byte, by transport.ListIssuer, at time.Time) (*transport.RevocationList, error) {
	l, err := transport.ParseRevocationList(data, by)
	if err == nil && l.This.After(at.Add(maxSkew)) {
		err = fmt.Errorf("%w: it is of %s, which is still to come: compare the clocks of server and gate", errList, stamp(l.This))
	}
	if err != nil {
		return nil, err
	}
	return l, nil
}

// current says whether a list just received is one that its issuer still
// stands by. A list already held is judged by crl_max_age instead.
func current(l *transport.RevocationList, at time.Time) error {
	if at.After(l.Next) {
		return fmt.Errorf("%w: number %d expired on %s", errList, l.Number, stamp(l.Next))
	}
	return nil
}

// replaces is l.Order, with what to do about a list that went back. [GATE-4]
func replaces(l, held *transport.RevocationList) (int, error) {
	order, err := l.Order(held)
	if err != nil && l.Number < held.Number {
		err = fmt.Errorf("%w (then stop the gate, remove its list file, start it)", err)
	}
	return order, err
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
