package server

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

const day = 24 * time.Hour

// tryIssue orders a credential and says why that was refused, if it was.
func (r *rig) tryIssue(in CredentialIssueParams) (p OrderProgress, refused *control.Problem) {
	r.t.Helper()
	if err := r.admin.Stream(r.t.Context(), Interface+".CredentialIssue", in, into(&p)); err != nil {
		return p, control.AsProblem(err)
	}
	return p, nil
}

func (r *rig) show(id transport.Name) (i CredentialInfo) {
	r.t.Helper()
	r.call("CredentialShow", NameParams{Name: string(id)}, &i)
	return i
}

// A credential that has expired, or soon will, is issued anew under its id and
// for its subject.
// req: L1, L6, L7
func TestCredentialsAreIssuedAnew(t *testing.T) {
	for name, after := range map[string]time.Duration{"in its last third": 61 * day, "expired": 91 * day} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.addGate("maps")
			x, _ := r.terminal("nav-001")
			in := CredentialIssueParams{Terminal: "nav-001", Service: "maps", Subject: "truck-7"}
			if _, refused := r.tryIssue(in); refused != nil {
				t.Fatal(refused)
			}
			first := r.as("nav-001", x).obey()
			in.Subject = ""
			r.advance(59 * day)
			if _, refused := r.tryIssue(in); refused == nil || refused.Kind != control.Conflict || !strings.Contains(refused.Message, "issued anew from") {
				t.Fatalf("with a third of its life left: %#v", refused)
			}
			r.advance(after - 59*day)
			p, refused := r.tryIssue(in)
			if refused != nil || p.Credential != first.id || !p.Renewal {
				t.Fatalf("%+v, %v", p, refused)
			}
			if _, refused := r.tryIssue(in); refused == nil || refused.Kind != control.Conflict {
				t.Errorf("ordered twice: %v", refused)
			}
			if i := r.show(first.id); i.Ordered != "nav-001" || i.Serial != serialText(first.chain[0].SerialNumber) || i.Operation != "issue" {
				t.Errorf("changed before the terminal has it: %+v", i)
			}
			second := r.as("nav-001", x).obey()
			if second.id != first.id || second.order.Subject != "truck-7" || second.key.PublicKey.Equal(first.key.Public()) {
				t.Errorf("%+v", second.order)
			}
			i := r.show(first.id)
			if !i.InForce || i.Serial != serialText(second.chain[0].SerialNumber) || i.Operation != "renew" || i.Expires.Sub(r.now()) < 89*day ||
				len(i.Holders) != 1 || !i.Holders[0].Expires.Equal(i.Expires) || i.Ordered != "" {
				t.Errorf("%+v", i)
			}
			if r.revoked("service", serialText(first.chain[0].SerialNumber)) {
				t.Error("what copies may be good for is revoked")
			}
		})
	}
}

// pair issues a credential for maps to nav-001 and lets nav-002 claim a copy.
func pair(r *rig) (x, y *box, first held) {
	r.t.Helper()
	r.addGate("maps")
	x, _ = r.terminal("nav-001")
	y, _ = r.terminal("nav-002")
	r.order("nav-001", "maps")
	first = r.as("nav-001", x).obey()
	want[transport.CredentialClaimed](r.t, r.claims("nav-002", y, first))
	return x, y, first
}

// claims has a terminal claim what it holds, on a connection of its own.
func (r *rig) claims(terminal transport.Name, b *box, h held) *transport.Envelope {
	r.t.Helper()
	k := r.as(terminal, b)
	nonce := want[transport.CommandNext](r.t, k.say(&transport.CommandPoll{})).Nonce
	return k.say(claim(r.t, h.key, nonce, b.id(), h.id))
}

// holderOf is a terminal's newest holding in a record.
func holderOf(t *testing.T, i CredentialInfo, terminal transport.Name) HolderInfo {
	t.Helper()
	for _, h := range slices.Backward(i.Holders) {
		if h.Terminal == terminal {
			return h
		}
	}
	t.Fatalf("%s holds nothing: %+v", terminal, i)
	return HolderInfo{}
}

