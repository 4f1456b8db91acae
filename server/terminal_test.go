package server

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// req: C1
func TestBundlesSayWhatADeviceNeeds(t *testing.T) {
	r := newRig(t)
	full, _ := r.bundle("TerminalAdd", func(key string) any { return TerminalAddParams{Name: "nav-001", ReplyKey: key} })
	spare, _ := r.bundle("SpareAdd", func(key string) any { return SpareAddParams{Group: "default", ReplyKey: key} })
	gate, _ := r.bundle("GateAdd", func(key string) any {
		return GateAddParams{Service: "maps", DNS: []string{"maps.test"}, ReplyKey: key}
	})
	for _, b := range []*transport.Bundle{full, spare, gate} {
		if b.Deployment != "demo" || b.Group != "default" || b.Epoch != 1 || string(b.SecurityCode) != string(full.SecurityCode) ||
			string(b.Root) != string(r.s.ca.Certificate("root").Raw) || b.Issued < r.now().Unix()-60 {
			t.Errorf("%+v", b)
		}
	}
	if full.Kind != transport.BundleTerminal || full.Terminal != "nav-001" || !slices.Equal(full.Servers, r.s.deployment.Servers) {
		t.Errorf("%+v", full)
	}
	if spare.Kind != transport.BundleSpare || spare.Terminal != "" || len(spare.CommonKey) > 0 {
		t.Errorf("%+v", spare)
	}
	if string(full.CommonKey) == string(gate.CommonKey) {
		t.Error("two terminals, one common key")
	}
	if string(full.SecurityCode) == string(make([]byte, transport.SecurityCodeSize)) {
		t.Error("no security code")
	}
}

