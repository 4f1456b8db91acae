package server

import (
	"bytes"
	"crypto/rand"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// fetched is a terminal that obeys orders about codes, as far as they are good.
type fetched struct {
	r    *rig
	name transport.Name
	box  *box
	has  map[uint32]string // epoch: code
}

func (r *rig) fetched(name string, b *transport.Bundle) *fetched {
	r.t.Helper()
	x := &fetched{r: r, name: transport.Name(name), box: newBox(r.t), has: map[uint32]string{}}
	r.enroll(b, x.box)
	return x
}

// poll obeys orders until there are none, and counts them by kind.
func (x *fetched) poll() map[string]int {
	x.r.t.Helper()
	n := map[string]int{}
	k := x.r.as(x.name, x.box)
	for {
		next := want[transport.CommandNext](x.r.t, k.say(&transport.CommandPoll{}))
		c := next.Command
		if c == nil {
			return n
		}
		n[c.Kind]++
		switch c.Kind {
		case transport.CommandCodeInstall:
			var m transport.CodeInstall
			if err := errors.Join(transport.Unmarshal(c.Body, &m, transport.MaxEnvelope), m.Check()); err != nil {
				x.r.t.Fatal(err)
			}
			x.has[m.Epoch] = string(m.Code)
		case transport.CommandCodeRetire:
			var m transport.CodeRetire
			if err := errors.Join(transport.Unmarshal(c.Body, &m, transport.MaxEnvelope), m.Check()); err != nil {
				x.r.t.Fatal(err)
			}
			left := maps.Clone(x.has)
			for _, epoch := range m.Epochs {
				delete(left, epoch)
			}
			if len(left) == 0 && len(x.has) > 0 { // it keeps its last one
				x.settle(k, c.ID, transport.CommandRefused)
				continue
			}
			x.has = left
		default:
			x.r.t.Fatalf("ordered %s", c.Kind)
		}
		x.settle(k, c.ID, transport.CommandDone)
	}
}

func (x *fetched) settle(k *talk, id transport.ID, state transport.CommandState) {
	x.r.t.Helper()
	want[transport.CommandAck](x.r.t, k.say(&transport.CommandResult{Command: id, State: state}))
}

// refuse answers the oldest order without obeying it.
func (x *fetched) refuse(state transport.CommandState) {
	x.r.t.Helper()
	k := x.r.as(x.name, x.box)
	x.settle(k, want[transport.CommandNext](x.r.t, k.say(&transport.CommandPoll{})).Command.ID, state)
}

func (x *fetched) holds(epochs ...uint32) {
	x.r.t.Helper()
	var got []uint32
	for epoch, code := range x.has {
		got = append(got, epoch)
		x.r.view(func(tx *store.Tx) error {
			row, err := tx.Terminal(x.name)
			if err != nil {
				return err
			}
			want, err := tx.SecurityCode(store.Group{Name: row.Group, Epoch: epoch})
			if err == nil && string(want.Bytes()) != code {
				x.r.t.Errorf("%s: epoch %d is another code", x.name, epoch)
			}
			return err
		})
	}
	slices.Sort(got)
	if !slices.Equal(got, epochs) {
		x.r.t.Errorf("%s was given %v, want %v", x.name, got, epochs)
	}
}

func (r *rig) group(name string) (d GroupDetail) {
	r.t.Helper()
	r.call("GroupShow", NameParams{Name: name}, &d)
	return d
}

func (r *rig) rotate(name string) (c GroupChange) {
	r.t.Helper()
	r.call("GroupRotate", NameParams{Name: name}, &c)
	return c
}

// A new code is rolled out, both are in force, the old one is retired. req: C1
func TestCodesAreReplaced(t *testing.T) {
	r := newRig(t)
	one, two := r.fetched("nav-001", r.addTerminal("nav-001")), r.fetched("nav-002", r.addTerminal("nav-002"))
	r.terminal("nav-003") // never comes back
	r.addTerminal("nav-004")
	if n := one.poll(); len(n) != 0 {
		t.Errorf("ordered at enrollment: %v", n)
	}
	c := r.rotate("default")
	if c.Epoch != 2 || c.Newest != 2 || c.Ordered != 3 {
		t.Errorf("%+v", c)
	}
	one.poll()
	one.holds(2)
	d := r.group("default")
	if g := d.Group; g.Epoch != 2 || !slices.Equal(g.Active, []uint32{2, 1}) || g.Terminals != 3 || g.Lacking != 2 {
		t.Errorf("%+v", g)
	}
	if len(d.Codes) != 2 || d.Codes[0].Held != 1 || d.Codes[0].Ordered != 2 || d.Codes[1].Held != 3 {
		t.Errorf("%+v", d.Codes)
	}
	if len(d.Laggards) != 2 || d.Laggards[0].Terminal != "nav-002" || d.Laggards[0].State != "ordered" {
		t.Errorf("%+v", d.Laggards)
	}

	var refused *control.Problem
	err := r.admin.Call(t.Context(), Interface+".GroupRetire", GroupRetireParams{Name: "default", Epoch: 1}, nil)
	if !errors.As(err, &refused) || refused.Kind != control.Conflict || !strings.Contains(refused.Message, "2 of 3 terminals") || !strings.Contains(refused.Message, "nav-002, nav-003") {
		t.Errorf("%v", err)
	}
	r.call("GroupRetire", GroupRetireParams{Name: "default", Epoch: 1, Force: true}, &c)
	if c.Epoch != 1 || c.Newest != 2 || c.Ordered != 3 || c.Lacking != 2 {
		t.Errorf("%+v", c)
	}
	two.has[1] = "from its bundle"
	if n := two.poll(); n[transport.CommandCodeInstall] != 1 || n[transport.CommandCodeRetire] != 1 {
		t.Errorf("%v", n)
	}
	two.holds(2) // the new one came before the old one went
	one.poll()
	d = r.group("default")
	if c := d.Codes[1]; c.State != store.CodeRetired || c.Retiring != 1 || c.Held != 0 || !slices.Equal(d.Group.Active, []uint32{2}) {
		t.Errorf("%+v", d)
	}
	b, _ := r.bundle("SpareAdd", func(key string) any { return SpareAddParams{ReplyKey: key} })
	if b.Epoch != 2 || string(b.SecurityCode) != one.has[2] {
		t.Errorf("a new bundle has the code of epoch %d", b.Epoch)
	}
	if got := r.audited("default"); !slices.Equal(got, []string{"group.rotate", "group.retire"}) {
		t.Errorf("audited %v", got)
	}
}

// Neither the orders nor what stays of a retired code have it in clear.
func TestCodesAreNotInTheDatabase(t *testing.T) {
	r := newRig(t)
	x := r.fetched("nav-001", r.addTerminal("nav-001"))
	r.rotate("default")
	r.view(func(tx *store.Tx) error {
		code, err := tx.SecurityCode(store.Group{Name: "default", Epoch: 2})
		if err != nil {
			return err
		}
		pending, err := tx.Pending(x.name)
		if len(pending) != 1 || bytes.Contains(pending[0].Body, code.Bytes()) {
			t.Errorf("%d orders, or one with the code in it", len(pending))
		}
		return err
	})
	x.poll()
	r.call("GroupRetire", GroupRetireParams{Name: "default", Epoch: 1}, nil)
	r.view(func(tx *store.Tx) error {
		if _, err := tx.SecurityCode(store.Group{Name: "default", Epoch: 1}); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("a retired code: %v", err)
		}
		return nil
	})
}

