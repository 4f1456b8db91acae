package agent

import (
	"bytes"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// Copies that do not come about, and what the two technicians are told.

// req: C3 (a mismatch sends nothing and is counted)
func TestWrongOperatorCodes(t *testing.T) {
	r := newCopyRig(t, "maps-1")
	o, code := r.arm()
	bad := wrong(t, code)
	for n := 1; n <= keycopy.CodeAttempts; n++ {
		_, _, err := r.fetch(o, bad)
		if !errors.Is(err, transport.KeycopyAuthFailed) || control.AsProblem(err).Kind != control.Refused {
			t.Fatalf("attempt %d: %v", n, err)
		}
		if p, words := control.AsProblem(err), []string{"2 more wrong ones destroy", "1 more wrong one destroys", "make a new code"}[n-1]; !strings.Contains(p.Next, words) {
			t.Errorf("attempt %d: next %q, want %q", n, p.Next, words)
		}
	}
	r.killed(o)
	if _, err := o.result(); !errors.Is(err, &control.Problem{Kind: control.Refused}) {
		t.Errorf("the offer ended with %v", err)
	}
	if got := ids(t, r.new); len(got) != 0 {
		t.Errorf("keys were sent: %v", got)
	}
	// Durable on both ends: a restart gives no new attempts.
	for a, role := range map[*Agent]role{r.old: roleSource, r.new: roleTarget} {
		var log keycopy.AttemptLog
		err := a.vault.store.View(func(tx *store.Tx) error {
			_, err := tx.Get(bucketAttempts, string(role), &log)
			return err
		})
		if err != nil || len(log.Failures) != keycopy.CodeAttempts {
			t.Errorf("%s counted %d attempts, want %d (%v)", role, len(log.Failures), keycopy.CodeAttempts, err)
		}
	}
	if _, err := r.new.fetch(t.Context(), fetchOrder{address: o.chosen.Listen, typed: transport.Sensitive("12")}, nil); !errors.Is(err, keycopy.ErrCodeFormat) {
		t.Errorf("a code of two digits: %v", err)
	}
}

// Nine wrong codes in a day lock the terminal; an administrator can end that.
func TestLockedAndUnlocked(t *testing.T) {
	r := newCopyRig(t, "maps-1")
	counter := attempts{vault: r.old.vault, role: roleSource, now: r.old.clock.Steady}
	for range keycopy.AttemptsPerWindow {
		if err := counter.Count(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := r.old.arm(t.Context(), armOrder{}); !errors.Is(err, keycopy.ErrLocked) || !strings.Contains(control.AsProblem(err).Next, "unlock") {
		t.Errorf("%v", err)
	}
	if s := r.old.Status().Keycopy; s.Locked == 0 {
		t.Errorf("status %+v", s)
	}
	if err := r.old.unlock(); err != nil {
		t.Fatal(err)
	}
	o, code := r.arm()
	if _, _, err := r.fetch(o, code); err != nil {
		t.Error(err)
	}
}

// failures is how many attempts stand against a role.
func failures(t testing.TB, a *Agent, r role) int {
	t.Helper()
	var log keycopy.AttemptLog
	err := a.vault.store.View(func(tx *store.Tx) error {
		_, err := tx.Get(bucketAttempts, string(r), &log)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return len(log.Failures)
}

// killed waits for the end of an offer that wrong codes have ended.
func (r *copyRig) killed(o *offering) {
	r.t.Helper()
	if state, _ := o.source.State(); state != keycopy.Ended {
		r.t.Fatalf("the offer is %s after %d wrong codes", state, keycopy.CodeAttempts)
	}
	<-o.done
}

// told waits for an offer's next event of that step.
func (r *copyRig) told(o *offering, step string) KeycopyEvent {
	r.t.Helper()
	for {
		select {
		case ev := <-o.events:
			if ev.Step == step {
				return ev
			}
		case <-r.t.Context().Done():
			r.t.Fatalf("no event %s", step)
		}
	}
}

// Three wrong codes spend the code that was offered, and nothing else: a fresh
// one works at once on the terminal where they were typed.
// req: C3
func TestFreshCodeAfterThreeWrongOnes(t *testing.T) {
	r := newCopyRig(t, "maps-1")
	o, code := r.arm()
	bad := wrong(t, code)
	for range keycopy.CodeAttempts {
		if _, _, err := r.fetch(o, bad); !errors.Is(err, transport.KeycopyAuthFailed) {
			t.Fatal(err)
		}
	}
	var texts []string
	for len(o.events) > 0 {
		texts = append(texts, (<-o.events).Text)
	}
	all := strings.Join(texts, "\n")
	for _, words := range []string{"2 more wrong ones destroy the code", "1 more wrong one destroys the code", "; the code is destroyed"} {
		if !strings.Contains(all, words) {
			t.Errorf("the old terminal was not told %q:\n%s", words, all)
		}
	}
	r.killed(o)
	o, code = r.arm()
	// The spent one is refused here, before the old terminal hears of it.
	_, _, err := r.fetch(o, bad)
	if p := control.AsProblem(err); p.Kind != control.Refused || !strings.Contains(p.Message, "typed here 3 times and is spent") || !strings.Contains(p.Next, "kagimori keycopy offer") {
		t.Errorf("%+v", p)
	}
	if len(o.events) != 0 || failures(t, r.old, roleSource) != keycopy.CodeAttempts {
		t.Error("the old terminal was called for nothing")
	}
	if _, _, err := r.fetch(o, code); err != nil {
		t.Errorf("the fresh code: %v", err)
	}
}

// Nine wrong codes in a day lock the new terminal as well, and status says so.
func TestNewTerminalLocked(t *testing.T) {
	r := newCopyRig(t, "maps-1")
	counter := attempts{vault: r.new.vault, role: roleTarget, now: r.new.clock.Steady}
	for range keycopy.AttemptsPerWindow {
		code, err := keycopy.NewOperatorCode(rand.Reader, keycopy.Instant{})
		if err != nil {
			t.Fatal(err)
		}
		if err := counter.Count(t.Context(), code); err != nil {
			t.Fatal(err)
		}
	}
	o, code := r.arm()
	_, _, err := r.fetch(o, code)
	if p := control.AsProblem(err); p.Kind != control.Refused || !strings.Contains(p.Message, "takes the next one in 59 min") && !strings.Contains(p.Message, "takes the next one in 1 h") || !strings.Contains(p.Next, "make a new code") {
		t.Errorf("%+v", p)
	}
	if s := r.new.Status().Keycopy; s.LockedFetch < 3500 || s.Locked != 0 {
		t.Errorf("status of the new terminal: %+v", s)
	}
}

// An id that nobody holds: both sides say so, and what there is; the codes
// matched, so that nothing is held against anybody.
func TestMistypedCredential(t *testing.T) {
	r := newCopyRig(t, "maps-1", "tiles-1")
	o, code := r.arm()
	_, _, err := r.fetch(o, code, "foo")
	if p := control.AsProblem(err); p.Kind != control.NotFound || !strings.Contains(p.Message, "does not offer foo; it offers maps-1, tiles-1") || !strings.Contains(p.Next, "new code") {
		t.Errorf("%+v", p)
	}
	if ev := r.told(o, "granted"); !strings.Contains(ev.Text, "none of the keys that it asks for is offered: foo") {
		t.Errorf("the old terminal says %q", ev.Text)
	}
	<-o.done
	if n := failures(t, r.new, roleTarget) + failures(t, r.old, roleSource); n != 0 {
		t.Errorf("%d attempts are held against somebody", n)
	}
	// An id that is none is refused before the code is used.
	o, code = r.arm()
	if _, _, err := r.fetch(o, code, "Foo 1"); !errors.Is(err, &control.Problem{Kind: control.BadInput}) {
		t.Errorf("%v", err)
	}
	if _, _, err := r.fetch(o, code, "tiles-1"); err != nil {
		t.Error(err)
	}
	// What was not offered is not named either.
	<-o.done
	o, code = r.arm("tiles-1")
	if _, _, err := r.fetch(o, code, "maps-1"); !strings.Contains(err.Error(), "does not offer maps-1; it offers tiles-1") {
		t.Errorf("%v", err)
	}
}

// A terminal that the server does not accept may still hold keys that work, or
// not: whoever makes an offer there is warned.
func TestOfferOfARemovedTerminal(t *testing.T) {
	r := newCopyRig(t, "maps-1")
	for _, state := range []LinkState{LinkConnected, LinkRefused} {
		r.old.link.set(LinkStatus{State: state})
		o, _ := r.arm()
		if warned := strings.Contains(o.chosen.Warning, "was it removed?"); warned != (state == LinkRefused) {
			t.Errorf("%s: warning %q", state, o.chosen.Warning)
		}
		r.old.disarm()
	}
}

// A box of another deployment is told so, and so is the old terminal.
func TestAnotherDeployment(t *testing.T) {
	r := newCopyRig(t, "maps-1")
	r.ca = newAuthority(t)
	foreignSpare, foreignTerminal := r.terminal(""), r.terminal("nav-007")
	for _, c := range []struct {
		new        *Agent
		there, old string
	}{
		// They find out, and the old terminal gets their alert.
		{foreignSpare, "belongs to another deployment", "does not accept this terminal's identity"},
		{foreignTerminal, "belongs to another deployment", "does not accept this terminal's identity"},
	} {
		o, code := r.arm()
		r.new = c.new
		_, _, err := r.fetch(o, code)
		if p := control.AsProblem(err); p.Kind != control.Refused || !strings.Contains(p.Message, c.there) || !strings.Contains(p.Next, "spare of the old terminal's deployment") {
			t.Errorf("%+v", p)
		}
		if ev := r.told(o, "turned"); !strings.Contains(ev.Text, c.old) {
			t.Errorf("the old terminal says %q", ev.Text)
		}
		r.old.disarm()
	}
	// An old terminal that shows no name finds out itself.
	if err := r.old.Update(func(tx *store.Tx) error { return tx.Delete(bucketIdentity, keyChain) }); err != nil {
		t.Fatal(err)
	}
	o, code := r.arm()
	r.new = foreignTerminal
	_, _, err := r.fetch(o, code)
	if p := control.AsProblem(err); p.Kind != control.Refused || !strings.Contains(p.Message, "does not accept this one's identity") {
		t.Errorf("%+v", p)
	}
	if ev := r.told(o, "turned"); !strings.Contains(ev.Text, "it belongs to another deployment") {
		t.Errorf("the old terminal says %q", ev.Text)
	}
	if got := ids(t, foreignTerminal); !slices.Equal(got, nil) {
		t.Errorf("keys went to %v", got)
	}
	if state, _ := o.source.State(); state != keycopy.Armed || failures(t, r.old, roleSource) != 0 {
		t.Errorf("the code is %s after strangers came", state)
	}
}

// Two terminals with different security codes under one name: nobody has looked
// at the operator code, and nobody says so.
func TestOtherSecurityCode(t *testing.T) {
	r := newCopyRig(t, "maps-1")
	installCode(t, r.old.vault, 2)
	other := &transport.CodeInstall{Group: "default", Epoch: 2, Code: bytes.Repeat([]byte{9}, transport.SecurityCodeSize)}
	if got := command(t, r.new.vault, transport.NewID(rand.Reader), transport.CommandCodeInstall, other); got.State != transport.CommandDone {
		t.Fatalf("%+v", got)
	}
	o, code := r.arm()
	_, _, err := r.fetch(o, code)
	if p := control.AsProblem(err); p.Kind != control.Refused || !strings.Contains(p.Message, "does not hold this terminal's security code") || !strings.Contains(p.Next, "the operator code is as good as before") {
		t.Errorf("%+v", p)
	}
	if n := failures(t, r.new, roleTarget) + failures(t, r.old, roleSource); n != 0 {
		t.Errorf("%d attempts are held against somebody", n)
	}
	for _, a := range []*Agent{r.old, r.new} {
		if log := kinds(logOf(t, a)); slices.Contains(log, audit.CopyFailed) {
			t.Errorf("the audit log speaks of a wrong operator code: %v", log)
		}
	}
}
