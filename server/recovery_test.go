package server

import (
	"bytes"
	"crypto/rand"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// lost is a terminal whose device was exchanged: its old device made a wrap,
// its new one asks.
type lost struct {
	r        *rig
	name     transport.Name
	old, new *box
	key      transport.Sensitive // of the old store
	seed     transport.Sensitive // of the recipient
	ask      transport.RecoveryRequest
}

func (r *rig) lost(name string) *lost {
	r.t.Helper()
	x := &lost{r: r, name: transport.Name(name), new: newBox(r.t), key: bytes.Repeat([]byte{9}, transport.StoreKeySize)}
	x.old, _ = r.terminal(name)
	noted := want[transport.TerminalNoted](r.t, r.as(x.name, x.old).say(&transport.TerminalState{}))
	x.ask.ID = transport.NewID(rand.Reader)
	x.ask.Wrap = transport.RecoveryWrap{Version: noted.Recovery, Deployment: "demo", Device: x.old.id(), Store: transport.NewID(rand.Reader)}
	if err := x.ask.Wrap.Seal(noted.Key, x.key); err != nil {
		r.t.Fatal(err)
	}
	var err error
	if x.seed, x.ask.Recipient, err = transport.NewRecoveryKey(); err != nil {
		r.t.Fatal(err)
	}
	return x
}

// exchange has the new device enroll in place of the old one.
func (x *lost) exchange() *lost {
	x.r.t.Helper()
	b, _ := x.r.reenroll(string(x.name))
	want[transport.EnrollCertificate](x.r.t, x.r.enrollReply(b, x.new))
	return x
}

func (x *lost) says(b *box, m transport.RecoveryRequest) *transport.Envelope {
	x.r.t.Helper()
	return x.r.as(x.name, b).say(&m)
}

func (x *lost) state(expected transport.RecoveryProgress) {
	x.r.t.Helper()
	if s := want[transport.RecoveryState](x.r.t, x.says(x.new, x.ask)); s.ID != x.ask.ID || s.State != expected {
		x.r.t.Errorf("%+v, want %s", s, expected)
	}
}

// opens checks a release.
func (x *lost) opens(e *transport.Envelope) {
	x.r.t.Helper()
	m := want[transport.RecoveryRelease](x.r.t, e)
	g := transport.RecoveryGrant{ID: x.ask.ID, Deployment: "demo", Terminal: x.name, Device: x.new.id(), Origin: x.old.id(), Store: x.ask.Wrap.Store}
	if key, err := g.Open(x.seed, m); err != nil || !bytes.Equal(key, x.key) {
		x.r.t.Errorf("release: %x, %v", []byte(key), err)
	}
}

func (x *lost) param() RecoveryParams { return RecoveryParams{ID: x.ask.ID.String()} }

// audited lists the actions on an object.
func (r *rig) audited(object string) (actions []string) {
	r.t.Helper()
	list, err := r.s.Audit(r.t.Context(), 0, 1000)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, e := range list {
		if e.Object == object {
			actions = append(actions, e.Action)
		}
	}
	return actions
}

func TestRecoveryTakesADecision(t *testing.T) {
	r := newRig(t)
	x := r.lost("nav-001").exchange()
	x.state(transport.RecoveryAsked)
	x.state(transport.RecoveryAsked) // repeated, and recorded once
	var page RecoveryPage
	r.call("RecoveryList", ListParams{Filter: map[string]string{"state": "asked"}}, &page)
	if len(page.Recoveries) != 1 || page.Recoveries[0].Terminal != "nav-001" || !page.Recoveries[0].Current || page.Recoveries[0].Next == "" {
		t.Fatalf("%+v", page)
	}
	r.again(r.tweak) // the server restarts in between: its key is sealed, not lost
	var i RecoveryInfo
	r.call("RecoveryApprove", x.param(), &i)
	r.call("RecoveryApprove", x.param(), &i) // once more is no second decision
	if i.State != transport.RecoveryApproved || i.Decided.IsZero() {
		t.Errorf("%+v", i)
	}
	x.opens(x.says(x.new, x.ask))
	x.opens(x.says(x.new, x.ask))            // the first answer was lost
	r.call("RecoveryApprove", x.param(), &i) // a script says it again, and learns how far it is
	if i.State != transport.RecoveryReleased {
		t.Errorf("approved again after the release: %+v", i)
	}
	r.refused("RecoveryDeny", x.param(), control.Conflict)
	if s := want[transport.RecoveryState](t, r.as("nav-001", x.new).say(&transport.RecoveryTaken{ID: x.ask.ID})); s.State != transport.RecoveryDone {
		t.Errorf("%+v", s)
	}
	x.state(transport.RecoveryDone) // and nothing is released any more
	r.call("RecoveryApprove", x.param(), &i)
	if i.State != transport.RecoveryDone {
		t.Errorf("approved again after the end: %+v", i)
	}
	x.state(transport.RecoveryDone)
	r.refused("RecoveryDeny", x.param(), control.Conflict)
	if got := r.audited(x.ask.ID.String()); !slices.Equal(got, []string{"recovery.ask", "recovery.approve", "recovery.release", "recovery.taken"}) {
		t.Errorf("audited: %v", got)
	}
	var d RecoveryDetail
	r.call("RecoveryShow", x.param(), &d)
	if d.Store != x.ask.Wrap.Store || d.Version != 1 || d.Recovery.State != transport.RecoveryDone {
		t.Errorf("%+v", d)
	}
}

func TestRecoveryIsForTheTerminalThatWrapped(t *testing.T) {
	r := newRig(t)
	x := r.lost("nav-001")
	y := r.lost("nav-002").exchange()
	fault(t, "the device that has the key still", x.says(x.old, x.ask), transport.FaultRefused)
	x.exchange()
	fault(t, "the old device, after it was exchanged", x.says(x.old, x.ask), transport.FaultRefused)

	spoil := func(change func(*transport.RecoveryRequest)) transport.RecoveryRequest {
		m := x.ask
		m.ID, m.Wrap.Sealed, m.Recipient = transport.NewID(rand.Reader), slices.Clone(x.ask.Wrap.Sealed), slices.Clone(x.ask.Recipient)
		change(&m)
		return m
	}
	for name, m := range map[string]transport.RecoveryRequest{
		"another terminal's wrap":        spoil(func(m *transport.RecoveryRequest) { m.Wrap = y.ask.Wrap }),
		"its own name on another's wrap": spoil(func(m *transport.RecoveryRequest) { m.Wrap = y.ask.Wrap; m.Wrap.Device = x.old.id() }),
		"tampered wrap":                  spoil(func(m *transport.RecoveryRequest) { m.Wrap.Sealed[40] ^= 1 }),
		"another store":                  spoil(func(m *transport.RecoveryRequest) { m.Wrap.Store[0]++ }),
		"another deployment":             spoil(func(m *transport.RecoveryRequest) { m.Wrap.Deployment = "demo2" }),
		"an unknown recovery key":        spoil(func(m *transport.RecoveryRequest) { m.Wrap.Version = 2 }),
		"no recipient":                   spoil(func(m *transport.RecoveryRequest) { m.Recipient = nil }),
		"a recipient that is no key": spoil(func(m *transport.RecoveryRequest) {
			m.Recipient = bytes.Repeat([]byte{0xff}, transport.RecoveryKeySize)
		}),
	} {
		fault(t, name, x.says(x.new, m), transport.FaultRefused)
	}
	var page RecoveryPage
	r.call("RecoveryList", ListParams{}, &page)
	if len(page.Recoveries) != 0 {
		t.Errorf("recorded: %+v", page.Recoveries)
	}
}

func TestRecoveryIsNotReleasedToOthers(t *testing.T) {
	r := newRig(t)
	x := r.lost("nav-001").exchange()
	y := r.lost("nav-002").exchange()
	x.state(transport.RecoveryAsked)
	r.call("RecoveryApprove", x.param(), nil)
	_, other, err := transport.NewRecoveryKey()
	if err != nil {
		t.Fatal(err)
	}
	m := x.ask
	m.Recipient = other
	fault(t, "another recipient under the same id", x.says(x.new, m), transport.FaultRefused)
	fault(t, "another terminal under the same id", r.as("nav-002", y.new).say(&x.ask), transport.FaultRefused)
	fault(t, "taken before it was released", r.as("nav-001", x.new).say(&transport.RecoveryTaken{ID: x.ask.ID}), transport.FaultRefused)
	r.as("nav-002", y.new).say(&transport.RecoveryTaken{ID: x.ask.ID, GivenUp: true}) // not its own: nothing happens

	// An approval taken back releases nothing, and can be given again.
	r.call("RecoveryDeny", x.param(), nil)
	x.state(transport.RecoveryDenied)
	r.call("RecoveryApprove", x.param(), nil)

	// The box is exchanged once more: what was approved was for the one before.
	third := newBox(t)
	b, _ := r.reenroll("nav-001")
	r.refused("RecoveryApprove", x.param(), control.Conflict)
	want[transport.EnrollCertificate](t, r.enrollReply(b, third))
	fault(t, "the device before", x.says(x.new, x.ask), transport.FaultRefused)
	fault(t, "the next device with the same request", x.says(third, x.ask), transport.FaultRefused)
	r.refused("RecoveryApprove", x.param(), control.Conflict)
	r.refused("RecoveryShow", RecoveryParams{ID: "x"}, control.BadInput)
	r.refused("RecoveryShow", RecoveryParams{ID: transport.ID{1}.String()}, control.NotFound)
}

// Whatever becomes of a request whose key was sent, the list does not say that
// it was not; every end is in the audit log.
func TestReleasedRecoveryIsNotCalledDenied(t *testing.T) {
	r := newRig(t)
	end := func(x *lost) (RecoveryInfo, []string) {
		t.Helper()
		var d RecoveryDetail
		r.call("RecoveryShow", x.param(), &d)
		return d.Recovery, r.audited(x.ask.ID.String())
	}
	released := func(name string) *lost {
		x := r.lost(name).exchange()
		x.state(transport.RecoveryAsked)
		r.call("RecoveryApprove", x.param(), nil)
		want[transport.RecoveryRelease](t, x.says(x.new, x.ask)) // and is lost on the way
		return x
	}
	const so = "recovery.ask recovery.approve recovery.release "
	x := released("nav-001")
	want[transport.RecoveryState](t, r.as("nav-001", x.new).say(&transport.RecoveryTaken{ID: x.ask.ID, GivenUp: true}))
	if i, rows := end(x); i.State != transport.RecoveryDone || strings.Join(rows, " ") != so+"recovery.give-up" {
		t.Errorf("given up: %+v, %v", i, rows)
	}
	y := released("nav-002")
	r.call("TerminalRemove", NameParams{Name: "nav-002"}, nil)
	if i, rows := end(y); i.State != transport.RecoveryDone || i.Decided.IsZero() || strings.Join(rows, " ") != so+"recovery.end" {
		t.Errorf("removed: %+v, %v", i, rows)
	}
	z := r.lost("nav-003").exchange()
	z.state(transport.RecoveryAsked)
	r.reenroll("nav-003")
	if i, rows := end(z); i.State != transport.RecoveryDenied || i.Decided.IsZero() || strings.Join(rows, " ") != "recovery.ask recovery.end" {
		t.Errorf("enrolls anew: %+v, %v", i, rows)
	}
}

func TestRecoveryRequestsAreBounded(t *testing.T) {
	r := newRig(t)
	x := r.lost("nav-001").exchange()
	ask := func() *transport.Envelope {
		x.ask.ID = transport.NewID(rand.Reader)
		return x.says(x.new, x.ask)
	}
	var ids []transport.ID
	for range maxOpenRecoveries {
		want[transport.RecoveryState](t, ask())
		ids = append(ids, x.ask.ID)
	}
	fault(t, "too many open", ask(), transport.FaultRefused)
	for n := maxOpenRecoveries; n < maxRecoveries; n++ {
		r.call("RecoveryDeny", RecoveryParams{ID: ids[0].String()}, nil)
		want[transport.RecoveryState](t, ask())
		ids = append(ids[1:], x.ask.ID)
	}
	r.call("RecoveryDeny", RecoveryParams{ID: ids[0].String()}, nil)
	fault(t, "too many in a day", ask(), transport.FaultRefused)
	r.advance(recoveryDay + time.Minute)
	want[transport.RecoveryState](t, ask())
	// One connection with wraps that do not open costs the chip only so much.
	k := r.as("nav-001", x.new)
	bad := x.ask
	bad.ID, bad.Wrap.Sealed = transport.NewID(rand.Reader), make([]byte, transport.RecoverySealed)
	for range maxFalseWraps + 3 {
		fault(t, "a false wrap", k.say(&bad), transport.FaultRefused)
	}
	if k.ses.falseWraps != maxFalseWraps {
		t.Errorf("%d false wraps were opened", k.ses.falseWraps)
	}
}

// What the terminal reports after a recovery is what it holds, and the device
// that has lost its key holds nothing any more; a credential that must never
// travel came with an administrator's consent.
func TestHoldingsMoveWithARecovery(t *testing.T) {
	for _, transfer := range []string{"copy", "never"} {
		t.Run(transfer, func(t *testing.T) {
			r := newRig(t)
			r.addGate("maps")
			x := r.lost("nav-001")
			err := r.admin.Stream(t.Context(), Interface+".CredentialIssue", CredentialIssueParams{Terminal: "nav-001", Service: "maps", Transfer: transfer}, into(new(OrderProgress)))
			if err != nil {
				t.Fatal(err)
			}
			h := r.as("nav-001", x.old).obey()
			x.exchange()
			claims := func() *transport.Envelope {
				k := r.as("nav-001", x.new)
				m := claim(t, h.key, want[transport.CommandNext](t, k.say(&transport.CommandPoll{})).Nonce, x.new.id(), h.id)
				m.Source = x.old.id()
				return k.say(m)
			}
			if transfer == "never" {
				fault(t, "without a recovery", claims(), transport.FaultRefused)
			}
			x.state(transport.RecoveryAsked)
			r.call("RecoveryApprove", x.param(), nil)
			x.opens(x.says(x.new, x.ask))
			want[transport.CredentialClaimed](t, claims())
			i := r.show(h.id)
			if len(i.Holders) != 2 || !i.InForce {
				t.Fatalf("%+v", i)
			}
			for _, holder := range i.Holders {
				if holder.Active != (holder.Device == x.new.id()) {
					t.Errorf("%+v", holder)
				}
				if holder.Active && (holder.Origin != store.OriginMove || holder.Source == nil || *holder.Source != x.old.id()) {
					t.Errorf("%+v", holder)
				}
			}
		})
	}
}

func TestFallbackIsAuditedOnce(t *testing.T) {
	r := newRig(t)
	x, _ := r.terminal("nav-001")
	say := func(n uint32) {
		want[transport.TerminalNoted](t, r.as("nav-001", x).say(&transport.TerminalState{Incarnation: n}))
	}
	say(0)
	say(0)
	say(1)
	say(1)
	n := 0
	for _, a := range r.audited("nav-001") {
		if a == "terminal.fallback" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d entries", n)
	}
	if m := want[transport.TerminalNoted](t, r.as("nav-001", x).say(&transport.TerminalState{Recovery: 1})); m.Key != nil || m.Recovery != 1 {
		t.Errorf("the key is sent to who has a wrap: %+v", m)
	}
}

// A terminal that fell back says what it still holds: what it has lost is held
// by nobody, and can be issued anew.
func TestReportEndsWhatWasLost(t *testing.T) {
	r := newRig(t)
	for _, s := range []string{"maps", "fuel"} {
		r.addGate(s)
	}
	x, _ := r.terminal("nav-001")
	var kept, gone held
	r.order("nav-001", "maps")
	kept = r.as("nav-001", x).obey()
	r.order("nav-001", "fuel")
	gone = r.as("nav-001", x).obey()
	k := r.as("nav-001", x)
	want[transport.TerminalNoted](t, k.say(&transport.TerminalState{}))
	want[transport.TerminalNoted](t, k.say(&transport.TerminalState{Incarnation: 1, Report: &transport.TerminalReport{Holds: []transport.Name{kept.id}}}))
	if i := r.show(kept.id); !i.InForce {
		t.Errorf("%+v", i)
	}
	if i := r.show(gone.id); i.InForce || holderOf(t, i, "nav-001").Active {
		t.Errorf("%+v", i)
	}
	if got := r.audited(string(gone.id)); !slices.Contains(got, "credential.lost") {
		t.Errorf("%v", got)
	}
	fault(t, "a report without end", k.say(&transport.TerminalState{Report: &transport.TerminalReport{Holds: make([]transport.Name, transport.MaxReport+1)}}), transport.FaultMalformed)
	// It can have it anew.
	if p, refused := r.tryIssue(CredentialIssueParams{Terminal: "nav-001", Service: "fuel"}); refused != nil {
		t.Errorf("%+v %v", p, refused)
	}
}