func TestGroupsRefused(t *testing.T) {
	r := newRig(t)
	r.call("GroupAdd", NameParams{Name: "ferries"}, nil)
	for what, c := range map[string]struct {
		method string
		in     any
		kind   control.Kind
	}{
		"twice":                {"GroupAdd", NameParams{Name: "ferries"}, control.Conflict},
		"bad name":             {"GroupAdd", NameParams{Name: "Ferries!"}, control.BadInput},
		"show unknown":         {"GroupShow", NameParams{Name: "none"}, control.NotFound},
		"rotate unknown":       {"GroupRotate", NameParams{Name: "none"}, control.NotFound},
		"resume unknown":       {"GroupResume", NameParams{Name: "none"}, control.NotFound},
		"retire unknown":       {"GroupRetire", GroupRetireParams{Name: "none", Epoch: 1}, control.NotFound},
		"retire the only one":  {"GroupRetire", GroupRetireParams{Name: "ferries", Epoch: 1}, control.Conflict},
		"so, with force":       {"GroupRetire", GroupRetireParams{Name: "ferries", Epoch: 1, Force: true}, control.Conflict},
		"retire what is not":   {"GroupRetire", GroupRetireParams{Name: "ferries", Epoch: 7}, control.NotFound},
		"terminal in no group": {"TerminalAdd", TerminalAddParams{Name: "nav-001", Group: "none"}, control.NotFound},
	} {
		t.Log(what)
		r.refused(c.method, c.in, c.kind)
	}
	for range maxActive - 1 {
		r.rotate("ferries")
	}
	r.refused("GroupRotate", NameParams{Name: "ferries"}, control.Conflict)
	r.call("GroupRetire", GroupRetireParams{Name: "ferries", Epoch: 2}, nil)
	r.refused("GroupRetire", GroupRetireParams{Name: "ferries", Epoch: 2}, control.Conflict)
	r.call("GroupRetire", GroupRetireParams{Name: "ferries", Epoch: maxActive}, nil) // the newest: it leaked
	if c := r.rotate("ferries"); c.Epoch != maxActive+1 {
		t.Errorf("epoch %d again", c.Epoch)
	}
	var page GroupPage
	r.call("GroupList", nil, &page)
	if len(page.Groups) != 2 || page.Groups[1].Group != "ferries" || !slices.Equal(page.Groups[1].Active, []uint32{5, 3, 1}) {
		t.Errorf("%+v", page)
	}
}

