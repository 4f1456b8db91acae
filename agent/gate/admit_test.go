package gate

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// req: L5, L6
func TestAdmittedWithTheCredentialOfTheService(t *testing.T) {
	h := newHouse(t)
	for _, id := range []transport.Name{"cr-1", "cr-2"} {
		status, body, err := h.get(h.credential(t, "maps", id))
		if want := string(id) + " place-" + string(id) + " "; err != nil || status != http.StatusOK || body != want {
			t.Fatalf("%d %q %v, want %q\n%s", status, body, err, want, h.log)
		}
	}
	s := h.gate.Status()
	if !s.Open || s.Admitted != 2 || s.Passed != 2 || len(s.Refused) > 0 || len(s.Problems) > 0 {
		t.Errorf("status: %+v", s)
	}
}

// req: L5 (the gate proves itself too)
func TestTheTerminalCanTellAForeignGate(t *testing.T) {
	h := newHouse(t)
	c := h.config(h.credential(t, "maps", "cr-1"))
	c.RootCAs = newDeployment(t, "demo").roots
	if err := h.knock(c); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("a gate of another deployment passes: %v", err)
	}
}

// A stranger is somebody whom the gate turns away at the handshake.
type stranger struct {
	name        string
	certificate tls.Certificate
	reason      Reason
	says        string // in the log
}

func strangers(t *testing.T, h *house, good, revoked tls.Certificate) []stranger {
	other := newDeployment(t, "other")
	twin := newDeployment(t, "demo") // the same names, other keys
	with := func(change func(*x509.Certificate)) tls.Certificate {
		c := h.template("maps", "cr-1", "place-1")
		change(c)
		return h.service.leaf(t, c)
	}
	uri := func(u transport.URI) []*url.URL { return []*url.URL{u.URL()} }
	self := newCAWith(t, nil, "self", newKey(t))
	return []stranger{
		{"no certificate", tls.Certificate{}, NoCertificate, "didn't provide a certificate"},
		{"identity certificate", h.identity.leaf(t, &x509.Certificate{
			Subject: pkix.Name{CommonName: "nav-001"}, NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
			URIs: uri(transport.URI{Deployment: "demo", Terminal: "nav-001"}),
		}), NotForService, "not a credential"},
		{"of another service", h.credential(t, "mail", "cr-1"), NotForService, "it is for service mail, this is maps"},
		{"of another deployment under our CA", with(func(c *x509.Certificate) {
			c.URIs = uri(transport.URI{Deployment: "other", Service: "maps", Credential: "cr-1"})
		}), NotForService, "deployment other"},
		{"of another deployment", other.credential(t, "maps", "cr-1"), UnknownIssuer, "unknown authority"},
		{"foreign CA with the same names", twin.credential(t, "maps", "cr-1"), UnknownIssuer, "unknown authority"},
		{"foreign leaf beside our CA", sent(twin.credential(t, "maps", "cr-1"), h.service.cert), UnknownIssuer, "unknown authority"},
		{"self-signed", self.leaf(t, h.template("maps", "cr-1", "place-1")), UnknownIssuer, "unknown authority"},
		{"expired", with(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }), Expired, "expired"},
		{"not yet valid", with(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), NotYetValid, "not valid before"},
		{"for servers", with(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), NotForService, "incompatible key usage"},
		{"for both", with(func(c *x509.Certificate) {
			c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		}), NotForService, "client authentication only"},
		{"for any usage", with(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }), NotForService, "client authentication only"},
		{"without usage", with(func(c *x509.Certificate) { c.ExtKeyUsage = nil }), NotForService, "client authentication only"},
		{"two names", with(func(c *x509.Certificate) {
			c.URIs = append(c.URIs, uri(transport.URI{Deployment: "demo", Service: "maps", Credential: "cr-2"})...)
		}), NotForService, "exactly one name"},
		{"a DNS name too", with(func(c *x509.Certificate) { c.DNSNames = []string{"localhost"} }), NotForService, "exactly one name"},
		{"no name", with(func(c *x509.Certificate) { c.URIs = nil }), NotForService, "exactly one name"},
		{"a CA's", with(func(c *x509.Certificate) {
			c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		}), NotForService, "it is a CA's"},
		{"the gate's own", h.source.certificate, NotForService, "incompatible key usage"},
		{"subject no name", with(func(c *x509.Certificate) { c.Subject.CommonName = "evil\r\nKagimori-Subject: x" }), NotForService, "subject"},
		{"no subject", with(func(c *x509.Certificate) { c.Subject.CommonName = "" }), NotForService, "0 common names"},
		{"two subjects", with(func(c *x509.Certificate) {
			c.Subject.ExtraNames = []pkix.AttributeTypeAndValue{{Type: commonName, Value: "a"}, {Type: commonName, Value: "b"}}
		}), NotForService, "2 common names"},
		{"own leaf before another's good chain", sent(self.leaf(t, h.template("maps", "cr-1", "place-1")), good.Leaf, h.service.cert), UnknownIssuer, "unknown authority"},
		{"another's certificate without its key", tls.Certificate{Certificate: good.Certificate, PrivateKey: newKey(t)}, Handshake, ""},
		{"issued by a terminal", (&authority{cert: good.Leaf, key: good.PrivateKey.(*ecdsa.PrivateKey)}).leaf(t, h.template("maps", "cr-2", "place-2")), UnknownIssuer, ""},
		{"without its chain", sent(good), UnknownIssuer, "unknown authority"},
		{"long chain", sent(good, h.service.cert, h.service.cert, h.service.cert, h.service.cert), NotForService, "chain of 5"},
		{"revoked", revoked, Revoked, "credential cr-9"},
	}
}

