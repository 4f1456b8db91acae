package server

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// An administrator shuts a key out, whoever has it: gates hear it at once, and
// the place is free for another.
// req: L7, L10
func TestRevokedCredentialsAreRefusedByGates(t *testing.T) {
	r := newRig(t)
	g := newBox(t)
	w := r.connect("gate-maps", g.key, r.enroll(r.addGate("maps"), g))
	heard := func() (serials []string) {
		t.Helper()
		list, err := x509.ParseRevocationList(want[transport.ServiceRevoked](t, w.receive("service.revoked")).CRL)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list.RevokedCertificateEntries {
			serials = append(serials, serialText(e.SerialNumber))
		}
		return serials
	}
	w.send(&transport.CommandPoll{})
	heard()
	x, _ := r.terminal("nav-001")
	y, _ := r.terminal("nav-002")
	r.order("nav-001", "maps")
	h := r.as("nav-001", x).obey()
	want[transport.CredentialClaimed](t, r.claims("nav-002", y, h))
	r.advance(61 * day)
	pending := r.order("nav-002", "maps")

	start := time.Now()
	var out CredentialRevoked
	r.call("CredentialRevoke", NameParams{Name: string(h.id)}, &out)
	if len(out.Holders) != 2 || len(out.Withdrawn) != 1 || out.Withdrawn[0] != "nav-002" || out.State != store.CredentialRevoked {
		t.Errorf("%+v", out)
	}
	serial := serialText(h.chain[0].SerialNumber)
	if serials := heard(); len(serials) != 1 || serials[0] != serial || time.Since(start) > time.Second {
		t.Errorf("the gate was told %v after %v", serials, time.Since(start))
	}
	i := r.show(h.id)
	if i.State != store.CredentialRevoked || i.InForce || i.Operation != "revoke" || r.now().Sub(i.Operated) > time.Minute || i.Ordered != "" {
		t.Errorf("%+v", i)
	}
	for _, x := range i.Holders {
		if x.Active {
			t.Errorf("%+v", x)
		}
	}
	k := r.as("nav-002", y)
	fault(t, "an order that was taken back", k.say(&transport.CredentialRequest{Command: pending.Command, CSR: csr(t, newKey(t), transport.URI{})}), transport.FaultClosed)
	fault(t, "a claim", r.claims("nav-002", y, h), transport.FaultRefused)
	r.refused("CredentialRevoke", NameParams{Name: string(h.id)}, control.Conflict)
	r.refused("CredentialRevoke", NameParams{Name: "cr-aaaaaaaaaa"}, control.NotFound)

	p, refused := r.tryIssue(CredentialIssueParams{Terminal: "nav-002", Service: "maps", Subject: "nav-001"})
	if refused != nil || p.Credential == h.id || p.Renewal {
		t.Fatalf("%+v, %v", p, refused)
	}
	if again := r.as("nav-002", y).obey(); again.id != p.Credential || !r.show(p.Credential).InForce {
		t.Error("the place is not given again")
	}
}

// All keys of a credential go, also those before a renewal.
func TestRevocationEndsEveryCertificate(t *testing.T) {
	r := newRig(t)
	x, _, first := pair(r)
	r.advance(61 * day)
	r.order("nav-001", "maps")
	second := r.as("nav-001", x).obey()
	r.call("CredentialRevoke", NameParams{Name: string(first.id)}, nil)
	for _, h := range []held{first, second} {
		if !r.revoked("service", serialText(h.chain[0].SerialNumber)) {
			t.Errorf("%s is in force", serialText(h.chain[0].SerialNumber))
		}
	}
}

// An order that nobody has obeyed yet is taken back.
func TestRevokingAnOrderWithdrawsIt(t *testing.T) {
	r := newRig(t)
	r.addGate("maps")
	r.terminal("nav-001")
	p := r.order("nav-001", "maps")
	var out CredentialRevoked
	r.call("CredentialRevoke", NameParams{Name: string(p.Credential)}, &out)
	if i := r.show(p.Credential); out.State != store.CredentialWithdrawn || i.State != store.CredentialWithdrawn || i.Operation != "withdraw" || i.Ordered != "" {
		t.Errorf("%+v, %+v", out, i)
	}
	r.refused("CredentialRevoke", NameParams{Name: string(p.Credential)}, control.Conflict)
	r.order("nav-001", "maps")
}
