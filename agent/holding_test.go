package agent

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

// copied puts a credential into the store as a key copy does, and tells the
// server its key as if it had issued it to another terminal.
func (c *conversation) copied(id transport.Name, source transport.DeviceID) {
	c.t.Helper()
	h := holdingRecord{Record: c.server.ca.record(id), Origin: OriginCopy, Since: time.Now().Unix(), Source: source}
	key, err := privateKey(&h.Record.Secret)
	if err != nil {
		c.t.Fatal(err)
	}
	c.server.keys[id] = key.Public()
	if err := c.vault.update(func(tx *store.Tx) error { return hold(tx, &h) }); err != nil {
		c.t.Fatal(err)
	}
}

// req: C8, L8: a copied credential is reported with proof, until the server has it.
func TestCopiedCredentialIsClaimed(t *testing.T) {
	c := newConversation(t)
	source := transport.DeviceID{9}
	c.server.lose = func(reply string) bool { return reply == "credential.claimed" }
	c.copied("maps-1", source)
	c.carry(c.session.more()) // while connected
	if c.server.claims["maps-1"] != source {
		t.Fatal("not claimed")
	}
	if u, err := c.session.unsettled(); !u || err != nil {
		t.Errorf("settled without the server's word (%v)", err)
	}
	c.server.lose = nil
	delete(c.server.claims, "maps-1")
	c.restart()
	if c.server.claims["maps-1"] != source {
		t.Error("not claimed again after the confirmation was lost")
	}
	if u, err := c.session.unsettled(); u || err != nil {
		t.Errorf("unsettled %v, %v", u, err)
	}
	c.noErrors()
}

func TestManyClaims(t *testing.T) {
	c := newConversation(t)
	const n = 2*sendAtOnce + 3
	for i := range n {
		c.copied(transport.Name(fmt.Sprintf("maps-%d", i)), transport.DeviceID{9})
	}
	c.carry(c.session.more())
	if len(c.server.claims) != n {
		t.Errorf("%d claims arrived, want %d", len(c.server.claims), n)
	}
	c.noErrors()
}

