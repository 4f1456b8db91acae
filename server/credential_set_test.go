package server

import (
	"slices"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// ruleTold fetches the rule that a terminal is told, and answers.
func ruleTold(t *testing.T, k *talk, state transport.CommandState, detail string) (m transport.CredentialSet) {
	t.Helper()
	n := want[transport.CommandNext](t, k.say(&transport.CommandPoll{}))
	if n.Command == nil || n.Command.Kind != transport.CommandSet {
		t.Fatalf("%+v", n.Command)
	}
	if err := transport.Unmarshal(n.Command.Body, &m, transport.MaxEnvelope); err != nil {
		t.Fatal(err)
	}
	want[transport.CommandAck](t, k.say(&transport.CommandResult{Command: n.Command.ID, State: state, Detail: detail}))
	return m
}

// A rule that is changed is on record at once, and every holder is told; who has
// not obeyed is shown.
func TestChangedRulesReachAllHolders(t *testing.T) {
	r := newRig(t)
	x, y, h := pair(r)
	id := string(h.id)
	var reply CredentialSetReply
	r.call("CredentialSet", CredentialSetParams{Name: id, Transfer: "move"}, &reply)
	if reply.Was != transport.TransferCopy || reply.Transfer != transport.TransferMove || !slices.Equal(reply.Told, []transport.Name{"nav-001", "nav-002"}) {
		t.Errorf("%+v", reply)
	}
	i := r.show(h.id)
	if i.Transfer != transport.TransferMove || i.Operation != "set" || i.Ordered != "" || !strings.Contains(holderOf(t, i, "nav-002").Rule, "not confirmed") {
		t.Errorf("%+v", i)
	}
	// Another rule takes the place of one that was not fetched.
	r.call("CredentialSet", CredentialSetParams{Name: id, Transfer: "never"}, &reply)
	if m := ruleTold(t, r.as("nav-001", x), transport.CommandDone, ""); m.Credential != h.id || m.Transfer != transport.TransferNever {
		t.Errorf("%+v", m)
	}
	ruleTold(t, r.as("nav-002", y), transport.CommandUnknown, "update it")
	i = r.show(h.id)
	if a, b := holderOf(t, i, "nav-001"), holderOf(t, i, "nav-002"); a.Rule != "" || !strings.Contains(b.Rule, "update it") {
		t.Errorf("%+v, %+v", a, b)
	}
	if n := want[transport.CommandNext](t, r.as("nav-001", x).say(&transport.CommandPoll{})); n.Command != nil {
		t.Errorf("the rule before is still to be fetched: %+v", n.Command)
	}

	r.refused("CredentialSet", CredentialSetParams{Name: id, Transfer: "sometimes"}, control.BadInput)
	r.refused("CredentialSet", CredentialSetParams{Name: "cr-nothing", Transfer: "copy"}, control.NotFound)
	r.call("CredentialRevoke", NameParams{Name: id}, nil)
	r.refused("CredentialSet", CredentialSetParams{Name: id, Transfer: "copy"}, control.Conflict)
}

// Who gets a credential by a key copy after its rule was changed is told when it
// reports: what it has may be the rule before.
func TestNewHoldersAreToldTheRule(t *testing.T) {
	m := newRig(t).moving(transport.TransferCopy)
	m.r.call("CredentialSet", CredentialSetParams{Name: string(m.h.id), Transfer: "move"}, nil)
	ruleTold(t, m.who(transport.KeycopySource), transport.CommandDone, "")
	m.transfer = transport.TransferMove
	m.source(transport.KeycopyDone)
	m.claim()
	if told := ruleTold(t, m.who(transport.KeycopyTarget), transport.CommandDone, ""); told.Transfer != transport.TransferMove {
		t.Errorf("%+v", told)
	}
	m.claim() // repeated: told once
	if n := want[transport.CommandNext](t, m.who(transport.KeycopyTarget).say(&transport.CommandPoll{})); n.Command != nil {
		t.Errorf("%+v", n.Command)
	}
	if i := m.r.show(m.h.id); holderOf(t, i, "nav-002").Rule != "" {
		t.Errorf("%+v", i)
	}
}

// What a gate shows never travels; what was made in a chip to stay there does not
// either. An order that was not obeyed yet is followed by the rule.
func TestRulesThatCannotBeChanged(t *testing.T) {
	r := newRig(t)
	r.addGate("maps")
	var page CredentialPage
	r.call("CredentialList", ListParams{Filter: map[string]string{"usage": "server"}}, &page)
	if len(page.Credentials) != 1 {
		t.Fatalf("%+v", page)
	}
	r.refused("CredentialSet", CredentialSetParams{Name: string(page.Credentials[0].ID), Transfer: "copy"}, control.Conflict)
	r.terminal("nav-001")
	p, err := r.tryIssue(CredentialIssueParams{Terminal: "nav-001", Service: "maps", Transfer: "never", ChipOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	r.refused("CredentialSet", CredentialSetParams{Name: string(p.Credential), Transfer: "move"}, control.Conflict)
	var reply CredentialSetReply
	r.call("CredentialSet", CredentialSetParams{Name: string(p.Credential), Transfer: "never"}, &reply)
	if !slices.Equal(reply.Told, []transport.Name{"nav-001"}) {
		t.Errorf("%+v", reply)
	}
}
