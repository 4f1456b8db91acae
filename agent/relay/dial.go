package relay

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/kagimori/kagimori/transport"
)

const (
	// dialWait bounds the attempt at one endpoint, handshake included.
	dialWait = 5 * time.Second
	// protocol is the ALPN name (RFC 7301) of what a gate speaks.
	protocol = "http/1.1"
)

// Credentials is where the relay gets the means to reach a service, anew for
// every connection: a credential that is renewed, moved or revoked takes effect
// at once.
type Credentials interface {
	// Client gives the credential for a service. Its error is shown to the
	// program and must say what to do next; it must hold nothing secret.
	Client(ctx context.Context, service transport.Name) (*Dialable, error)
}

// A Dialable is a credential in use, towards one service.
type Dialable struct {
	// Credential is its id, for people.
	Credential transport.Name
	// Certificate proves who we are. Its PrivateKey may sit in a chip.
	Certificate tls.Certificate
	// ServerName is the name that the gate's certificate must carry.
	ServerName string
	// Endpoints are tried in this order, "host:port".
	Endpoints []string
	// Roots are the only issuers that the gate's certificate may come from
	// (req: L18). The system's are never used.
	Roots *x509.CertPool
	// JudgedAt gives the moment at which a chain, leaf first, is judged: now, or,
	// while the clock is not trusted, max(floor, transport.LatestStart(chain))
	// (DESIGN D12). Nil: now by the system clock.
	JudgedAt func(chain []*x509.Certificate) time.Time
	// Revoked says why a gate that proved itself with this chain may not be talked
	// to any more. It is asked at each handshake and again at Recheck. Nil: nothing
	// is known of revoked gates.
	Revoked func(chain []*x509.Certificate) error
	// Release, if set, is called once the handshakes are over, whatever came of
	// them: the key may be unloaded or wiped.
	Release func()
}

// dial reaches the service by the first endpoint that will do.
func (r *Relay) dial(ctx context.Context) (*tls.Conn, error) {
	d, err := r.credentials.Client(ctx, r.cfg.Service)
	if err != nil {
		return nil, err
	}
	if d.Release != nil {
		defer d.Release()
	}
	if d.Roots == nil || d.ServerName == "" || len(d.Endpoints) == 0 {
		return nil, errors.New("the credential does not say where the service is and whom to trust: have it issued again")
	}
	var failed []string
	for _, endpoint := range d.Endpoints {
		c, err := dialEndpoint(ctx, endpoint, d)
		if err == nil {
			return c, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		failed = append(failed, fmt.Sprintf("%s: %v", endpoint, err))
	}
	return nil, fmt.Errorf("no gate of the service can be used: %s: look at the gate, and at the network up to it", strings.Join(failed, "; "))
}

func dialEndpoint(ctx context.Context, endpoint string, how *Dialable) (*tls.Conn, error) {
	attempt, cancel := context.WithTimeout(ctx, dialWait)
	defer cancel()
	var d net.Dialer
	raw, err := d.DialContext(attempt, "tcp", endpoint)
	if err == nil {
		w := &wire{Conn: raw, shown: how.Credential}
		c := tls.Client(w, how.tls())
		if err = c.HandshakeContext(attempt); err == nil {
			chain := c.ConnectionState().PeerCertificates
			w.standing = func() error { return how.revoked(chain) }
			return c, nil
		}
		_ = raw.Close()
	}
	if attempt.Err() != nil && ctx.Err() == nil {
		return nil, fmt.Errorf("no answer within %v", dialWait)
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err // the rest repeats the address
	}
	return nil, err
}

// A wire remembers that TCP ended, which only happens while TLS still waits
// for something: a gate that ends says so, and is read no further.
type wire struct {
	net.Conn
	ended atomic.Bool
	shown transport.Name // the credential that the gate saw
	// standing says why the gate at the other end may not be talked to any more.
	// It is set once the handshake is over.
	standing func() error
}

func (w *wire) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if errors.Is(err, io.EOF) {
		w.ended.Store(true)
	}
	return n, err
}

// tls is how the relay speaks to a gate. The certificate is verified by
// VerifyConnection, and not by crypto/tls, because the moment at which it is
// judged depends on what it says itself (DESIGN D12).
func (d *Dialable) tls() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{protocol},
		ServerName:             d.ServerName,
		SessionTicketsDisabled: true, // each connection shows the credential in force
		InsecureSkipVerify:     true, // VerifyConnection does it
		VerifyConnection: func(cs tls.ConnectionState) error {
			at := time.Now()
			if d.JudgedAt != nil {
				at = d.JudgedAt(cs.PeerCertificates)
			}
			if err := transport.VerifyServer(cs.PeerCertificates, d.Roots, d.ServerName, at); err != nil {
				return err
			}
			return d.revoked(cs.PeerCertificates)
		},
		// Always ours, also to a gate that does not list our issuer: its refusal
		// says more than an answer without any certificate would.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &d.Certificate, nil
		},
	}
}

func (d *Dialable) revoked(chain []*x509.Certificate) error {
	if d.Revoked == nil {
		return nil
	}
	return d.Revoked(chain)
}

// explain says what it means that a gate ended the connection before it
// answered. In TLS 1.3 a server refuses a client's certificate only after the
// handshake is over for the client (RFC 8446 §4.4.2.4), so that the first read
// tells.
func explain(credential transport.Name, err error) error {
	op, ok := errors.AsType[*net.OpError](err)
	switch {
	case ok && op.Op == "remote error" && aboutCertificate(op.Err.Error()):
		return fmt.Errorf("the gate refused credential %s: %w: ask the administrator for kagimori-server credential show %[1]s; the gate's log says why", credential, op.Err)
	case ok:
		err = op.Err
	}
	return fmt.Errorf("the gate ended the connection before it answered: %w: look at the gate's log", err)
}

// aboutCertificate is for crypto/tls's words for the alerts of RFC 8446 §6.2,
// which are not exported as values.
func aboutCertificate(alert string) bool {
	return strings.Contains(alert, "certificate") || strings.Contains(alert, "access denied")
}
