package agent

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// An old terminal in bad hands gives a sound key, with a server of its own and
// a root of its own to trust: nothing of the run is installed, and the new
// terminal says why. req: C5, L18
func TestSourceBringsNoTrust(t *testing.T) {
	r := newCopyRig(t, "maps-0")
	evil := newAuthority(t)
	bad := r.ca.record("maps-1")
	bad.Anchors = [][]byte{evil.root.Raw}
	bad.ServerName, bad.Endpoints = "evil.example", []string{"198.51.100.66:443"}
	r.give(bad)
	o, code := r.arm()
	_, _, err := r.fetch(o, code)
	<-o.done
	var p *control.Problem
	if !errors.As(err, &p) || !strings.Contains(err.Error(), "maps-1") || !strings.Contains(err.Error(), "another root") {
		t.Errorf("fetch: %v", err)
	}
	if got := ids(t, r.new); len(got) != 0 {
		t.Errorf("installed: %v", got)
	}
}

// What was issued to this terminal is used, whatever a copy says about the
// service and however long it lasts; the copy serves once that is gone.
func TestIssuedComesBeforeCopied(t *testing.T) {
	r := newCopyRig(t)
	own := r.ca.record("maps-9")
	if err := r.new.vault.update(func(tx *store.Tx) error { return hold(tx, &holdingRecord{Record: own, Origin: OriginIssue}) }); err != nil {
		t.Fatal(err)
	}
	r.ca.to = r.ca.to.AddDate(1, 0, 0)
	for _, id := range []transport.Name{"maps-1", "maps-99"} { // before and after it, by name
		c := r.ca.record(id)
		c.ServerName, c.Endpoints = "other-gate.example", []string{"198.51.100.66:443"}
		r.give(c)
	}
	o, code := r.arm()
	if _, _, err := r.fetch(o, code); err != nil {
		t.Fatal(err)
	}
	<-o.done
	if got := ids(t, r.new); len(got) != 3 {
		t.Errorf("holds %v", got)
	}
	in := func() *Credential {
		t.Helper()
		c, err := r.new.Credential("maps", transport.UsageClient)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if c := in(); c.Record.ID != own.ID || c.Record.ServerName != own.ServerName || !slices.Equal(c.Record.Endpoints, own.Endpoints) {
		t.Errorf("in force: %s to %s %v", c.Record.ID, c.Record.ServerName, c.Record.Endpoints)
	}
	own.State = transport.CredentialInvalid
	if err := r.new.vault.update(func(tx *store.Tx) error { return hold(tx, &holdingRecord{Record: own, Origin: OriginIssue}) }); err != nil {
		t.Fatal(err)
	}
	if c := in(); c.Record.ID == own.ID {
		t.Error("an invalid one is in force")
	}
}

// What the server says when a copy is claimed takes the place of what came with
// it, once and for good. req: L1, L18
func TestClaimCorrectsTheCopy(t *testing.T) {
	c := newConversation(t)
	copied := c.server.ca.record("maps-1")
	copied.ServerName, copied.Endpoints = "other-gate.example", []string{"198.51.100.66:443"}
	key, err := privateKey(&copied.Secret)
	if err != nil {
		t.Fatal(err)
	}
	c.server.keys["maps-1"] = key.Public()
	c.server.reach = &transport.CredentialClaimed{ServerName: "maps.example", Endpoints: []string{"maps.example:8443"}, Anchors: [][]byte{c.server.ca.root.Raw}}
	if err := c.vault.update(func(tx *store.Tx) error { return hold(tx, &holdingRecord{Record: copied, Origin: OriginCopy}) }); err != nil {
		t.Fatal(err)
	}
	c.carry(c.session.more())
	c.noErrors()
	c.restart()
	h := c.holding("maps-1")
	if h == nil || h.Origin != OriginCopy || h.Record.ServerName != "maps.example" || !slices.Equal(h.Record.Endpoints, []string{"maps.example:8443"}) ||
		len(h.Record.Anchors) != 1 || !bytes.Equal(h.Record.Anchors[0], c.server.ca.root.Raw) || !bytes.Equal(h.Record.Secret.Bytes, copied.Secret.Bytes) {
		t.Errorf("%+v", h)
	}
	if _, claimed := c.server.claims["maps-1"]; !claimed {
		t.Error("the server did not hear of it")
	}
	if open, err := c.session.unsettled(); open || err != nil {
		t.Errorf("unsettled %v, %v", open, err)
	}
	// A server that says nothing leaves it as it is.
	c.push(&transport.CredentialClaimed{Credential: "maps-1"})
	if h := c.holding("maps-1"); h.Record.ServerName != "maps.example" {
		t.Errorf("%+v", h.Record.ServerName)
	}
}
