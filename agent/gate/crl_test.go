package gate

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/transport"
)

var (
	deltaIndicator = asn1.ObjectIdentifier{2, 5, 29, 27}
	partition      = asn1.ObjectIdentifier{2, 5, 29, 28}
	entryIssuer    = asn1.ObjectIdentifier{2, 5, 29, 29}
)

func mustIssuer(t testing.TB, d *deployment, a *authority) transport.ListIssuer {
	t.Helper()
	i, err := parseIssuer(a.cert.Raw, d.roots, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// req: L10
func TestListsThatAreRefused(t *testing.T) {
	d := newDeployment(t, "demo")
	twin := newDeployment(t, "demo")
	by := mustIssuer(t, d, d.service)
	now := time.Now()
	list := func(change func(*x509.RevocationList)) []byte {
		l := &x509.RevocationList{Number: big.NewInt(7)}
		change(l)
		return d.service.listWith(t, l)
	}
	good := d.service.list(t, 7)
	flipped := bytes.Clone(good)
	flipped[len(flipped)-5] ^= 1
	renumbered := bytes.Replace(good, []byte{0x55, 0x1d, 0x14, 0x04, 0x03, 0x02, 0x01, 7}, []byte{0x55, 0x1d, 0x14, 0x04, 0x03, 0x02, 0x01, 9}, 1)
	if bytes.Equal(renumbered, good) {
		t.Fatal("the number is not where this test thinks")
	}
	for name, c := range map[string]struct {
		data []byte
		says string
	}{
		"empty":                 {nil, "malformed"},
		"cut short":             {good[:len(good)-1], ""},
		"longer than it says":   {append(bytes.Clone(good), 0), "after its end"},
		"forged signature":      {flipped, "signature"},
		"number changed":        {renumbered, "signature"},
		"by another CA of ours": {d.identity.list(t, 7), "not by"},
		"by the root":           {d.root.list(t, 7), "not by"},
		"by a twin CA":          {twin.service.list(t, 7), "signature"},
		"delta": {list(func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{{Id: deltaIndicator, Critical: true, Value: []byte{2, 1, 1}}}
		}), "only a part"},
		"partition": {list(func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{{Id: partition, Critical: true, Value: []byte{0x30, 0}}}
		}), "only a part"},
		"indirect": {list(func(l *x509.RevocationList) {
			l.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: big.NewInt(1), RevocationTime: now,
				ExtraExtensions: []pkix.Extension{{Id: entryIssuer, Critical: true, Value: []byte{0x30, 0}}}}}
		}), "of an entry"},
		"huge number": {list(func(l *x509.RevocationList) { l.Number = new(big.Int).Lsh(big.NewInt(1), 70) }), "number"},
		"of tomorrow": {list(func(l *x509.RevocationList) {
			l.ThisUpdate, l.NextUpdate = now.Add(2*time.Hour), now.Add(3*time.Hour)
		}), "still to come"},
		"too large": {make([]byte, transport.MaxCRL+1), "limit"},
	} {
		_, err := parseCRL(c.data, by, now)
		if !errors.Is(err, errList) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}

func TestListsThatAreTaken(t *testing.T) {
	d := newDeployment(t, "demo")
	by := mustIssuer(t, d, d.service)
	now := time.Now()
	good := d.service.list(t, 7)
	expired, err := parseCRL(d.service.listWith(t, &x509.RevocationList{
		Number: big.NewInt(7), ThisUpdate: now.Add(-2 * time.Hour), NextUpdate: now.Add(-time.Hour),
	}), by, now)
	if err != nil || current(expired, now) == nil { // it parses, and does not count as news
		t.Errorf("expired: %v", err)
	}
	asPEM := pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: good})
	for _, data := range [][]byte{good, asPEM} {
		if l, err := parseCRL(data, by, now); err != nil || l.Number != 7 || current(l, now) != nil || !bytes.Equal(l.DER, good) {
			t.Errorf("a good one: %v", err)
		}
	}
}