// A terminal that enrolls late gets what its bundle did not bring, and gives up
// what its bundle or a spare one before it has brought.
func TestCodesAtEnrollment(t *testing.T) {
	r := newRig(t)
	early, late := r.addTerminal("nav-001"), r.addTerminal("nav-002")
	r.rotate("default")
	r.rotate("default")
	x := r.fetched("nav-001", early)
	x.has[1] = codeIn(r, 1)
	if n := x.poll(); n[transport.CommandCodeInstall] != 2 {
		t.Errorf("%v", n)
	}
	x.holds(1, 2, 3)
	r.enroll(early, x.box) // the reply was lost, or it renews
	if n := x.poll(); len(n) != 0 {
		t.Errorf("ordered twice: %v", n)
	}
	r.call("GroupRetire", GroupRetireParams{Name: "default", Epoch: 1}, nil)
	y := r.fetched("nav-002", late)
	y.has[1] = "from its bundle"
	if n := y.poll(); n[transport.CommandCodeInstall] != 2 || n[transport.CommandCodeRetire] != 1 {
		t.Errorf("%v", n)
	}
	y.holds(2, 3)
	z := r.fetched("nav-003", r.addTerminal("nav-003"))
	z.has[3] = codeIn(r, 3)
	z.poll()
	z.holds(2, 3)
	// Another device under the name begins anew; orders for the one before go.
	r.rotate("default")
	again, _ := r.reenroll("nav-002")
	y2 := r.fetched("nav-002", again)
	y2.has[4] = codeIn(r, 4)
	if n := y2.poll(); n[transport.CommandCodeInstall] != 2 || n[transport.CommandCodeRetire] != 1 {
		t.Errorf("%v", n)
	}
	y2.holds(2, 3, 4)
}

func codeIn(r *rig, epoch uint32) (code string) {
	r.view(func(tx *store.Tx) error {
		c, err := tx.SecurityCode(store.Group{Name: "default", Epoch: epoch})
		if err == nil {
			code = string(c.Bytes())
		}
		return err
	})
	return code
}

