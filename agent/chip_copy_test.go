package agent

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/transport"
)

// chipRig is an old and a new terminal with a chip each, and a fleet key.
type chipRig struct {
	copyRig
	fleet    *ecdsa.PrivateKey
	from, to *hsmtest.TPM
}

func newChipRig(t *testing.T) *chipRig {
	t.Helper()
	r := &chipRig{copyRig: *emptyRig(t), fleet: newTestKey(t)}
	cfg := Config{Keycopy: &KeycopyConfig{Listen: "127.0.0.1:0"}}
	r.old, r.new = testAgent(t, cfg), testAgent(t, cfg)
	r.from, r.to = withChip(t, r.old), withChip(t, r.new)
	r.enlist(r.old, "nav-001")
	r.enlist(r.new, "")
	return r
}

// approve brings the fleet's word for a terminal's chip.
func (r *chipRig) approve(a *Agent, fleet *ecdsa.PrivateKey) {
	r.t.Helper()
	parent, err := a.vault.parent(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	if err := a.vault.keepApproval(approvalOf(r.t, fleet, parent), "by hand"); err != nil {
		r.t.Fatal(err)
	}
}

// inChip gives the old terminal a credential whose key is in its chip.
func (r *chipRig) inChip(id transport.Name, transfer transport.Transfer) crypto.PublicKey {
	r.t.Helper()
	o := chipOrder(id, transfer, spki(r.t, r.fleet))
	secret, key, err := r.old.vault.keyFor(r.t.Context(), &o)
	if err != nil {
		r.t.Fatal(err)
	}
	c := r.ca.record(id)
	c.Secret, c.Chain, c.Transfer, c.ChipOnly = secret, r.ca.credential(id, "seat-1", key.Public()), o.Transfer, true
	r.give(c)
	return key.Public()
}

// run copies everything; it must work.
func (r *chipRig) run(selected ...transport.Name) (last *KeycopyEvent, given KeycopyEvent) {
	r.t.Helper()
	o, code := r.arm()
	last, _, err := r.fetch(o, code, selected...)
	if err != nil {
		r.t.Fatal(err)
	}
	<-o.done
	if given, err = o.result(); err != nil {
		r.t.Fatal(err)
	}
	return last, given
}

// why is the reason that an event gives for what stayed behind.
func why(ev *KeycopyEvent, id transport.Name) string {
	i := slices.IndexFunc(ev.Held, func(h KeycopyHeld) bool { return h.ID == id })
	if i < 0 {
		return ""
	}
	return ev.Held[i].Reason
}

// reaches shows that a terminal reaches a service with what it holds: TLS with
// the private key wherever that is.
func reaches(t *testing.T, a *Agent, ca *authority, want crypto.PublicKey) {
	t.Helper()
	c, err := a.Credential("maps", transport.UsageClient)
	if err != nil {
		t.Error(err)
		return
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.root)
	near, far := net.Pipe()
	server := tls.Server(far, &tls.Config{
		Certificates: []tls.Certificate{ca.management()}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots, MinVersion: tls.VersionTLS13,
	})
	done := make(chan error, 1)
	go func() { done <- server.Handshake(); far.Close() }()
	client := tls.Client(near, &tls.Config{Certificates: []tls.Certificate{c.TLS}, RootCAs: roots, ServerName: "127.0.0.1"})
	if err := client.Handshake(); err != nil {
		t.Error(err)
	}
	client.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	leaf := server.ConnectionState().PeerCertificates
	if len(leaf) == 0 || !leaf[0].PublicKey.(*ecdsa.PublicKey).Equal(want) {
		t.Error("another key was shown")
	}
}

// A key goes from chip to chip, and works in both; software keys go along.
// req: C8, C9
func TestChipKeyIsCopied(t *testing.T) {
	r := newChipRig(t)
	r.approve(r.new, r.fleet)
	public := r.inChip("maps-1", transport.TransferCopy)
	r.give(r.ca.record("maps-2"))
	last, given := r.run()
	if len(last.Keys) != 2 || len(last.Held) != 0 || len(given.Keys) != 2 {
		t.Fatalf("%+v\n%+v", last, given)
	}
	for name, a := range map[string]*Agent{"old": r.old, "new": r.new} {
		h := r.held(a, "maps-1")
		if h == nil || h.Record.Secret.Form != transport.SecretTPM || !h.Record.ChipOnly {
			t.Fatalf("%s: %+v", name, h)
		}
		if soft := r.held(a, "maps-2"); soft == nil || soft.Record.Secret.Form != transport.SecretPKCS8 {
			t.Errorf("%s: %+v", name, soft)
		}
	}
	r.only(r.old, "maps-1")
	r.only(r.new, "maps-1")
	reaches(t, r.old, r.ca, public)
	reaches(t, r.new, r.ca, public)
	if _, err := r.new.vault.module.Signer(t.Context(), hsm.Blob(r.held(r.old, "maps-1").Record.Secret.Bytes)); err == nil {
		t.Error("the blob itself went over")
	}
}

// only leaves nothing but one credential in force.
func (r *chipRig) only(a *Agent, id transport.Name) {
	r.t.Helper()
	err := a.vault.update(func(tx *store.Tx) error {
		var drop []transport.Name
		err := eachHolding(tx, func(h *holdingRecord) error {
			if h.Record.ID != id {
				drop = append(drop, h.Record.ID)
			}
			return nil
		})
		for _, d := range drop {
			if err := tx.Delete(bucketCredentials, string(d)); err != nil {
				return err
			}
		}
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *copyRig) held(a *Agent, id transport.Name) *holdingRecord {
	r.t.Helper()
	var h *holdingRecord
	err := a.vault.store.View(func(tx *store.Tx) (err error) {
		h, err = holding(tx, id)
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return h
}

// What cannot go from chip to chip stays where it is, and both ends say why and
// what to do instead; what can be copied is.
func TestChipKeyStaysBehind(t *testing.T) {
	const instead = "kagimori-server credential issue"
	for name, c := range map[string]struct {
		prepare func(r *chipRig)
		says    string
	}{
		"no approval":       {func(*chipRig) {}, "no approved chip"},
		"another authority": {func(r *chipRig) { r.approve(r.new, newTestKey(r.t)) }, "only to chips that the fleet has approved"},
		"no chip": {func(r *chipRig) {
			r.new = r.terminal("")
		}, "no approved chip"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newChipRig(t)
			c.prepare(r)
			r.inChip("maps-1", transport.TransferCopy)
			r.give(r.ca.record("maps-2"))
			last, given := r.run()
			for end, ev := range map[string]*KeycopyEvent{"old": &given, "new": last} {
				if got := why(ev, "maps-1"); end == "new" && (!strings.Contains(got, c.says) || !strings.Contains(got, instead)) {
					t.Errorf("%s: %q", end, got)
				}
			}
			if r.held(r.new, "maps-1") != nil || r.held(r.new, "maps-2") == nil || r.held(r.old, "maps-1") == nil {
				t.Error("the wrong ones went")
			}
		})
	}
}

// A key that was made to stay is not even announced.
func TestChipKeyNeverTravels(t *testing.T) {
	r := newChipRig(t)
	r.approve(r.new, r.fleet)
	r.inChip("maps-1", transport.TransferNever)
	r.give(r.ca.record("maps-2"))
	last, _ := r.run()
	if got := why(last, "maps-1"); !strings.Contains(got, "may not leave") {
		t.Errorf("%q", got)
	}
	// A record that says otherwise does not make it travel.
	h := r.held(r.old, "maps-1")
	h.Record.Transfer = transport.TransferCopy
	if err := r.old.vault.update(func(tx *store.Tx) error { return hold(tx, h) }); err != nil {
		t.Fatal(err)
	}
	last, _ = r.run()
	if got := why(last, "maps-1"); !strings.Contains(got, "made to stay") || r.held(r.new, "maps-1") != nil {
		t.Errorf("%q", got)
	}
}

// One copy carries so many keys of a chip; a further one carries the rest.
func TestManyChipKeys(t *testing.T) {
	r := newChipRig(t)
	r.approve(r.new, r.fleet)
	ids := []transport.Name{}
	for n := range maxChipKeys + 3 {
		id := transport.Name("maps-" + string(rune('a'+n)))
		r.inChip(id, transport.TransferCopy)
		ids = append(ids, id)
	}
	last, _ := r.run()
	if len(last.Keys) != maxChipKeys || len(last.Held) != 3 || !strings.Contains(last.Held[0].Reason, "further") {
		t.Fatalf("%d keys, %+v", len(last.Keys), last.Held)
	}
	if last, _ = r.run(ids[maxChipKeys:]...); len(last.Keys) != 3 {
		t.Errorf("%+v", last)
	}
}