func TestBadInputChangesNothing(t *testing.T) {
	r := newRig(t)
	r.addGate("maps")
	r.addTerminal("nav-001")
	audit, err := r.s.Audit(t.Context(), 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	reader, err := control.NewReader()
	if err != nil {
		t.Fatal(err)
	}
	key := reader.Key()
	for _, in := range []struct {
		method string
		kind   control.Kind
		in     any
	}{
		{"TerminalAdd", control.BadInput, TerminalAddParams{Name: "", ReplyKey: key}},
		{"TerminalAdd", control.BadInput, TerminalAddParams{Name: "Nav 1", ReplyKey: key}},
		{"TerminalAdd", control.BadInput, TerminalAddParams{Name: "enroll-1", ReplyKey: key}},
		{"TerminalAdd", control.Conflict, TerminalAddParams{Name: "nav-001", ReplyKey: key}},
		{"TerminalAdd", control.NotFound, TerminalAddParams{Name: "nav-002", Group: "other", ReplyKey: key}},
		{"TerminalReenroll", control.NotFound, TerminalReenrollParams{Name: "nav-002", ReplyKey: key}},
		{"TerminalShow", control.NotFound, NameParams{Name: "nav-002"}},
		{"TerminalRemove", control.NotFound, NameParams{Name: "nav-002"}},
		{"SpareAdd", control.NotFound, SpareAddParams{Group: "other", ReplyKey: key}},
		{"GateAdd", control.BadInput, GateAddParams{Service: "fuel", ReplyKey: key}},
		{"GateAdd", control.BadInput, GateAddParams{Service: "Fuel!", DNS: []string{"fuel.test"}, ReplyKey: key}},
		{"GateAdd", control.BadInput, GateAddParams{Service: strings.Repeat("a", 60), DNS: []string{"fuel.test"}, ReplyKey: key}},
		{"GateAdd", control.BadInput, GateAddParams{Service: "fuel", DNS: []string{"*.test"}, ReplyKey: key}},
		{"GateAdd", control.BadInput, GateAddParams{Service: "fuel", DNS: []string{"fuel.test"}, Endpoints: []string{"fuel.test"}, ReplyKey: key}},
		{"GateAdd", control.Conflict, GateAddParams{Service: "fuel", DNS: []string{"maps.test"}, ReplyKey: key}},
		{"GateAdd", control.Conflict, GateAddParams{Service: "fuel", DNS: []string{"fuel.test", "SERVER.test."}, ReplyKey: key}},
		{"GateAdd", control.Conflict, GateAddParams{Service: "maps", DNS: []string{"maps2.test"}, ReplyKey: key}},
		{"CredentialShow", control.NotFound, NameParams{Name: "cr-1"}},
		{"CredentialList", control.BadInput, ListParams{Sort: "secret"}},
		{"TerminalList", control.BadInput, ListParams{Filter: map[string]string{"common_key": "x"}}},
	} {
		r.refused(in.method, in.in, in.kind)
	}
	for _, method := range []string{"TerminalAdd", "SpareAdd"} { // a key that nothing can be sealed to
		in := map[string]any{"reply_key": "AAAA"}
		if method == "TerminalAdd" {
			in["name"] = "nav-002"
		}
		if err := r.admin.Call(t.Context(), Interface+"."+method, in, nil); control.AsProblem(err) == nil || control.AsProblem(err).Kind != control.BadInput {
			t.Errorf("%s: %v", method, err)
		}
	}
	after, err := r.s.Audit(t.Context(), 0, 1000)
	if err != nil || len(after) != len(audit) {
		t.Errorf("something was done: %+v, %v", after[len(audit):], err)
	}
	var page TerminalPage
	r.call("TerminalList", nil, &page)
	if len(page.Terminals) != 2 {
		t.Errorf("%+v", page)
	}
}

func TestGateNamesAreKeptInOneForm(t *testing.T) {
	r := newRig(t)
	r.bundle("GateAdd", func(key string) any {
		return GateAddParams{Service: "maps", DNS: []string{"Maps.Test.", "maps.test", "2001:DB8::0:1"}, Endpoints: []string{"192.0.2.7:8443", "[2001:db8::1]:8443"}, ReplyKey: key}
	})
	r.view(func(tx *store.Tx) error {
		s, err := tx.Service("maps")
		if fmt.Sprint(s.DNS) != "[maps.test 2001:db8::1]" || len(s.Endpoints) != 2 {
			t.Errorf("%+v", s)
		}
		return err
	})
}

// req: L1
func TestListsGoPageByPage(t *testing.T) {
	r := newRig(t)
	for i := range 4 {
		r.addTerminal(fmt.Sprintf("nav-%03d", i))
	}
	var seen []string
	in := ListParams{Sort: "name", Desc: true, Limit: 2}
	for {
		var page TerminalPage
		r.call("TerminalList", in, &page)
		for _, x := range page.Terminals {
			seen = append(seen, string(x.Name))
		}
		if in.After = page.Next; in.After == "" {
			break
		}
	}
	if len(seen) != 4 || seen[0] != "nav-003" || seen[3] != "nav-000" {
		t.Errorf("%v", seen)
	}
}

// Everything that was done is in the audit log, by whom.
func TestAuditTellsWhoDidWhat(t *testing.T) {
	r := newRig(t)
	h, k, nonce, y := copied(r, "copy")
	want[transport.CredentialClaimed](t, k.say(claim(t, h.key, nonce, y.id(), h.id)))
	r.call("TerminalRemove", NameParams{Name: "nav-001"}, nil)
	list, err := r.s.Audit(t.Context(), 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	actors := map[string]string{}
	for _, e := range list {
		if e.Time.IsZero() || e.Object == "" {
			t.Errorf("%+v", e)
		}
		actors[e.Action] = e.Actor
	}
	admin := actors["gate.add"]
	for action, actor := range map[string]string{
		"server.init": "tester", "server.certificate": "server", "terminal.add": admin, "credential.order": admin, "terminal.remove": admin,
		"terminal.enroll": "terminal nav-002", "credential.issue": "terminal nav-001", "command.done": "terminal nav-001", "credential.copy": "terminal nav-002",
	} {
		if actors[action] != actor || actor == "" {
			t.Errorf("%s by %q, want %q", action, actors[action], actor)
		}
	}
}
