package server

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/tpm"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

func (x *chipBox) parent() []byte {
	x.t.Helper()
	p, err := x.module.Parent(x.t.Context())
	if err != nil {
		x.t.Fatal(err)
	}
	return p
}

// report is what a terminal is told about a chip.
func (k *talk) report(parent []byte) *transport.ChipApproval {
	k.r.t.Helper()
	return want[transport.ChipApproval](k.r.t, k.say(&transport.ChipReport{Parent: parent}))
}

func goodApproval(t *testing.T, a *transport.ChipApproval) {
	t.Helper()
	key, err := transport.ParseFleetKey(a.Fleet)
	if err != nil {
		t.Fatal(err)
	}
	if err := tpm.CheckParentApproval(key, a.Parent, a.Signature); err != nil {
		t.Errorf("%v; %s", err, a.Why)
	}
}

// proven enrolls a terminal that proves its chip, and connects it.
func (r *rig) proven(name string, m *tpm.Module) (*chipBox, *talk) {
	r.t.Helper()
	x := newChipBox(r.t, m)
	want[transport.EnrollCertificate](r.t, r.enrollChip(r.addAttested(name), x))
	return x, r.asChip(transport.Name(name))
}

// asChip is a connection of whatever device the terminal is enrolled with.
func (r *rig) asChip(name transport.Name) *talk {
	r.t.Helper()
	k := &talk{r: r}
	r.view(func(tx *store.Tx) error {
		row, err := tx.Terminal(name)
		k.ses = &session{terminal: name, device: row.Device}
		return err
	})
	return k
}

// A terminal that has proven its chip is given the fleet's word for it, the
// same on every connection, and for no other chip. req: L3
func TestChipApprovedWhenProven(t *testing.T) {
	r, maker := attestRig(t)
	x, k := r.proven("nav-001", newChip(t, maker))
	a := k.report(x.parent())
	goodApproval(t, a)
	if again := r.asChip("nav-001").report(x.parent()); !bytes.Equal(again.Signature, a.Signature) || !bytes.Equal(again.Fleet, a.Fleet) {
		t.Error("not the same approval again")
	}
	other := newChipBox(t, newChip(t, maker))
	if b := k.report(other.parent()); b.Signature != nil || !strings.Contains(b.Why, "nav-001 has not proven") {
		t.Errorf("another chip: %+v", b)
	}
	var page ChipPage
	r.call("ChipList", ListParams{Filter: map[string]string{"origin": "proven"}}, &page)
	if len(page.Chips) != 1 || page.Chips[0].Device == nil || page.Chips[0].Actor != "terminal nav-001" {
		t.Errorf("%+v", page.Chips)
	}
	box, _ := r.terminal("plain") // says that the proven chip is its own: the approval is good for that chip alone
	if b := r.as("plain", box).report(x.parent()); !bytes.Equal(b.Signature, a.Signature) {
		t.Errorf("%+v", b)
	}
	fault(t, "no storage key", k.say(&transport.ChipReport{Parent: []byte("x")}), transport.FaultMalformed)
	r.call("TerminalRemove", NameParams{Name: "nav-001"}, nil)
	fault(t, "a removed terminal", k.say(&transport.ChipReport{Parent: x.parent()}), transport.FaultRefused)
}

// A terminal that has proven nothing gets an approval once an administrator
// vouches for its chip, also by hand.
func TestChipVouchedFor(t *testing.T) {
	r, maker := attestRig(t)
	x := newChipBox(t, newChip(t, maker))
	box, _ := r.terminal("nav-001")
	k := r.as("nav-001", box)
	if a := k.report(x.parent()); a.Signature != nil || !strings.Contains(a.Why, "chip approve") {
		t.Errorf("approved without a reason: %+v", a)
	}
	file, err := transport.FormatChip(x.parent())
	if err != nil {
		t.Fatal(err)
	}
	var one, two ChipApproved
	r.call("ChipApprove", ChipApproveParams{File: file}, &one)
	r.call("ChipApprove", ChipApproveParams{File: file}, &two)
	if one.Before || !two.Before || !bytes.Equal(one.File, two.File) || one.Chip.Origin != store.ChipVouched {
		t.Errorf("%+v\n%+v", one, two)
	}
	deployment, a, err := transport.ParseChipApproval(one.File)
	if err != nil || deployment != "demo" {
		t.Fatalf("%q, %v", deployment, err)
	}
	goodApproval(t, a)
	if told := k.report(x.parent()); !bytes.Equal(told.Signature, a.Signature) {
		t.Errorf("%+v", told)
	}
	signing, err := hsm.Decode(x.identity)
	if err != nil {
		t.Fatal(err)
	}
	bad, _ := transport.FormatChip(signing.Public)
	for _, f := range [][]byte{nil, []byte("x"), bad, one.File} {
		r.refused("ChipApprove", ChipApproveParams{File: f}, control.BadInput)
	}
	r.view(func(tx *store.Tx) error {
		if _, err := tx.Chip(signing.Public); err == nil {
			t.Error("a signing key is approved")
		}
		return nil
	})
}

// The fleet key is made once, also for a deployment from before there was one.
func TestFleetKeyStays(t *testing.T) {
	r := newRig(t)
	first := r.s.fleet
	if _, err := transport.ParseFleetKey(first.Public); err != nil {
		t.Fatal(err)
	}
	if err := r.s.loadFleetKey(context.Background()); err != nil || !bytes.Equal(r.s.fleet.Public, first.Public) {
		t.Errorf("another one after a start: %v", err)
	}
	if err := r.s.store.Update(t.Context(), r.s.by("tester"), func(tx *store.Tx) error { return tx.PutMeta(metaFleetKey, []byte("x")) }); err != nil {
		t.Fatal(err)
	}
	if err := r.s.loadFleetKey(context.Background()); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("damaged: %v", err)
	}
}

// Only an order for a key that lives in a chip and may travel says whose word
// the key is to obey.
func TestOrderCarriesFleetKey(t *testing.T) {
	r := newRig(t)
	r.addGate("maps")
	for name, c := range map[string]struct {
		in    CredentialIssueParams
		fleet bool
	}{
		"plain":   {CredentialIssueParams{Transfer: "copy"}, false},
		"stays":   {CredentialIssueParams{Transfer: "never", ChipOnly: true}, false},
		"copied":  {CredentialIssueParams{Transfer: "copy", ChipOnly: true}, true},
		"moved":   {CredentialIssueParams{Transfer: "move", ChipOnly: true}, true},
		"default": {CredentialIssueParams{ChipOnly: true}, true},
	} {
		x, _ := r.terminal("nav-" + name)
		c.in.Terminal, c.in.Service = "nav-"+name, "maps"
		var p OrderProgress
		if err := r.admin.Stream(t.Context(), Interface+".CredentialIssue", c.in, into(&p)); err != nil {
			t.Fatal(err)
		}
		_, o := r.as(transport.Name("nav-"+name), x).next()
		if bytes.Equal(o.Fleet, r.s.fleet.Public) != c.fleet || len(o.Fleet) > 0 != c.fleet || o.ChipOnly != c.in.ChipOnly {
			t.Errorf("%s: %+v", name, o)
		}
	}
}
