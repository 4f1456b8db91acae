package agent

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// newChipConversation is an enrolled terminal with a chip, and a server that
// vouches for it.
func newChipConversation(t *testing.T) *conversation {
	t.Helper()
	c := &conversation{t: t, server: newServer(t), vault: chipVault(t, hsmtest.StartTPM(t))}
	c.server.device, c.server.fleet = c.vault.device, newTestKey(t)
	c.connect()
	return c
}

func chipOrder(id transport.Name, transfer transport.Transfer, fleet []byte) transport.CredentialOrder {
	o := order(id)
	o.ChipOnly, o.Transfer, o.Fleet = true, transfer, fleet
	return o
}

// A key that must be in a chip is made there, and used there: certificate,
// claim and TLS. req: L4, L9
func TestChipOnlyCredential(t *testing.T) {
	c := newChipConversation(t)
	fleet := spki(t, c.server.fleet)
	for _, o := range []transport.CredentialOrder{
		chipOrder("maps-1", transport.TransferCopy, fleet), chipOrder("maps-2", transport.TransferMove, fleet),
		chipOrder("maps-3", transport.TransferNever, nil), chipOrder("maps-4", transport.TransferCopy, nil), // nobody could say where it may go
	} {
		id := c.server.order(o)
		c.push(&transport.CommandReady{})
		c.only(id, transport.CommandDone, "")
		h := c.holding(o.Credential)
		if h == nil || h.Record.Secret.Form != transport.SecretTPM || !h.Record.ChipOnly {
			t.Fatalf("%s: %+v", o.Credential, h)
		}
		want := o.Transfer
		if len(o.Fleet) == 0 {
			want = transport.TransferNever
		}
		if h.Record.Transfer != want {
			t.Errorf("%s: transfer %s, want %s", o.Credential, h.Record.Transfer, want)
		}
		used, err := newCredential(h, c.vault.module)
		if err != nil {
			t.Fatal(err)
		}
		h.wipe() // what is in use must not need it any more
		if !verifyPair(used) {
			t.Errorf("%s: certificate and key do not belong together", o.Credential)
		}
		if err := checkRecord(&c.holding(o.Credential).Record); err != nil {
			t.Errorf("%s: %v", o.Credential, err)
		}
	}
	c.noErrors()
	// One that came by a copy is claimed with a signature of the chip.
	h := c.holding("maps-1")
	h.Origin, h.Source = OriginCopy, transport.DeviceID{9}
	if err := c.vault.update(func(tx *store.Tx) error { return hold(tx, h) }); err != nil {
		t.Fatal(err)
	}
	c.carry(c.session.more())
	if c.server.claims["maps-1"] != (transport.DeviceID{9}) {
		t.Error("not claimed")
	}
	c.noErrors()
}

// A terminal without a chip refuses, and says why and what to do.
func TestChipOnlyWithoutChip(t *testing.T) {
	c := newConversation(t)
	id := c.server.order(chipOrder("maps-1", transport.TransferCopy, spki(t, newTestKey(t))))
	c.push(&transport.CommandReady{})
	c.only(id, transport.CommandRefused, `key storage is "file"`)
	gate := chipOrder("maps-2", transport.TransferNever, nil)
	gate.Usage, gate.DNS = transport.UsageServer, []string{"maps.example"}
	id = c.server.order(gate)
	c.push(&transport.CommandReady{})
	c.only(id, transport.CommandRefused, "without chip-only")
	soft := order("maps-3")
	soft.Fleet = spki(t, newTestKey(t))
	id = c.server.order(soft)
	c.push(&transport.CommandReady{})
	c.only(id, transport.CommandRefused, "no key in a chip")
	c.noErrors()
}

func TestChipOnlyUnderABadFleetKey(t *testing.T) {
	c := newChipConversation(t)
	id := c.server.order(chipOrder("maps-1", transport.TransferCopy, []byte("x")))
	c.push(&transport.CommandReady{})
	c.only(id, transport.CommandRefused, "fleet")
}

