package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// cutMove has a move break off when one end has made a certain number of writes,
// and both ends started again; then the old terminal is shut, as if it were gone.
func cutMove(t *testing.T, end string, write int) (*copyRig, transport.ID) {
	t.Helper()
	r := newCopyRig(t)
	r.holds([]transport.Transfer{transport.TransferMove})
	o, code := r.arm()
	victim := map[string]*Agent{"old": r.old, "new": r.new}[end]
	cut := cutsAt(victim.vault, write, true)
	ctx, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	go func() {
		select {
		case <-cut.fired:
			giveUp()
		case <-ctx.Done():
		}
	}()
	if _, err := r.new.fetch(ctx, fetchOrder{address: o.chosen.Listen, typed: slices.Clone(code)}, func(KeycopyEvent) {}); err == nil {
		t.Fatal("it was not cut")
	}
	r.restart(victim)
	list := dealsOf(t, r.old)
	if len(list) != 1 {
		t.Fatalf("%d copies at the old terminal", len(list))
	}
	return r, list[0].Deal.ID
}

// Writes after which the old terminal is COMMITTED, and the new one STAGED with
// the old one only OFFERED, or ACTIVE with the old one COMMITTED.
const (
	committedWrite = 4
	stagedWrite    = 4
	activeWrite    = 6
)

func phaseOf(t testing.TB, a *Agent, id transport.ID) transport.KeycopyPhase {
	t.Helper()
	d, err := a.dealOn(id, "")
	if err != nil {
		t.Fatal(err)
	}
	return d.Phase
}

// anyCode is a code that could be right.
func anyCode(t testing.TB, a *Agent) []byte {
	t.Helper()
	code, err := keycopy.NewOperatorCode(rand.Reader, a.keycopyClock()())
	if err != nil {
		t.Fatal(err)
	}
	defer code.Wipe()
	return code.Grouped()
}

func lastEntry(t testing.TB, a *Agent, kind audit.Kind) string {
	t.Helper()
	for _, l := range slices.Backward(logOf(t, a)) {
		if l.Kind == kind {
			return l.Detail
		}
	}
	return ""
}

// The new terminal died after the old one gave its keys up: they are taken back,
// on a person's word. Should it turn up all the same, it drops what waits there.
// req: C9
func TestReclaim(t *testing.T) {
	r, id := cutMove(t, "old", committedWrite)
	if p := phaseOf(t, r.old, id); p != transport.KeycopyCommitted {
		t.Fatalf("the old terminal is %s", p)
	}
	if inUse(t, r.old, "maps-move") || inUse(t, r.new, "maps-move") {
		t.Error("somebody uses what neither may")
	}
	if _, err := r.old.Credential("maps", transport.UsageClient); err == nil || !strings.Contains(err.Error(), "moving to device") {
		t.Errorf("relays are told: %v", err)
	}
	if _, _, err := r.old.arm(t.Context(), armOrder{}); !errors.Is(err, &control.Problem{Kind: control.Conflict}) || !strings.Contains(err.Error(), "moved to another terminal") {
		t.Errorf("it is offered again: %v", err)
	}
	for name, wrong := range map[string]resort{"activate": activated(), "abandon": abandoned(), "drop": dropped()} {
		if _, err := r.old.lastResort(t.Context(), id.String(), wrong); !errors.Is(err, &control.Problem{Kind: control.Conflict}) {
			t.Errorf("%s at the old terminal: %v", name, err)
		}
	}
	s, err := r.old.lastResort(t.Context(), short(id), reclaimed())
	if err != nil {
		t.Fatal(err)
	}
	if s.Server != serverAbsent || s.Deal.Phase != "reclaimed" || !s.Deal.Forced || !inUse(t, r.old, "maps-move") {
		t.Errorf("%+v", s)
	}
	if d := lastEntry(t, r.old, audit.CopyReclaimed); !strings.Contains(d, "without the server") || !strings.Contains(d, "maps-move") {
		t.Errorf("in the log: %q", d)
	}
	if _, err := r.old.lastResort(t.Context(), short(id), reclaimed()); !errors.Is(err, &control.Problem{Kind: control.Conflict}) {
		t.Errorf("twice: %v", err)
	}
	// It turns up.
	r.wait(func() bool { return r.door() != "" })
	after, err := r.new.resume(t.Context(), id, r.door(), nil)
	if err != nil || after.Phase != transport.KeycopyDropped {
		t.Errorf("the new terminal: %v, %v", after, err)
	}
	if list, err := r.new.Credentials(); err != nil || len(list) != 0 {
		t.Errorf("it still has %v, %v", list, err)
	}
	r.noneTwice([]transport.Transfer{transport.TransferMove})
}

