package server

import (
	"crypto/rand"
	"encoding/json"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// req: L8
func TestPollGivesTheOldestOrderOrNone(t *testing.T) {
	r := newRig(t)
	r.addGate("maps")
	r.addGate("fuel")
	x, _ := r.terminal("nav-001")
	y, _ := r.terminal("nav-002")
	k := r.as("nav-001", x)
	if n := want[transport.CommandNext](t, k.say(&transport.CommandPoll{})); n.Command != nil || n.Nonce == ([32]byte{}) {
		t.Errorf("%+v, want an explicit none with a nonce", n)
	}
	first, second := r.order("nav-001", "maps"), r.order("nav-001", "fuel")
	for range 2 { // asking does not take it away
		if c, o := k.next(); c.ID != first.Command || o.Credential != first.Credential || o.Service != "maps" {
			t.Errorf("%+v %+v", c, o)
		}
	}
	if n := want[transport.CommandNext](t, r.as("nav-002", y).say(&transport.CommandPoll{})); n.Command != nil {
		t.Error("an order went to a terminal that it is not for")
	}
	want[transport.CommandAck](t, k.say(&transport.CommandResult{Command: first.Command, State: transport.CommandRefused, Detail: "no"}))
	if c, _ := k.next(); c.ID != second.Command {
		t.Error("a settled order comes again")
	}
}

func TestResultsSettleOnce(t *testing.T) {
	r := newRig(t)
	r.addGate("maps")
	x, _ := r.terminal("nav-001")
	y, _ := r.terminal("nav-002")
	p := r.order("nav-001", "maps")
	done := &transport.CommandResult{Command: p.Command, State: transport.CommandDone}
	fault(t, "another terminal's order", r.as("nav-002", y).say(done), transport.FaultRefused)
	k := r.as("nav-001", x)
	fault(t, "no such order", k.say(&transport.CommandResult{Command: transport.NewID(rand.Reader), State: transport.CommandDone}), transport.FaultRefused)
	fault(t, "unknown state", k.say(&transport.CommandResult{Command: p.Command, State: "pending"}), transport.FaultMalformed)
	fault(t, "long detail", k.say(&transport.CommandResult{Command: p.Command, State: transport.CommandDone, Detail: strings.Repeat("x", transport.MaxDetail+1)}), transport.FaultMalformed)

	k.obey()
	audit := func() int {
		list, err := r.s.Audit(t.Context(), 0, 1000)
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	before := audit()
	ack := want[transport.CommandAck](t, k.say(done)) // the ack was lost
	if ack.Command != p.Command {
		t.Errorf("%v", ack)
	}
	want[transport.CommandAck](t, k.say(&transport.CommandResult{Command: p.Command, State: transport.CommandRefused})) // too late to change one's mind
	if audit() != before {
		t.Error("a repeated result changed something")
	}
	var c CredentialInfo
	r.call("CredentialShow", NameParams{Name: string(p.Credential)}, &c)
	if c.State != store.CredentialActive || !c.InForce {
		t.Errorf("%+v", c)
	}
}

func TestRefusedOrdersLeaveNothingInForce(t *testing.T) {
	r := newRig(t)
	r.addGate("maps")
	x, _ := r.terminal("nav-001")
	for _, certified := range []bool{false, true} {
		for _, state := range []transport.CommandState{transport.CommandRefused, transport.CommandUnknown, transport.CommandDone} {
			if certified && state == transport.CommandDone {
				continue // that one is obeyed
			}
			p := r.order("nav-001", "maps")
			k := r.as("nav-001", x)
			c, _ := k.next()
			var serial string
			if certified {
				got := want[transport.CredentialCertificate](t, k.say(&transport.CredentialRequest{Command: c.ID, CSR: csr(t, newKey(t), transport.URI{})}))
				chain, err := transport.ParseChain(got.Chain)
				if err != nil {
					t.Fatal(err)
				}
				serial = serialText(chain[0].SerialNumber)
			}
			want[transport.CommandAck](t, k.say(&transport.CommandResult{Command: c.ID, State: state, Detail: "no room"}))
			var i CredentialInfo
			r.call("CredentialShow", NameParams{Name: string(p.Credential)}, &i)
			if i.State != store.CredentialRefused || i.InForce {
				t.Errorf("certified %v, %s: %+v", certified, state, i)
			}
			if certified != r.revoked("service", serial) {
				t.Errorf("certified %v, %s: on the list: %v", certified, state, !certified)
			}
		}
	}
}

// A session whose terminal was removed or reenrolled since it connected can do
// nothing, even before it is cut off.
func TestGoneSessionsAreRefused(t *testing.T) {
	r := newRig(t)
	r.addGate("maps")
	x, _ := r.terminal("nav-001")
	y, _ := r.terminal("nav-002")
	p, q := r.order("nav-001", "maps"), r.order("nav-002", "maps")
	removed, reenrolled := r.as("nav-001", x), r.as("nav-002", y)
	r.call("TerminalRemove", NameParams{Name: "nav-001"}, nil)
	fresh, _ := r.reenroll("nav-002")
	r.enroll(fresh, newBox(t))
	for name, k := range map[string]*talk{"removed": removed, "reenrolled": reenrolled} {
		k.ses.given = true
		id := map[string]transport.ID{"removed": p.Command, "reenrolled": q.Command}[name]
		for _, m := range []transport.Body{
			&transport.CommandPoll{}, &transport.CommandResult{Command: id, State: transport.CommandDone},
			&transport.CredentialRequest{Command: id, CSR: csr(t, newKey(t), transport.URI{})},
			&transport.CredentialClaim{Credential: "cr-1", Nonce: k.ses.nonce},
		} {
			fault(t, name+" "+m.Type(), k.say(m), transport.FaultRefused)
			if len(k.out.kick) != 1 {
				t.Errorf("%s %s: not cut off", name, m.Type())
			}
		}
	}
}

func TestOrdersThatMakeNoSense(t *testing.T) {
	r := newRig(t)
	r.addGate("maps")
	x, _ := r.terminal("nav-001")
	r.terminal("nav-002")
	r.addTerminal("nav-003")
	r.call("TerminalRemove", NameParams{Name: "nav-003"}, nil)
	r.order("nav-001", "maps")
	refused := func(kind control.Kind, in CredentialIssueParams) {
		t.Helper()
		err := r.admin.Stream(t.Context(), Interface+".CredentialIssue", in, nil)
		if p := control.AsProblem(err); p == nil || p.Kind != kind || p.Next == "" {
			t.Errorf("%+v: %#v, want %s with a next step", in, err, kind)
		}
	}
	issue := CredentialIssueParams{Terminal: "nav-002", Service: "maps"}
	with := func(change func(*CredentialIssueParams)) CredentialIssueParams {
		in := issue
		change(&in)
		return in
	}
	refused(control.NotFound, with(func(in *CredentialIssueParams) { in.Terminal = "nav-999" }))
	refused(control.NotFound, with(func(in *CredentialIssueParams) { in.Service = "fuel" }))
	refused(control.BadInput, with(func(in *CredentialIssueParams) { in.Service = "" }))
	refused(control.BadInput, with(func(in *CredentialIssueParams) { in.Subject = "Not A Name" }))
	refused(control.BadInput, with(func(in *CredentialIssueParams) { in.Transfer = "sell" }))
	refused(control.Conflict, with(func(in *CredentialIssueParams) { in.Terminal = "gate-maps" })) // ordered already
	refused(control.BadInput, with(func(in *CredentialIssueParams) { in.Terminal, in.Subject = "gate-maps", "other" }))
	refused(control.Conflict, with(func(in *CredentialIssueParams) { in.Terminal = "nav-003" }))
	refused(control.Conflict, with(func(in *CredentialIssueParams) { in.Terminal = "nav-001" }))                       // ordered already
	refused(control.Conflict, with(func(in *CredentialIssueParams) { in.Terminal = "nav-001"; in.Subject = "other" })) // one per pair
	refused(control.Conflict, with(func(in *CredentialIssueParams) { in.Subject = "nav-001" }))                        // the place is taken
	r.as("nav-001", x).obey()
	refused(control.Conflict, with(func(in *CredentialIssueParams) { in.Terminal = "nav-001" })) // held already
	if p := r.order("nav-002", "maps"); p.State != "pending" {
		t.Errorf("%+v", p)
	}
}

func TestWaitFollowsAnOrderToItsEnd(t *testing.T) {
	r := newRig(t)
	r.addGate("maps")
	x, _ := r.terminal("nav-001")
	y, _ := r.terminal("nav-002")
	for _, end := range []struct {
		terminal, state string
		do              func(OrderProgress)
	}{
		{"nav-002", "refused", func(p OrderProgress) {
			k := r.as("nav-002", y)
			want[transport.CommandAck](t, k.say(&transport.CommandResult{Command: p.Command, State: transport.CommandRefused, Detail: "no room"}))
		}},
		{"nav-001", "done", func(OrderProgress) { r.as("nav-001", x).obey() }},
		{"nav-002", "withdrawn", func(OrderProgress) {
			other := r.second()
			defer other.Close()
			if err := other.Call(t.Context(), Interface+".TerminalRemove", NameParams{Name: "nav-002"}, nil); err != nil {
				t.Error(err)
			}
		}},
	} {
		var seen []OrderProgress
		in := CredentialIssueParams{Terminal: end.terminal, Service: "maps", Wait: true}
		err := r.admin.Stream(t.Context(), Interface+".CredentialIssue", in, func(raw json.RawMessage) error {
			var p OrderProgress
			if err := json.Unmarshal(raw, &p); err != nil {
				return err
			}
			if seen = append(seen, p); len(seen) == 1 {
				end.do(p)
			}
			return nil
		})
		if err != nil || len(seen) != 2 || seen[0].State != "pending" || seen[1].State != end.state {
			t.Errorf("%s: %+v, %v", end.state, seen, err)
		}
	}
}