// The server's word for the chip is kept, once, and survives a restart; another
// chip's or a forged one is not taken.
func TestChipApproval(t *testing.T) {
	c := newChipConversation(t)
	parent, err := c.vault.keycopyParent(t.Context())
	if err != nil || parent == nil || len(parent.Approval) == 0 {
		t.Fatalf("%+v, %v", parent, err)
	}
	entries := func() int { return len(c.entries(audit.ChipApproved)) }
	if entries() != 1 {
		t.Errorf("%d entries", entries())
	}
	c.connect()
	if again, _ := c.vault.keycopyParent(t.Context()); entries() != 1 || !bytes.Equal(again.Approval, parent.Approval) {
		t.Error("a second approval took the place of one that is good")
	}
	good := approvalOf(t, c.server.fleet, parent.Public)
	for name, spoil := range map[string]func(*transport.ChipApproval){
		"signature":    func(a *transport.ChipApproval) { a.Signature[9] ^= 1 },
		"another chip": func(a *transport.ChipApproval) { a.Parent = slices.Clone(a.Parent); a.Parent[len(a.Parent)-1] ^= 1 },
		"another key":  func(a *transport.ChipApproval) { a.Fleet = spki(t, newTestKey(t)) },
		"no key":       func(a *transport.ChipApproval) { a.Fleet = nil },
	} {
		bad := *good
		bad.Signature = slices.Clone(good.Signature)
		spoil(&bad)
		c.push(&bad)
		if len(c.errs) == 0 {
			t.Errorf("%s: taken", name)
		}
		c.errs = nil
	}
	c.push(&transport.ChipApproval{Fleet: good.Fleet, Parent: parent.Public, Why: "the server forgot"})
	if again, _ := c.vault.keycopyParent(t.Context()); again == nil {
		t.Error("an approval that is good was given up")
	}
	c.server.fleet = newTestKey(t) // another deployment's: the word of the present server counts
	c.connect()
	if again, _ := c.vault.keycopyParent(t.Context()); again == nil || bytes.Equal(again.Approval, parent.Approval) {
		t.Error("the approval of another fleet key stays")
	}
	c.noErrors()
}

func (c *conversation) entries(kind audit.Kind) (list []audit.Entry) {
	c.t.Helper()
	err := c.vault.store.View(func(tx *store.Tx) error {
		return audit.Each(tx, func(e *audit.Entry) error {
			if e.Kind == kind {
				list = append(list, *e)
			}
			return nil
		})
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return list
}

// What chip show says in each case, and what chip install takes.
func TestChipByHand(t *testing.T) {
	r := emptyRig(t)
	plain := r.terminal("")
	s, err := plain.chipStatus(t.Context(), plain.vault)
	if err != nil || s.Present || s.Approved || !strings.Contains(s.Text, "no chip") {
		t.Errorf("%+v, %v", s, err)
	}
	a := testAgent(t, Config{Keycopy: &KeycopyConfig{Listen: "127.0.0.1:0"}})
	withChip(t, a)
	fleet := newTestKey(t)
	file := func(fleet *ecdsa.PrivateKey, parent []byte, deployment transport.Name) []byte {
		text, err := transport.FormatChipApproval(deployment, approvalOf(t, fleet, parent))
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	parent, err := a.vault.parent(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, file []byte, kind control.Kind) {
		t.Helper()
		err := a.installApproval(t.Context(), a.vault, file)
		if p, ok := errors.AsType[*control.Problem](err); !ok || p.Kind != kind || p.Next == "" {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("before provisioning", file(fleet, parent, testDeployment), control.Conflict)
	r.enlist(a, "")
	if s, err = a.chipStatus(t.Context(), a.vault); err != nil || !s.Present || s.Approved || s.Next == "" || !strings.HasPrefix(s.Chip, "000b") {
		t.Errorf("%+v, %v", s, err)
	}
	if shown, err := transport.ParseChip(s.File); err != nil || !bytes.Equal(shown, parent) {
		t.Errorf("the file is of another chip: %v", err)
	}
	other := chipVault(t, hsmtest.StartTPM(t))
	elsewhere, err := other.parent(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	refused("garbage", []byte("x"), control.BadInput)
	refused("another chip", file(fleet, elsewhere, testDeployment), control.Refused)
	refused("another deployment", file(fleet, parent, "other"), control.Refused)
	spoilt := approvalOf(t, fleet, parent)
	spoilt.Fleet = spki(t, newTestKey(t))
	text, _ := transport.FormatChipApproval(testDeployment, spoilt)
	refused("another authority's signature", text, control.BadInput)
	if err := a.installApproval(t.Context(), a.vault, file(fleet, parent, testDeployment)); err != nil {
		t.Fatal(err)
	}
	if s, err = a.chipStatus(t.Context(), a.vault); err != nil || !s.Approved || s.Next != "" {
		t.Errorf("%+v, %v", s, err)
	}
}

// A recovered store's keys are tried in the chip: those that it has are taken.
func TestRecoveredChipKeys(t *testing.T) {
	c := newChipConversation(t)
	c.server.order(chipOrder("maps-1", transport.TransferNever, nil))
	c.push(&transport.CommandReady{})
	h := c.holding("maps-1")
	p := &party{vault: c.vault, self: c.session.self, roots: c.session.roots}
	if err := p.checkHeld(t.Context(), &h.Record); err != nil {
		t.Errorf("of this very chip: %v", err)
	}
	other := &party{vault: chipVault(t, hsmtest.StartTPM(t)), self: c.session.self, roots: c.session.roots}
	if err := other.checkHeld(t.Context(), &h.Record); !errors.Is(err, hsm.ErrReplaced) {
		t.Errorf("of another chip: %v", err)
	}
	if err := p.check(t.Context(), &h.Record); err == nil {
		t.Error("a blob of a chip comes with a key copy")
	}
	if _, err := x509.ParseCertificate(h.Record.Chain[0]); err != nil {
		t.Fatal(err)
	}
}