// Holders of a copy keep theirs until it expires, and get their own anew. When
// the terminal that was renewed goes, only its own key is revoked.
// req: C9, L1
func TestCopiesOutliveARenewal(t *testing.T) {
	r := newRig(t)
	x, y, first := pair(r)
	z, _ := r.terminal("nav-003")
	r.advance(61 * day)
	if p := r.order("nav-001", "maps"); p.Credential != first.id {
		t.Fatalf("%+v", p)
	}
	second := r.as("nav-001", x).obey()
	old, fresh := serialText(first.chain[0].SerialNumber), serialText(second.chain[0].SerialNumber)
	i := r.show(first.id)
	if a, b := holderOf(t, i, "nav-001"), holderOf(t, i, "nav-002"); !a.Active || !b.Active || a.Expires.Sub(b.Expires) < 60*day || i.Serial != fresh {
		t.Errorf("%+v", i)
	}
	// A copy of the earlier key that is reported late is still one.
	want[transport.CredentialClaimed](t, r.claims("nav-003", z, first))
	fault(t, "no key of it", r.claims("nav-003", z, held{id: first.id, key: newKey(t)}), transport.FaultRefused)

	var out TerminalRemoved
	r.call("TerminalRemove", NameParams{Name: "nav-001"}, &out)
	if len(out.Kept) != 1 || !out.Kept[0].Expires.IsZero() || len(out.Warnings) != 0 {
		t.Errorf("the removed box cannot use its key, and is said to: %+v", out)
	}
	if !r.revoked("service", fresh) || r.revoked("service", old) {
		t.Error("the wrong key is revoked")
	}
	if i := r.show(first.id); !i.InForce || i.Serial != old {
		t.Errorf("%+v", i)
	}
	// The copies expire, and each holder gets its own.
	r.advance(31 * day)
	if i := r.show(first.id); i.InForce {
		t.Errorf("%+v", i)
	}
	if p := r.order("nav-002", "maps"); p.Credential != first.id || !p.Renewal {
		t.Fatalf("%+v", p)
	}
	if third := r.as("nav-002", y).obey(); third.order.Subject != "nav-001" || !r.show(first.id).InForce {
		t.Errorf("%+v", third.order)
	}
	if h := holderOf(t, r.show(first.id), "nav-003"); h.Expires.After(r.now()) {
		t.Errorf("%+v", h)
	}
}

// A renewal that comes to nothing leaves everything as it was, but for the
// certificate that was signed for it.
func TestFailedRenewalsChangeNothing(t *testing.T) {
	r := newRig(t)
	x, _, first := pair(r)
	r.advance(61 * day)
	old := serialText(first.chain[0].SerialNumber)
	for name, end := range map[string]func(k *talk, p OrderProgress){
		"refused": func(k *talk, p OrderProgress) {
			want[transport.CommandAck](t, k.say(&transport.CommandResult{Command: p.Command, State: transport.CommandRefused, Detail: "no room"}))
		},
		"unknown": func(k *talk, p OrderProgress) {
			want[transport.CommandAck](t, k.say(&transport.CommandResult{Command: p.Command, State: transport.CommandUnknown}))
		},
	} {
		for _, certified := range []bool{false, true} {
			p, k := r.order("nav-001", "maps"), r.as("nav-001", x)
			k.next()
			var serial string
			if certified {
				got := want[transport.CredentialCertificate](t, k.say(&transport.CredentialRequest{Command: p.Command, CSR: csr(t, newKey(t), transport.URI{})}))
				chain, err := transport.ParseChain(got.Chain)
				if err != nil {
					t.Fatal(err)
				}
				serial = serialText(chain[0].SerialNumber)
			}
			end(k, p)
			i := r.show(first.id)
			if !i.InForce || i.Serial != old || i.Ordered != "" || len(i.Holders) != 2 || !holderOf(t, i, "nav-001").Active || r.revoked("service", old) {
				t.Errorf("%s, certified %v: %+v", name, certified, i)
			}
			if certified && !r.revoked("service", serial) {
				t.Errorf("%s: what was signed for it is in force", name)
			}
		}
	}
	// The terminal goes while it is told to renew: its copy goes on.
	p, k := r.order("nav-001", "maps"), r.as("nav-001", x)
	got := want[transport.CredentialCertificate](t, k.say(&transport.CredentialRequest{Command: p.Command, CSR: csr(t, newKey(t), transport.URI{})}))
	chain, err := transport.ParseChain(got.Chain)
	if err != nil {
		t.Fatal(err)
	}
	r.call("TerminalRemove", NameParams{Name: "nav-001"}, nil)
	if i := r.show(first.id); !i.InForce || i.Serial != old || !r.revoked("service", serialText(chain[0].SerialNumber)) || r.revoked("service", old) {
		t.Errorf("%+v", i)
	}
}