// The old terminal was unplugged after the keys came: they are used, on a person's
// word. Should it turn up, it gives them up.
// req: C9
func TestActivate(t *testing.T) {
	r, id := cutMove(t, "new", stagedWrite)
	if p := phaseOf(t, r.new, id); p != transport.KeycopyStaged {
		t.Fatalf("the new terminal is %s", p)
	}
	list, err := r.new.Credentials()
	if err != nil || len(list) != 1 || list[0].Usable || list[0].Staged == nil || !strings.Contains(list[0].Why, "staged") {
		t.Fatalf("%+v, %v", list, err)
	}
	if _, err := r.new.Credential("maps", transport.UsageClient); !errors.Is(err, ErrNoCredential) {
		t.Errorf("what is staged is used: %v", err)
	}
	r.stops[r.old]() // unplugged
	// Nothing new before that is settled.
	_, err = r.new.fetch(t.Context(), fetchOrder{address: "127.0.0.1:1", typed: anyCode(t, r.new)}, func(KeycopyEvent) {})
	p := control.AsProblem(err)
	if p.Kind != control.Conflict || !strings.Contains(p.Next, "keycopy activate "+short(id)) || !strings.Contains(p.Next, "keycopy resume "+short(id)) {
		t.Errorf("a new copy: %v, next %q", err, p.Next)
	}
	if _, err := r.new.lastResort(t.Context(), id.String(), reclaimed()); !errors.Is(err, &control.Problem{Kind: control.Conflict}) {
		t.Errorf("reclaim at the new terminal: %v", err)
	}
	s, err := r.new.lastResort(t.Context(), "", activated())
	if err != nil || s.Server != serverAbsent || s.Deal.Phase != "active" || !s.Deal.Forced || !inUse(t, r.new, "maps-move") {
		t.Fatalf("%+v, %v", s, err)
	}
	if d := lastEntry(t, r.new, audit.CopyActivated); !strings.Contains(d, "without the server") {
		t.Errorf("in the log: %q", d)
	}
	if strings.Contains(s.Deal.Next, "leave the old terminal on") { // it is gone
		t.Errorf("the copy says: %q", s.Deal.Next)
	}
	// It turns up.
	r.start(r.old)
	r.wait(func() bool { return r.door() != "" })
	after, err := r.new.resume(t.Context(), id, r.door(), nil)
	if err != nil || after.Phase != transport.KeycopyClosed {
		t.Errorf("%v, %v", after, err)
	}
	r.settledRight([]transport.Transfer{transport.TransferMove})
}

// Whoever would activate while the old terminal is there just goes on.
func TestActivateTriesTheOldTerminalFirst(t *testing.T) {
	r, id := cutMove(t, "new", stagedWrite)
	s, err := r.new.lastResort(t.Context(), id.String(), activated())
	if err != nil || s.Deal.Phase != "closed" || s.Deal.Forced || !strings.Contains(s.Text, "went on by itself") {
		t.Fatalf("%+v, %v", s, err)
	}
	r.settledRight([]transport.Transfer{transport.TransferMove})
}

// What waits can be destroyed; the old terminal, which had not even a receipt,
// keeps it.
func TestDropWhatIsStaged(t *testing.T) {
	r, id := cutMove(t, "new", stagedWrite)
	r.stops[r.old]()
	if _, err := r.new.lastResort(t.Context(), id.String(), abandoned()); !errors.Is(err, &control.Problem{Kind: control.Conflict}) {
		t.Errorf("without an administrator: %v", err)
	}
	s, err := r.new.lastResort(t.Context(), id.String(), dropped())
	if err != nil || s.Deal.Phase != "dropped" {
		t.Fatalf("%+v, %v", s, err)
	}
	if list, err := r.new.Credentials(); err != nil || len(list) != 0 {
		t.Errorf("still here: %v, %v", list, err)
	}
	r.start(r.old)
	if !inUse(t, r.old, "maps-move") {
		t.Error("the old terminal has lost it")
	}
	if s, err := r.old.lastResort(t.Context(), id.String(), abandoned()); err != nil || s.Deal.Phase != "abandoned" || s.Server != "" {
		t.Errorf("%+v, %v", s, err)
	}
	r.finish()
	r.settledRight([]transport.Transfer{transport.TransferMove})
}

// Both were used because somebody was wrong: it is said, and no key is destroyed.
func TestBothUseIt(t *testing.T) {
	r, id := cutMove(t, "old", committedWrite)
	if _, err := r.old.lastResort(t.Context(), id.String(), reclaimed()); err != nil {
		t.Fatal(err)
	}
	if _, err := (&Agent{cfg: Config{}, vault: r.new.vault, clock: r.new.clock, log: r.new.log}).lastResort(t.Context(), id.String(), activated()); err != nil {
		t.Fatal(err)
	}
	r.wait(func() bool { return r.door() != "" })
	if _, err := r.new.resume(t.Context(), id, r.door(), nil); err != nil {
		t.Fatal(err)
	}
	for name, a := range map[string]*Agent{"old": r.old, "new": r.new} {
		if !inUse(t, a, "maps-move") {
			t.Errorf("%s terminal: the key is gone", name)
		}
		d, err := a.dealOn(id, "")
		if err != nil || !d.Conflict {
			t.Errorf("%s terminal: %+v, %v", name, d, err)
		}
		if lastEntry(t, a, audit.CopyConflict) == "" {
			t.Errorf("%s terminal: not in the log", name)
		}
		if report := a.Doctor(t.Context()); !report.Has("keys-twice") {
			t.Errorf("%s terminal: doctor says %+v", name, report.Findings)
		}
	}
	s, err := r.new.settledAs(r.new.vault, id)
	if err != nil || !strings.Contains(s.Deal.Text, "in use here") || strings.Contains(s.Deal.Text, "dropped") {
		t.Errorf("the new terminal says of a key that it uses: %q, %v", s.Deal.Text, err)
	}
}