// A terminal that does not know the order is asked again when told to; one that
// does not give a code up is shown.
func TestCodesRefused(t *testing.T) {
	r := newRig(t)
	x := r.fetched("nav-001", r.addTerminal("nav-001"))
	r.rotate("default")
	x.refuse(transport.CommandUnknown)
	d := r.group("default")
	if d.Codes[0].Refused != 1 || d.Laggards[0].State != "refused" {
		t.Errorf("%+v", d)
	}
	var c GroupChange
	r.call("GroupResume", NameParams{Name: "default"}, &c)
	if c.Ordered != 1 {
		t.Errorf("%+v", c)
	}
	r.call("GroupResume", NameParams{Name: "default"}, &c)
	if c.Ordered != 0 {
		t.Errorf("told twice: %+v", c)
	}
	x.poll()
	x.holds(2)
	r.call("GroupRetire", GroupRetireParams{Name: "default", Epoch: 1}, nil)
	x.refuse(transport.CommandRefused)
	if d := r.group("default"); d.Codes[1].Refused != 1 || d.Codes[1].Retiring != 0 {
		t.Errorf("%+v", d.Codes)
	}
	r.call("GroupResume", NameParams{Name: "default"}, &c)
	if d := r.group("default"); c.Ordered != 1 || d.Codes[1].Refused != 0 || d.Codes[1].Retiring != 1 {
		t.Errorf("%+v %+v", c, d.Codes)
	}
	x.poll()
	if d := r.group("default"); d.Codes[1].Refused+d.Codes[1].Retiring+d.Codes[1].Held != 0 {
		t.Errorf("%+v", d.Codes)
	}
}

// A terminal that was away while several codes came and went gives up the one
// that it came with: the code may have been replaced because it leaked. req: C1
func TestCodesWhileAway(t *testing.T) {
	r := newRig(t)
	x := r.fetched("nav-001", r.addTerminal("nav-001"))
	x.has[1] = codeIn(r, 1)
	for epoch := range uint32(transport.MaxCodes + 2) {
		r.rotate("default")
		r.call("GroupRetire", GroupRetireParams{Name: "default", Epoch: epoch + 1, Force: true}, nil)
	}
	x.poll()
	x.holds(transport.MaxCodes + 3)
	d := r.group("default")
	for _, c := range d.Codes[1:] {
		if c.Held+c.Ordered+c.Refused+c.Retiring != 0 {
			t.Errorf("%+v", c)
		}
	}
}

// A code that is retired before a terminal has fetched it never gets there.
func TestCodeRetiredOnTheWay(t *testing.T) {
	r := newRig(t)
	x := r.fetched("nav-001", r.addTerminal("nav-001"))
	r.rotate("default")
	r.call("GroupRetire", GroupRetireParams{Name: "default", Epoch: 2}, nil)
	if n := x.poll(); n[transport.CommandCodeInstall] != 0 || n[transport.CommandCodeRetire] != 1 {
		t.Errorf("%v", n)
	}
	x.holds()
}

// For a terminal that has proven its chip the code is wrapped to that, and it
// is the group's. req: C1
func TestCodeForAProvenChip(t *testing.T) {
	r, maker := attestRig(t)
	x := newChipBox(t, newChip(t, maker))
	b := r.addAttested("nav-001")
	want[transport.EnrollCertificate](t, r.enrollChip(b, x))
	r.rotate("default")
	var device transport.DeviceID
	r.view(func(tx *store.Tx) error {
		row, err := tx.Terminal("nav-001")
		device = row.Device
		return err
	})
	ses, err := newSession(rand.Reader, "nav-001", device)
	if err != nil {
		t.Fatal(err)
	}
	k := &talk{r: r, ses: ses}
	c := want[transport.CommandNext](t, k.say(&transport.CommandPoll{})).Command
	var m transport.CodeInstall
	if err := errors.Join(transport.Unmarshal(c.Body, &m, transport.MaxEnvelope), m.Check()); err != nil {
		t.Fatal(err)
	}
	if m.Wrapped == nil || len(m.Code) != 0 || m.Epoch != 2 {
		t.Fatalf("%+v", m)
	}
	r.sameCode(x, m.Wrapped)
	want[transport.CommandAck](t, k.say(&transport.CommandResult{Command: c.ID, State: transport.CommandDone}))
	// Enrolled again, with the code of epoch 2 in the reply: what it had stays ordered.
	want[transport.EnrollCertificate](t, r.enrollChip(b, x))
	if d := r.group("default"); d.Codes[0].Held != 1 {
		t.Errorf("%+v", d.Codes)
	}
}
