package agent

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// After a power cut the new terminal goes on by itself, and the old one's door is
// open for it, and shut when that is over.
func TestItGoesOnByItself(t *testing.T) {
	r, id := cutMove(t, "new", stagedWrite) // the new one was off; the old one still shows its offer
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { r.new.runResume(ctx, r.new.vault) })
	defer func() { stop(); wg.Wait() }()
	r.wait(func() bool { return phaseOf(t, r.new, id) == transport.KeycopyClosed })
	r.settledRight([]transport.Transfer{transport.TransferMove})
	r.wait(func() bool { return r.door() == "" })
	if s := r.old.Status().Keycopy; len(s.Open) != 0 || s.Listen != "" {
		t.Errorf("%+v", s)
	}
}

// What people see while it is open, at both ends.
func TestOpenCopiesAreShown(t *testing.T) {
	r, id := cutMove(t, "old", committedWrite)
	for name, c := range map[string]struct {
		a     *Agent
		words []string
	}{
		"old": {r.old, []string{"1 key given to device", "leave this terminal on", "keycopy reclaim " + short(id)}},
		"new": {r.new, []string{"1 key from terminal nav-001", "waiting here, not in use", "keycopy activate " + short(id)}},
	} {
		list, err := c.a.deals()
		if err != nil || len(list) != 1 || !list[0].Open || !list[0].Moves || list[0].Moved != 1 || list[0].Reported {
			t.Fatalf("%s terminal: %+v, %v", name, list, err)
		}
		status := c.a.Status().Keycopy
		for _, w := range c.words {
			if text := list[0].Text + " " + list[0].Next; !strings.Contains(text, w) {
				t.Errorf("%s terminal: no %q in %q", name, w, text)
			}
			if len(status.Open) != 1 || !strings.Contains(status.Open[0].Text+" "+status.Open[0].Next, w) {
				t.Errorf("%s terminal: no %q in status %+v", name, w, status.Open)
			}
		}
		for _, text := range []string{list[0].Text, list[0].Next, status.Last} {
			if strings.Contains(text, "unplug") {
				t.Errorf("%s terminal says %q", name, text)
			}
		}
		page, err := c.a.showDeal(id)
		if err != nil || len(page.Keys) != 1 || !page.Keys[0].Taken || page.Keys[0].Transfer != transport.TransferMove {
			t.Fatalf("%s terminal: %+v, %v", name, page, err)
		}
	}
	if s := r.old.Status().Credentials; s.Away != 1 || s.Usable != 0 {
		t.Errorf("old terminal counts %+v", s)
	}
	if s := r.new.Status().Credentials; s.Staged != 1 || s.Usable != 0 {
		t.Errorf("new terminal counts %+v", s)
	}
}

// A terminal that does not know the copy changes nothing, whatever it says.
func TestStrangerEndsNothing(t *testing.T) {
	r, id := cutMove(t, "new", stagedWrite)
	stranger := newCopyRig(t, "maps-9")
	o, _ := stranger.arm()
	_, err := r.new.resumeNow(t.Context(), id.String(), o.chosen.Listen, func(KeycopyEvent) {})
	if !errors.Is(err, &control.Problem{Kind: control.Unavailable}) {
		t.Errorf("%v", err)
	}
	if p := phaseOf(t, r.new, id); p != transport.KeycopyStaged {
		t.Errorf("it is %s", p)
	}
	if r.new.copies.trouble(id) == "" {
		t.Error("people are not told why")
	}
	// Where the old one really is, it goes on, and that place is remembered.
	if _, err := r.new.resumeNow(t.Context(), "", r.door(), func(KeycopyEvent) {}); err != nil {
		t.Fatal(err)
	}
	r.settledRight([]transport.Transfer{transport.TransferMove})
}

// A window ends what has changed nothing, and nothing else.
func TestWindowsEnd(t *testing.T) {
	for _, c := range []struct {
		side, left transport.KeycopyPhase
		end        string
		write      int
		want       map[string]transport.KeycopyPhase
	}{
		{end: "new", write: 3, want: map[string]transport.KeycopyPhase{"old": transport.KeycopyAbandoned, "new": transport.KeycopyDropped}},
		{end: "new", write: stagedWrite, want: map[string]transport.KeycopyPhase{"old": transport.KeycopyAbandoned, "new": transport.KeycopyStaged}},
		{end: "old", write: committedWrite, want: map[string]transport.KeycopyPhase{"old": transport.KeycopyCommitted, "new": transport.KeycopyStaged}},
	} {
		r, id := cutMove(t, c.end, c.write)
		for name, a := range map[string]*Agent{"old": r.old, "new": r.new} {
			a.sweep(t.Context())
			if before := phaseOf(t, a, id); !before.Open() {
				t.Errorf("cut %s after %d: the %s terminal ended it at once", c.end, c.write, name)
			}
			age(t, a, resumeWindow)
			a.sweep(t.Context())
			if p := phaseOf(t, a, id); p != c.want[name] {
				t.Errorf("cut %s after %d: the %s terminal is %s, want %s", c.end, c.write, name, p, c.want[name])
			}
		}
		age(t, r.old, tombstoneTime)
		r.old.sweep(t.Context())
		if open := r.sourceOpen(); open != (c.want["old"] == transport.KeycopyCommitted) {
			t.Errorf("cut %s after %d: the old terminal can be asked: %v", c.end, c.write, open)
		}
		r.close()
	}
}

// age makes a terminal's open copies older.
func age(t testing.TB, a *Agent, by time.Duration) {
	t.Helper()
	err := a.vault.store.Update(func(tx *store.Tx) error {
		var list []dealRecord
		err := eachOpen(tx, func(d *dealRecord) error {
			aged := *d
			aged.Deal.Resume = slices.Clone(d.Deal.Resume)
			aged.Opened -= int64(by / time.Second)
			if aged.Ended != 0 {
				aged.Ended -= int64(by / time.Second)
			}
			list = append(list, aged)
			return nil
		})
		for i := range list {
			err = errors.Join(err, tx.Put(bucketTransactions, dealKey(list[i].Deal.ID), &list[i]))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// "You may unplug the old terminal now" is for the end, at both ends.
func TestUnplugIsSaidWhenItIsTrue(t *testing.T) {
	const words = "may unplug the old terminal now"
	for kind, sorts := range copyKinds {
		r := newCopyRig(t)
		r.holds(sorts)
		o, code := r.arm()
		last, steps, err := r.fetch(o, code)
		if err != nil {
			t.Fatal(err)
		}
		<-o.done
		given, err := o.result()
		if err != nil || !strings.Contains(given.Text, words) || !strings.Contains(last.Text, words) {
			t.Errorf("%s: %v: %q, %q", kind, err, given.Text, last.Text)
		}
		for len(o.events) > 0 {
			if ev := <-o.events; strings.Contains(ev.Text+ev.Next, "unplug") {
				t.Errorf("%s: the old terminal says with %s: %q", kind, ev.Step, ev.Text)
			}
		}
		for _, ev := range steps {
			if said := strings.Contains(ev.Text+ev.Next, "unplug"); said && ev.Step != string(keycopy.EventActive) {
				t.Errorf("%s: the new terminal says with %s: %q", kind, ev.Step, ev.Text)
			}
		}
		r.settledRight(sorts)
		if c, err := net.DialTimeout("tcp", o.chosen.Listen, time.Second); err == nil {
			c.Close()
			t.Errorf("%s: the door is open", kind)
		}
		r.close()
	}
}