// While the server is in reach it decides.
func TestServerDecides(t *testing.T) {
	r, id := cutMove(t, "old", committedWrite)
	r.old.link.set(LinkStatus{State: LinkConnected})
	asked := make(chan *transport.KeycopySettle, 1)
	answer := make(chan settleAnswer, 1)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() {
		for {
			select {
			case ask := <-r.old.copies.settling():
				asked <- ask.m
				ask.reply(<-answer)
			case <-ctx.Done():
				return
			}
		}
	}()
	decide := func(a settleAnswer) (*KeycopySettled, error) {
		t.Helper()
		answer <- a
		s, err := r.old.lastResort(t.Context(), id.String(), reclaimed())
		if len(asked) == 0 {
			t.Fatalf("nobody asked: %v", err)
		}
		m := <-asked
		if m.Txn != id || m.Side != transport.KeycopySource || m.Peer != r.new.vault.device || m.Want != transport.KeycopyReclaimed {
			t.Errorf("asked %+v", m)
		}
		return s, err
	}
	if _, err := decide(settleAnswer{why: "nav-002 uses the keys"}); !errors.Is(err, &control.Problem{Kind: control.Refused}) || !strings.Contains(err.Error(), "nav-002 uses the keys") {
		t.Errorf("refused: %v", err)
	}
	if p := phaseOf(t, r.old, id); p != transport.KeycopyCommitted || inUse(t, r.old, "maps-move") {
		t.Errorf("refused, and it is %s", p)
	}
	s, err := decide(settleAnswer{allowed: true})
	if err != nil || s.Server != serverAllowed || !inUse(t, r.old, "maps-move") {
		t.Errorf("allowed: %+v, %v", s, err)
	}
	if d := lastEntry(t, r.old, audit.CopyReclaimed); !strings.Contains(d, "the server allows it") {
		t.Errorf("in the log: %q", d)
	}
}

// The question goes over the link, and its answer to whoever asked.
func TestSettleOverTheSession(t *testing.T) {
	c := newConversation(t)
	ask := func(body transport.Body) settleAnswer {
		t.Helper()
		c.server.copies.settle = func(*transport.KeycopySettle) transport.Body { return body }
		q := &settleAsk{&transport.KeycopySettle{Txn: transport.ID{1}, Side: transport.KeycopyTarget, Want: transport.KeycopyActive}, make(chan settleAnswer, 1)}
		c.carry(c.session.settle(q))
		select {
		case a := <-q.answer:
			return a
		default:
			return settleAnswer{err: errors.New("no answer")}
		}
	}
	if a := ask(&transport.KeycopySettled{Txn: transport.ID{1}, Allowed: true}); !a.allowed || a.err != nil {
		t.Errorf("allowed: %+v", a)
	}
	if a := ask(&transport.KeycopySettled{Txn: transport.ID{1}, Why: "taken back"}); a.allowed || a.why != "taken back" || a.err != nil {
		t.Errorf("refused: %+v", a)
	}
	if a := ask(&transport.Fault{Code: transport.FaultRefused, Text: "no"}); a.allowed || a.err != nil || a.why == "" {
		t.Errorf("a fault that refuses: %+v", a)
	}
	if a := ask(&transport.Fault{Code: transport.FaultUnknown}); !errors.Is(a.err, errNoServer) {
		t.Errorf("an older server: %+v", a)
	}
	c.noErrors()
	if a := ask(&transport.KeycopySettled{Txn: transport.ID{2}, Allowed: true}); a.err == nil {
		t.Errorf("an answer about another copy: %+v", a)
	}
}

// What a person may do depends on where the transaction stands, and its name.
func TestNamesOfCopies(t *testing.T) {
	v := testVault(t, t.TempDir())
	a := &Agent{cfg: Config{Program: "kagimori"}, vault: v, clock: v.clock, log: v.log}
	d := advance(t, v, given(1, transport.TransferMove), transport.KeycopyOffered, nil)
	all := func(*keycopy.Transaction) bool { return true }
	for name, kind := range map[string]control.Kind{"zz": control.BadInput, "ab": control.BadInput, "ffffffffffffffff": control.NotFound} {
		if _, err := a.pickDeal(name, all); !errors.Is(err, &control.Problem{Kind: kind}) {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", d.ID.String(), short(d.ID), strings.ToUpper(d.ID.String()[:minID])} {
		if id, err := a.pickDeal(name, all); err != nil || id != d.ID {
			t.Errorf("%q: %v", name, err)
		}
	}
	advance(t, v, given(1, transport.TransferMove), transport.KeycopyOffered, nil)
	if _, err := a.pickDeal("", all); !errors.Is(err, &control.Problem{Kind: control.BadInput}) {
		t.Errorf("two of them: %v", err)
	}
}