// A place that has expired is given to another terminal under the same id; a
// terminal with another device gets its credential at once.
func TestCredentialsOutliveTerminals(t *testing.T) {
	r := newRig(t)
	_, _, first := pair(r)
	fresh, _ := r.reenroll("nav-001")
	other := newBox(t)
	r.enroll(fresh, other)
	if p := r.order("nav-001", "maps"); p.Credential != first.id || !p.Renewal {
		t.Fatalf("%+v", p)
	}
	r.as("nav-001", other).obey()

	z, _ := r.terminal("nav-004")
	in := CredentialIssueParams{Terminal: "nav-004", Service: "maps", Subject: "nav-001"}
	if _, refused := r.tryIssue(in); refused == nil || refused.Kind != control.Conflict {
		t.Errorf("a place that is in use was given away: %v", refused)
	}
	r.advance(91 * day)
	if p, refused := r.tryIssue(in); refused != nil || p.Credential != first.id {
		t.Fatalf("%+v, %v", p, refused)
	}
	r.as("nav-004", z).obey()
	if i := r.show(first.id); !i.InForce || !holderOf(t, i, "nav-004").Active {
		t.Errorf("%+v", i)
	}
}

// Renewals keep what the credential was.
func TestRenewalsKeepTheTransferRule(t *testing.T) {
	r := newRig(t)
	r.addGate("maps")
	x, _ := r.terminal("nav-001")
	in := CredentialIssueParams{Terminal: "nav-001", Service: "maps", Transfer: "never"}
	if _, refused := r.tryIssue(in); refused != nil {
		t.Fatal(refused)
	}
	r.as("nav-001", x).obey()
	r.advance(91 * day)
	in.Transfer = "copy"
	if _, refused := r.tryIssue(in); refused == nil || refused.Kind != control.Conflict || !strings.Contains(refused.Message, "transfer never") {
		t.Errorf("%v", refused)
	}
	in.Transfer = ""
	if _, refused := r.tryIssue(in); refused != nil {
		t.Fatal(refused)
	}
	if h := r.as("nav-001", x).obey(); h.order.Transfer != transport.TransferNever {
		t.Errorf("%+v", h.order)
	}
}

// A gate's certificate is issued anew for the names of its service.
func TestGatesAreIssuedAnew(t *testing.T) {
	r := newRig(t)
	g := newBox(t)
	r.enroll(r.addGate("maps"), g)
	first := r.as("gate-maps", g).obey()
	in := CredentialIssueParams{Terminal: "gate-maps", Service: "maps"}
	if _, refused := r.tryIssue(in); refused == nil || refused.Kind != control.Conflict {
		t.Errorf("%v", refused)
	}
	r.advance(300 * day)
	if p, refused := r.tryIssue(in); refused != nil || p.Credential != first.id {
		t.Fatalf("%+v, %v", p, refused)
	}
	second := r.as("gate-maps", g).obey()
	if err := transport.VerifyServer(second.chain, r.s.ca.Roots(), "maps.test", r.now()); err != nil {
		t.Error(err)
	}
}

// A box that was removed and enrolls again has its keys still: it says so, and
// the record is true again.
// req: L1
func TestReenrolledHoldersClaimAgain(t *testing.T) {
	r := newRig(t)
	x, _, first := pair(r)
	r.call("TerminalRemove", NameParams{Name: "nav-001"}, nil)
	if h := holderOf(t, r.show(first.id), "nav-001"); h.Active {
		t.Errorf("%+v", h)
	}
	fresh, _ := r.reenroll("nav-001")
	r.enroll(fresh, x)
	want[transport.CredentialClaimed](t, r.claims("nav-001", x, first))
	if h := holderOf(t, r.show(first.id), "nav-001"); !h.Active || h.Origin != store.OriginIssue || h.Source != nil {
		t.Errorf("%+v", h)
	}
	var out TerminalRemoved
	r.call("TerminalRemove", NameParams{Name: "nav-002"}, &out)
	if len(out.Revoked) != 0 || len(out.Kept) != 1 || out.Kept[0].Holders[0] != "nav-001" {
		t.Errorf("%+v", out)
	}
}
