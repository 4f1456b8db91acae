package server

import (
	"errors"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/server/broker"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// req: L1, L10
func TestRemovingTheOnlyHolderRevokes(t *testing.T) {
	r := newRig(t)
	r.addGate("maps")
	x, chain := r.terminal("nav-001")
	r.order("nav-001", "maps")
	h := r.as("nav-001", x).obey()
	var out TerminalRemoved
	r.call("TerminalRemove", NameParams{Name: "nav-001"}, &out)
	if len(out.Revoked) != 1 || out.Revoked[0] != h.id || len(out.Kept) != 0 || len(out.Warnings) != 0 {
		t.Errorf("%+v", out)
	}
	if !r.revoked("service", serialText(h.chain[0].SerialNumber)) {
		t.Error("the credential is not on the list")
	}
	identity, err := transport.ParseChain(chain)
	if err != nil {
		t.Fatal(err)
	}
	if !r.revoked("identity", serialText(identity[0].SerialNumber)) {
		t.Error("the identity is not on the list")
	}
	if err := r.known("nav-001", chain); !errors.Is(err, broker.ErrRefused) {
		t.Errorf("the identity is taken: %v", err)
	}
	var i CredentialInfo
	r.call("CredentialShow", NameParams{Name: string(h.id)}, &i)
	if i.State != store.CredentialRevoked || i.InForce || i.Operation != "revoke" || len(i.Holders) != 1 || i.Holders[0].Active {
		t.Errorf("%+v", i)
	}
	r.refused("TerminalRemove", NameParams{Name: "nav-001"}, control.Conflict)
	r.refused("TerminalRemove", NameParams{Name: "nav-999"}, control.NotFound)
}

// req: C8, C9
func TestRemovingOneOfTwoHoldersKeepsTheCredential(t *testing.T) {
	r := newRig(t)
	h, k, nonce, y := copied(r, "copy")
	want[transport.CredentialClaimed](t, k.say(claim(t, h.key, nonce, y.id(), h.id)))
	var out TerminalRemoved
	r.call("TerminalRemove", NameParams{Name: "nav-001"}, &out)
	if len(out.Revoked) != 0 || len(out.Kept) != 1 || out.Kept[0].ID != h.id || out.Kept[0].Holders[0] != "nav-002" ||
		len(out.Warnings) != 1 || !strings.Contains(out.Warnings[0], "still has the key") || out.Kept[0].Expires.IsZero() ||
		!strings.Contains(out.Kept[0].Next, "credential revoke "+string(h.id)+" && kagimori-server credential issue nav-002 --service maps --subject nav-001") {
		t.Errorf("%+v", out)
	}
	if r.revoked("service", serialText(h.chain[0].SerialNumber)) {
		t.Error("a credential that nav-002 needs is revoked")
	}
	var i CredentialInfo
	r.call("CredentialShow", NameParams{Name: string(h.id)}, &i)
	if !i.InForce {
		t.Errorf("%+v", i)
	}
	out = TerminalRemoved{}
	r.call("TerminalRemove", NameParams{Name: "nav-002"}, &out)
	if len(out.Revoked) != 1 || !r.revoked("service", serialText(h.chain[0].SerialNumber)) {
		t.Errorf("the last holder went, and it is in force: %+v", out)
	}
}

func TestRemovedTerminalsComeBackOnlyByReenrollment(t *testing.T) {
	r := newRig(t)
	r.addGate("maps")
	b := r.addTerminal("nav-001")
	r.order("nav-001", "maps")
	var out TerminalRemoved
	r.call("TerminalRemove", NameParams{Name: "nav-001"}, &out)
	if len(out.Withdrawn) != 1 || out.Enrolled {
		t.Errorf("%+v", out)
	}
	if i := r.show(out.Withdrawn[0]); i.State != store.CredentialWithdrawn {
		t.Errorf("%+v", i)
	}
	reader, err := control.NewReader()
	if err != nil {
		t.Fatal(err)
	}
	r.refused("TerminalAdd", TerminalAddParams{Name: "nav-001", ReplyKey: reader.Key()}, control.Conflict)
	fresh, reply := r.reenroll("nav-001")
	if len(reply.Notes) != 1 {
		t.Errorf("%+v", reply)
	}
	fault(t, "the earlier bundle", r.rawEnroll(b, newBox(t)), transport.FaultRefused)
	x := newBox(t)
	r.enroll(fresh, x)
	if n := want[transport.CommandNext](t, r.as("nav-001", x).say(&transport.CommandPoll{})); n.Command != nil {
		t.Error("a withdrawn order is back")
	}
	r.order("nav-001", "maps") // and the place is free again
}

func TestRemovingAGate(t *testing.T) {
	r := newRig(t)
	x := newBox(t)
	r.enroll(r.addGate("maps"), x)
	h := r.as("gate-maps", x).obey()
	var out TerminalRemoved
	r.call("TerminalRemove", NameParams{Name: "gate-maps"}, &out)
	if len(out.Revoked) != 1 || !out.Enrolled || len(out.Warnings) != 1 || !r.revoked("server", serialText(h.chain[0].SerialNumber)) {
		t.Errorf("%+v", out)
	}
	fresh, _ := r.reenroll("gate-maps")
	r.enroll(fresh, x)
	r.as("gate-maps", x).obey()
}

// An order whose certificate the earlier device has got is nothing for the new.
func TestReenrollWithdrawsWhatWasIssued(t *testing.T) {
	r := newRig(t)
	r.addGate("maps")
	x, _ := r.terminal("nav-001")
	p := r.order("nav-001", "maps")
	want[transport.CredentialCertificate](t, r.as("nav-001", x).say(&transport.CredentialRequest{Command: p.Command, CSR: csr(t, newKey(t), transport.URI{})}))
	fresh, reply := r.reenroll("nav-001")
	if len(reply.Notes) != 1 || !strings.Contains(reply.Notes[0], string(p.Credential)) {
		t.Errorf("%+v", reply.Notes)
	}
	y := newBox(t)
	r.enroll(fresh, y)
	if n := want[transport.CommandNext](t, r.as("nav-001", y).say(&transport.CommandPoll{})); n.Command != nil {
		t.Error("the order of the earlier device goes to the new one")
	}
}