// req: L18
func TestIssuersThatAreRefused(t *testing.T) {
	d := newDeployment(t, "demo")
	for name, der := range map[string][]byte{
		"nothing":          nil,
		"garbage":          []byte("garbage"),
		"too large":        make([]byte, transport.MaxCertificate+1),
		"a foreign CA":     newDeployment(t, "demo").service.cert.Raw,
		"a leaf":           d.credential(t, "maps", "cr-1").Certificate[0],
		"the server CA":    d.server.cert.Raw, // may not issue client certificates, so no credentials
		"a CA for no CRLs": d.root.sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "x"}, BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign, NotAfter: time.Now().Add(time.Hour)}, newKey(t).Public()).Raw,
		"an expired CA":    d.root.sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "x"}, BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCRLSign, NotAfter: time.Now().Add(-time.Minute)}, newKey(t).Public()).Raw,
	} {
		if _, err := parseIssuer(der, d.roots, time.Now()); !errors.Is(err, errList) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOrderOfLists(t *testing.T) {
	d := newDeployment(t, "demo")
	by := mustIssuer(t, d, d.service)
	now := time.Now()
	read := func(number int64, this time.Time) *transport.RevocationList {
		c, err := parseCRL(d.service.listWith(t, &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: this, NextUpdate: this.Add(time.Hour)}), by, now)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	held := read(7, now.Add(-time.Minute))
	for name, c := range map[string]struct {
		list *transport.RevocationList
		want int
		bad  bool
	}{
		"the same":                      {held, 0, false},
		"the next":                      {read(8, now), +1, false},
		"a higher number, signed first": {read(9, now.Add(-2*time.Minute)), +1, false},
		"a lower number, signed later":  {read(6, now), 0, true},
		"the same number, later":        {read(7, now), +1, false},
		"the same number, earlier":      {read(7, now.Add(-2*time.Minute)), 0, true},
		"the same number and time":      {read(7, now.Add(-time.Minute)), 0, true},
	} {
		if got, err := replaces(c.list, held); got != c.want || (err != nil) != c.bad {
			t.Errorf("%s: %d %v", name, got, err)
		}
	}
	if got, err := replaces(held, nil); got != +1 || err != nil {
		t.Errorf("the first: %d %v", got, err)
	}
}

// A list that was never the issuer's is never taken, whatever its bytes; one
// that is taken says the same after it went to the file and back.
func FuzzCRL(f *testing.F) {
	d := newDeployment(f, "demo")
	by := mustIssuer(f, d, d.service)
	cred := d.credential(f, "maps", "cr-1")
	good := d.service.list(f, 7, cred)
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: good}))
	f.Add(d.identity.list(f, 7))
	f.Add([]byte("-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := parseCRL(data, by, time.Now())
		if err != nil {
			return
		}
		if !bytes.Equal(l.DER, good) {
			t.Fatalf("taken, and not what the issuer signed: %x", data)
		}
		if !l.Has(transport.NewSerial(cred.Leaf.SerialNumber)) || l.Number != 7 {
			t.Fatal("the revoked one is not on it")
		}
	})
}

// Whatever comes over the link: no panic, and no list that is not the issuer's.
func FuzzPushed(f *testing.F) {
	d := newDeployment(f, "demo")
	good := &transport.ServiceRevoked{Number: 7, URL: "http://localhost:8880/crl/service", CRL: d.service.list(f, 7), Issuer: d.service.cert.Raw}
	for _, m := range []*transport.ServiceRevoked{good, {Number: 8, URL: good.URL, Issuer: good.Issuer}, {Number: -1, CRL: good.CRL, Issuer: good.Issuer}, {}} {
		body, err := transport.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		e := &transport.Envelope{V: transport.Version, ID: transport.NewID(rand.Reader), Type: good.Type(), Body: body}
		m, err := transport.Open[transport.ServiceRevoked](e)
		if err != nil {
			return
		}
		s := newCRLs("", time.Hour, discard)
		now := moment{time.Now(), time.Now()}
		fetch, err := s.pushed(m, d.roots, now)
		for _, h := range s.held {
			if h.list != nil && !bytes.Equal(h.list.DER, good.CRL) {
				t.Fatalf("taken: %x", h.list.DER)
			}
			if h.list == nil && err == nil && !fetch {
				t.Fatal("no list, no error, and nothing to fetch")
			}
		}
	})
}