// A claim that the server refuses does not hold up the others, is shown, and is
// tried again on the next connection, not all the time.
func TestRefusedClaim(t *testing.T) {
	c := newConversation(t)
	tried := 0
	c.server.fault = func(e *transport.Envelope) *transport.Fault {
		if e.Type != "credential.claim" {
			return nil
		}
		m, err := transport.Open[transport.CredentialClaim](e)
		if err != nil || m.Credential != "bad" {
			return nil
		}
		tried++
		return &transport.Fault{Code: transport.FaultRefused, Text: "no such credential"}
	}
	c.copied("bad", transport.DeviceID{9})
	c.copied("good", transport.DeviceID{9})
	c.carry(c.session.more())
	c.carry(c.session.again())
	c.carry(c.session.again())
	if tried != 1 {
		t.Errorf("tried %d times on one connection, want 1", tried)
	}
	if _, ok := c.server.claims["good"]; !ok {
		t.Error("the other claim did not arrive")
	}
	err := c.vault.store.View(func(tx *store.Tx) error {
		info, err := c.vault.info(tx, c.holding("bad"))
		if info.Reported || !strings.Contains(info.Refusal, "no such credential") {
			t.Errorf("shown as %+v", info)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	c.connect()
	if tried != 2 {
		t.Errorf("tried %d times on two connections, want 2", tried)
	}
	c.noErrors()
}

// A terminal that is enrolled anew reports all that it holds anew, also what
// the server issued to it: to the server it is a new device with old keys.
func TestNewBundleReopensClaims(t *testing.T) {
	ca := newAuthority(t)
	a := testAgent(t, Config{})
	mustProvision(t, a, ca.bundle(transport.BundleTerminal, "nav-001"))
	for id, origin := range map[transport.Name]Origin{"copied": OriginCopy, "issued": OriginIssue, "server": OriginIssue} {
		h := &holdingRecord{Record: ca.record(id), Origin: origin}
		switch id {
		case "copied":
			h.Source = transport.DeviceID{9}
		case "server": // a gate's own: nobody claims that
			h.Record.Usage = transport.UsageServer
		}
		if err := a.Update(func(tx *store.Tx) error { return hold(tx, h) }); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Update(func(tx *store.Tx) error { return tx.Delete(bucketClaims, "copied") }); err != nil {
		t.Fatal(err)
	}
	b := ca.bundle(transport.BundleTerminal, "nav-001")
	b.Issued += 60
	mustProvision(t, a, b)
	list, err := a.Credentials()
	if err != nil || len(list) != 3 || list[0].Reported || list[1].Reported || !list[2].Reported {
		t.Errorf("%+v, %v", list, err)
	}
	var open []claimEntry
	if err := a.View(func(tx *store.Tx) (err error) { open, err = openClaims(tx, 9); return err }); err != nil {
		t.Fatal(err)
	}
	if len(open) != 2 || open[0].Source != (transport.DeviceID{9}) || open[1].Source != a.vault.device {
		t.Errorf("claims %+v", open)
	}
	if a.Status().Identity != nil {
		t.Error("the old identity is kept")
	}
}

func TestPickTheCredentialInForce(t *testing.T) {
	ca := newAuthority(t)
	v := testVault(t, t.TempDir())
	put := func(id transport.Name, change func(*transport.CredentialRecord)) {
		r := ca.record(id)
		change(&r)
		if err := v.update(func(tx *store.Tx) error { return hold(tx, &holdingRecord{Record: r, Origin: OriginIssue}) }); err != nil {
			t.Fatal(err)
		}
	}
	get := func() (*Credential, error) {
		var c *Credential
		err := v.store.View(func(tx *store.Tx) (err error) {
			c, err = pick(tx, v.clock, v.module, "maps", transport.UsageClient)
			return err
		})
		return c, err
	}
	if _, err := get(); !errors.Is(err, ErrNoCredential) || !strings.Contains(err.Error(), "holds none") {
		t.Errorf("none: %v", err)
	}
	put("other", func(r *transport.CredentialRecord) { r.Service = "tiles" })
	put("server", func(r *transport.CredentialRecord) { r.Usage = transport.UsageServer })
	put("invalid", func(r *transport.CredentialRecord) { r.State = transport.CredentialInvalid })
	if _, err := get(); !errors.Is(err, ErrNoCredential) || !strings.Contains(err.Error(), "invalid is invalidated") {
		t.Errorf("invalidated: %v", err)
	}
	now := time.Now()
	v.clock.Raise(now)
	put("expired", func(r *transport.CredentialRecord) { r.Expires = now.Add(-time.Minute).Unix() })
	if _, err := get(); !errors.Is(err, ErrNoCredential) || !strings.Contains(err.Error(), "expired") {
		t.Errorf("expired: %v", err)
	}
	put("short", func(r *transport.CredentialRecord) { r.Expires = now.Add(time.Hour).Unix() })
	put("long", func(*transport.CredentialRecord) {})
	c, err := get()
	if err != nil || c.Record.ID != "long" || !verifyPair(c) {
		t.Errorf("%+v, %v: want the one that lasts longest", c, err)
	}
	if len(c.Record.Secret.Bytes) != 0 {
		t.Error("the record carries the secret")
	}
}

// What the server issues for a service takes the place of what it issued before,
// even when both end at the same second; a copy stays as it is.
//
// req: L6
func TestIssuedCredentialSupersedesTheOneBefore(t *testing.T) {
	c := newConversation(t)
	c.copied("maps-copy", transport.DeviceID{9})
	for _, id := range []transport.Name{"maps-b", "maps-a"} {
		c.server.order(order(id))
		c.push(&transport.CommandReady{})
		if h := c.holding(id); h == nil || h.Record.State != transport.CredentialActive {
			t.Fatalf("%s: %+v", id, h)
		}
	}
	if h := c.holding("maps-b"); h == nil || h.Record.State != transport.CredentialInvalid {
		t.Errorf("the one before: %+v", h)
	}
	if h := c.holding("maps-copy"); h == nil || h.Record.State != transport.CredentialActive {
		t.Errorf("the copy: %+v", h)
	}
	c.noErrors()
}
