package agent

import (
	"slices"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

// logOf lists the log of an agent, and sees to it that it is sound.
func logOf(t testing.TB, a *Agent) (list []audit.Line) {
	t.Helper()
	err := a.vault.store.View(func(tx *store.Tx) error {
		return audit.List(tx, audit.Filter{}, func(l audit.Line) error { list = append(list, l); return nil })
	})
	if err != nil {
		t.Fatal(err)
	}
	r, err := a.vault.verifyAudit()
	if err != nil || !r.Sound {
		t.Errorf("audit log: %+v, %v", r, err)
	}
	return list
}

func kinds(list []audit.Line) (kinds []audit.Kind) {
	for _, l := range list {
		kinds = append(kinds, l.Kind)
	}
	return kinds
}

// Each step of a terminal's life leaves its entry, and no secret.
func TestLogTellsOfACopy(t *testing.T) {
	r := newCopyRig(t, "maps-1")
	o, code := r.arm()
	if _, _, err := r.fetch(o, wrong(t, code)); err == nil {
		t.Fatal("a wrong code worked")
	}
	if _, _, err := r.fetch(o, code); err != nil {
		t.Fatal(err)
	}
	<-o.done
	old, young := logOf(t, r.old), logOf(t, r.new)
	if want := []audit.Kind{audit.IdentityCreated, audit.Provisioned, audit.Enrolled, audit.CopyOffered, audit.CopyFailed, audit.CopyGiven, audit.CopyDelivered}; !slices.Equal(kinds(old), want) {
		t.Errorf("old terminal: %v", kinds(old))
	}
	want := []audit.Kind{audit.IdentityCreated, audit.Provisioned, audit.CopyFailed, audit.CopyReceived, audit.CopyDone}
	if !slices.Equal(kinds(young), want) || !strings.HasSuffix(young[3].Detail, ": maps-1") {
		t.Errorf("new terminal: %+v", young)
	}
	for _, l := range append(old, young...) {
		if text := l.Subject + l.Detail; strings.Contains(text, string(code)) || strings.Contains(text, strings.ReplaceAll(string(code), " ", "")) {
			t.Errorf("the operator code is in %+v", l)
		}
	}
}

func TestLogTellsOfLocks(t *testing.T) {
	r := newCopyRig(t, "maps-1")
	counter := attempts{vault: r.old.vault, role: roleSource, now: r.old.clock.Steady}
	for range 20 {
		if counter.Count(t.Context(), nil) != nil {
			break
		}
	}
	if err := r.old.unlock(); err != nil {
		t.Fatal(err)
	}
	got := kinds(logOf(t, r.old))
	if n := len(got); n < 2 || got[n-2] != audit.CopyLocked || got[n-1] != audit.CopyUnlocked {
		t.Errorf("%v", got)
	}
}

// A credential that takes another's place, and one that is refused: an entry
// for each effect, and none without.
func TestLogTellsOfCredentials(t *testing.T) {
	c := newConversation(t)
	push := func(id transport.Name, chipOnly bool) []audit.Kind {
		o := order(id)
		o.ChipOnly = chipOnly
		c.server.order(o)
		before := len(logOf(t, &Agent{vault: c.vault}))
		c.push(&transport.CommandReady{})
		return kinds(logOf(t, &Agent{vault: c.vault}))[before:]
	}
	if got := push("maps-1", false); !slices.Equal(got, []audit.Kind{audit.Installed}) {
		t.Errorf("issued: %v", got)
	}
	if got := push("maps-2", false); !slices.Equal(got, []audit.Kind{audit.Installed, audit.Invalidated}) {
		t.Errorf("issued in its place: %v", got)
	}
	if got := push("maps-3", true); len(got) > 0 {
		t.Errorf("refused: %v", got)
	}
	c.noErrors()
}
