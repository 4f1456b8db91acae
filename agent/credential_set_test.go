package agent

import (
	"slices"
	"testing"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

// A rule that the server changes is obeyed once, logged, and survives what else
// is in the record.
func TestRulesAreChanged(t *testing.T) {
	c := newConversation(t)
	c.server.order(order("maps-1"))
	c.push(&transport.CommandReady{})
	before := c.holding("maps-1")
	for _, rule := range []transport.Transfer{transport.TransferMove, transport.TransferMove, transport.TransferNever, transport.TransferCopy} {
		id := c.server.command(transport.CommandSet, &transport.CredentialSet{Credential: "maps-1", Transfer: rule})
		c.push(&transport.CommandReady{})
		c.only(id, transport.CommandDone, "")
		after := c.holding("maps-1")
		if after == nil || after.Record.Transfer != rule || after.Origin != before.Origin || after.Since != before.Since || after.Record.Expires != before.Record.Expires ||
			!slices.Equal(after.Record.Secret.Bytes, before.Record.Secret.Bytes) {
			t.Errorf("%s: %+v", rule, after)
		}
	}
	c.noErrors()
	changes := 0
	err := c.session.store.View(func(tx *store.Tx) error {
		return audit.Each(tx, func(e *audit.Entry) error {
			if e.Kind == audit.RuleSet {
				changes++
			}
			return nil
		})
	})
	if err != nil || changes != 3 {
		t.Errorf("%d lines in the audit log, %v", changes, err)
	}
}

func TestRulesThatAreRefused(t *testing.T) {
	c := newConversation(t)
	c.server.order(order("maps-1"))
	c.push(&transport.CommandReady{})
	for words, m := range map[string]*transport.CredentialSet{
		"does not hold": {Credential: "maps-2", Transfer: transport.TransferMove},
		"unknown":       {Credential: "maps-1", Transfer: "sell"},
		"wrong":         {Credential: "Maps!", Transfer: transport.TransferMove},
	} {
		id := c.server.command(transport.CommandSet, m)
		c.push(&transport.CommandReady{})
		c.only(id, transport.CommandRefused, words)
	}
	id := c.server.command(transport.CommandSet, &transport.CommandReady{})
	c.push(&transport.CommandReady{})
	c.only(id, transport.CommandRefused, "malformed")

	err := c.session.update(func(tx *store.Tx) error {
		h, err := holding(tx, "maps-1")
		if err != nil {
			return err
		}
		defer h.wipe()
		h.Record.ChipOnly, h.Record.Transfer = true, transport.TransferNever
		return tx.Put(bucketCredentials, "maps-1", h)
	})
	if err != nil {
		t.Fatal(err)
	}
	id = c.server.command(transport.CommandSet, &transport.CredentialSet{Credential: "maps-1", Transfer: transport.TransferMove})
	c.push(&transport.CommandReady{})
	c.only(id, transport.CommandRefused, "to stay there")
	if h := c.holding("maps-1"); h.Record.Transfer != transport.TransferNever {
		t.Errorf("%+v", h)
	}
	c.noErrors()
}