// Each of them sees the alert, the log says why, and nothing reaches the service.
//
// req: L5, L18
func TestRefusedAtTheHandshake(t *testing.T) {
	h := newHouse(t)
	good, revoked := h.credential(t, "maps", "cr-1"), h.credential(t, "maps", "cr-9")
	h.push(2, revoked)
	for _, c := range strangers(t, h, good, revoked) {
		t.Run(c.name, func(t *testing.T) {
			h.log.reset()
			before := h.gate.Status()
			err := h.knock(h.config(c.certificate))
			if err == nil || !strings.Contains(err.Error(), "remote error: tls:") {
				t.Errorf("the terminal sees %v, want a TLS alert", err)
			}
			eventually(t, "counted as "+string(c.reason), time.Second, func() bool {
				return h.gate.Status().Refused[string(c.reason)] == before.Refused[string(c.reason)]+1
			})
			if c.reason != Handshake {
				h.logs("reason="+string(c.reason), c.says)
			}
			if after := h.gate.Status(); after.Passed != before.Passed || after.Admitted != before.Admitted {
				t.Errorf("it was admitted: %+v", after)
			}
		})
	}
	h.admits(good)
}

// The identity CA could sign a credential's name. It is no issuer of
// credentials all the same: the server sends no list of its for the gate.
//
// req: L18
func TestOnlyACAWithAListIssuesCredentials(t *testing.T) {
	h := newHouse(t)
	stray := h.identity.leaf(t, h.template("maps", "cr-1", "place-1"))
	status, body, err := h.get(stray)
	if err != nil || status != http.StatusServiceUnavailable || !strings.Contains(body, `"reason":"no-list"`) {
		t.Errorf("%d %q %v", status, body, err)
	}
}

// req: L5
func TestTLSBefore13IsRefused(t *testing.T) {
	h := newHouse(t)
	c := h.config(h.credential(t, "maps", "cr-1"))
	c.MaxVersion = tls.VersionTLS12
	if err := h.knock(c); err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("TLS 1.2: %v", err)
	}
}

// A resumed session would skip the checks: no ticket is given out.
func TestNoSessionIsResumed(t *testing.T) {
	h := newHouse(t)
	c := h.config(h.credential(t, "maps", "cr-1"))
	tickets := &ticketBox{}
	c.ClientSessionCache = tickets
	if err := h.knock(c); err != nil {
		t.Fatal(err)
	}
	if tickets.got {
		t.Error("the gate gives out a session ticket")
	}
}

type ticketBox struct{ got bool }

func (b *ticketBox) Get(string) (*tls.ClientSessionState, bool) { return nil, false }
func (b *ticketBox) Put(_ string, s *tls.ClientSessionState)    { b.got = b.got || s != nil }

func TestARenewedCertificateIsUsedAtOnce(t *testing.T) {
	h := newHouse(t)
	cred := h.credential(t, "maps", "cr-1")
	serialSeen := func() string {
		c := h.dial(cred)
		return c.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	before := serialSeen()
	next := h.gateCertificate(t)
	h.source.set(func(s *source) { s.certificate = next })
	if after := serialSeen(); after == before || after != next.Leaf.SerialNumber.String() {
		t.Errorf("serial %s, then %s, want %s", before, after, next.Leaf.SerialNumber)
	}
}

func TestAGateThatIsNotProvisionedAdmitsNobody(t *testing.T) {
	h := newHouse(t)
	h.source.set(func(s *source) { s.unready = errUnready })
	if err := h.knock(h.config(h.credential(t, "maps", "cr-1"))); err == nil {
		t.Error("admitted")
	}
	h.logs("reason=not-ready", errUnready.Error())
	if s := h.gate.Status(); s.Open || len(s.Problems) != 1 || s.Refused[string(NotReady)] != 1 {
		t.Errorf("status: %+v", s)
	}
	h.source.set(func(s *source) { s.unready = nil })
	h.admits(h.credential(t, "maps", "cr-1"))
}

// A chain whose CA ends before the leaf does ends with the CA.
func TestValidUntilTheCAEnds(t *testing.T) {
	d := newDeployment(t, "demo")
	c := d.template("maps", "cr-1", "place-1")
	c.NotAfter = time.Now().Add(500 * 24 * time.Hour)
	leaf := d.service.leaf(t, c).Leaf
	if got := validUntil([]*x509.Certificate{leaf, d.service.cert}); !got.Equal(d.service.cert.NotAfter) {
		t.Errorf("valid until %s, the CA until %s", got, d.service.cert.NotAfter)
	}
	if got := validUntil([]*x509.Certificate{leaf, d.identity.cert}); !got.Equal(leaf.NotAfter) {
		t.Errorf("valid until %s, the leaf until %s", got, leaf.NotAfter)
	}
}
