package agent

import (
	"crypto/x509"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/store"
)

// skew moves the clocks of a terminal that is running.
type skew struct{ wall, boot atomic.Int64 }

// skewed gives a clock that a test moves. Its wall clock is set, as an
// administrator or NTP does, and so has no monotonic reading.
func skewed(c *Clock) *skew {
	s := &skew{}
	c.mu.Lock()
	defer c.mu.Unlock()
	boot := c.boot
	c.wall = func() time.Time { return time.Now().Round(0).Add(time.Duration(s.wall.Load())) }
	c.boot = func() time.Duration { return boot() + time.Duration(s.boot.Load()) }
	return s
}

func vouched() []*x509.Certificate {
	return []*x509.Certificate{{NotBefore: date(2020), NotAfter: date(2090)}}
}

// A terminal that started without server offers its keys, and the server comes
// back meanwhile: the present jumps, the code goes on. req: C2, L4
func TestOfferOutlivesTheServersTime(t *testing.T) {
	r := newCopyRig(t, "maps-1")
	o, code := r.arm()
	if r.old.clock.Trusted() {
		t.Fatal("the clock is trusted already")
	}
	if err := r.old.clock.Sync(time.Now().Add(time.Hour), vouched()); err != nil {
		t.Fatal(err)
	}
	if state, left := o.source.State(); state != keycopy.Armed || left < keycopy.CodeLifetime-time.Minute {
		t.Fatalf("the offer is %s with %v left", state, left)
	}
	if _, _, err := r.fetch(o, code); err != nil {
		t.Error(err)
	}
	<-o.done
}

// The code's time is over by the clock that goes on while the terminal is
// suspended, and by the wall clock; setting that back gives it no more.
func TestOfferEndsInTime(t *testing.T) {
	for name, move := range map[string]func(*skew){
		"suspended":           func(s *skew) { s.boot.Store(int64(keycopy.CodeLifetime)) },
		"suspended, set back": func(s *skew) { s.boot.Store(int64(keycopy.CodeLifetime)); s.wall.Store(-int64(time.Hour)) },
		"the wall clock":      func(s *skew) { s.wall.Store(int64(keycopy.CodeLifetime)) },
	} {
		r := newCopyRig(t, "maps-1")
		s := skewed(r.old.clock)
		o, _ := r.arm()
		if state, left := o.source.State(); state != keycopy.Armed || left <= 0 {
			t.Fatalf("%s: %s, %v left", name, state, left)
		}
		move(s)
		if state, _ := o.source.State(); state != keycopy.Ended {
			t.Fatalf("%s: the offer is %s", name, state)
		}
		if <-o.done; o.outcome.Reason != keycopy.EndExpired {
			t.Errorf("%s: ended as %s", name, o.outcome.Reason)
		}
	}
}

// A lock lasts as long as it says: the server's time, the system clock and a
// restart make it no shorter, and none of them makes it last for ever. req: C3
func TestLockLastsAsItSays(t *testing.T) {
	dir, log := t.TempDir(), testLog(t)
	start := func(wall time.Time) (*vault, *skew) {
		v, err := openVault(t.Context(), opener(dir, log), Remedy{}, NewClock(func() time.Time { return wall }, date(2026)), log)
		if err != nil {
			t.Fatal(err)
		}
		return v, skewed(v.clock)
	}
	left := func(v *vault, want time.Duration, when string) {
		t.Helper()
		var wait time.Duration
		err := v.store.View(func(tx *store.Tx) (err error) {
			wait, err = locked(tx, roleSource, v.clock.Steady())
			return err
		})
		if err != nil || wait > want || wait < want-10*time.Second {
			t.Errorf("%s: locked for %v, want %v (%v)", when, wait, want, err)
		}
	}
	v, s := start(time.Unix(0, 0))
	for range keycopy.AttemptsPerWindow {
		if err := (attempts{vault: v, role: roleSource, now: v.clock.Steady}).Count(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	left(v, time.Hour, "at first")
	if err := v.clock.Sync(date(2030), vouched()); err != nil {
		t.Fatal(err)
	}
	left(v, time.Hour, "the server has told the time")
	for _, wall := range []time.Duration{-30 * 365 * 24 * time.Hour, 48 * time.Hour} {
		s.wall.Store(int64(wall))
		left(v, time.Hour, "the system clock was set")
	}
	s.boot.Store(int64(20 * time.Minute))
	left(v, 40*time.Minute, "after twenty minutes")
	// The store learns of them, because somebody waits.
	if waits, err := v.waits(); !v.clock.overdue() || !waits || err != nil {
		t.Errorf("overdue %v, waits %v, %v", v.clock.overdue(), waits, err)
	}
	if err := v.update(nothing); err != nil || v.clock.overdue() {
		t.Errorf("still overdue (%v)", err)
	}
	s.boot.Store(int64(25 * time.Minute)) // and of these it does not
	if err := v.close(); err != nil {
		t.Fatal(err)
	}
	v, s = start(date(2040))
	left(v, 40*time.Minute, "after a power cut, nobody knows how long")
	s.boot.Store(int64(40 * time.Minute))
	left(v, 0, "after forty minutes more")
	s.boot.Store(int64(keycopy.AttemptWindow))
	if waits, err := v.waits(); waits || err != nil {
		t.Errorf("a day later somebody waits (%v)", err)
	}
	if err := v.close(); err != nil {
		t.Fatal(err)
	}
}
