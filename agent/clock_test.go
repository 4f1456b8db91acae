package agent

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"
)

// wall is a system clock that a test sets.
type wall struct{ now time.Time }

func (w *wall) read() time.Time { return w.now }

func date(year int) time.Time { return time.Date(year, 6, 1, 0, 0, 0, 0, time.UTC) }

func TestClockBeforeAnybodyTellsTheTime(t *testing.T) {
	built, issued := date(2026), date(2027)
	leaf := &x509.Certificate{NotBefore: date(2028), NotAfter: date(2029)}
	for name, c := range map[string]struct {
		wall, now time.Time
		stamp     int64
	}{
		"1970":       {time.Unix(0, 0), issued, 0},
		"plausible":  {date(2028), date(2028), date(2028).Unix()},
		"far future": {date(2099), date(2099), 0},
	} {
		w := &wall{c.wall}
		clock := NewClock(w.read, built)
		if got := clock.Judge(nil); !got.Equal(built) {
			t.Errorf("%s: judges at %v, want the build date", name, got)
		}
		clock.Raise(issued)
		clock.Raise(built) // never falls
		if got := clock.Judge(nil); !got.Equal(issued) {
			t.Errorf("%s: judges at %v, want the bundle's issue", name, got)
		}
		// Never before a certificate begins, so that "not yet valid" cannot
		// happen to a terminal that woke in 1970.
		if got := clock.Judge([]*x509.Certificate{leaf}); !got.Equal(leaf.NotBefore) {
			t.Errorf("%s: judges at %v, want the leaf's start", name, got)
		}
		if clock.Trusted() || !clock.Said().IsZero() {
			t.Errorf("%s: a clock that nobody vouches for is trusted", name)
		}
		if got := clock.Now(); !got.Equal(c.now) {
			t.Errorf("%s: now is %v, want %v", name, got, c.now)
		}
		if got := clock.Stamp(); got != c.stamp {
			t.Errorf("%s: stamp %d, want %d", name, got, c.stamp)
		}
		w.now = w.now.Add(time.Hour)
		if got := clock.Earliest(); !got.Equal(issued.Add(time.Hour)) {
			t.Errorf("%s: earliest is %v, want the floor and an hour", name, got)
		}
	}
}

func TestClockCountsFromTheServersTime(t *testing.T) {
	w := &wall{time.Unix(0, 0)}
	clock := NewClock(w.read, date(2026))
	proof := []*x509.Certificate{{NotBefore: date(2026), NotAfter: date(2028)}}
	if err := clock.Sync(date(2027), proof); err != nil {
		t.Fatal(err)
	}
	w.now = w.now.Add(90 * time.Minute)
	want := date(2027).Add(90 * time.Minute)
	for name, got := range map[string]time.Time{"now": clock.Now(), "judge": clock.Judge(proof), "said": clock.Said(), "earliest": clock.Earliest()} {
		if !got.Equal(want) {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	// An expired certificate is expired, now that the time is known.
	expired := []*x509.Certificate{{NotBefore: date(2025), NotAfter: date(2026)}}
	if at := clock.Judge(expired); !at.After(expired[0].NotAfter) {
		t.Errorf("judges an expired certificate at %v", at)
	}
	if s := clock.Status(); !s.Trusted || s.Off >= 0 {
		t.Errorf("status %+v, want trusted and the system clock behind", s)
	}
}

// A server whose clock is wrong must not push the floor to where every
// certificate is expired: that would outlast the mistake.
func TestClockRefusesATimeThatNobodyCanVouchFor(t *testing.T) {
	w := &wall{date(2026)}
	clock := NewClock(w.read, date(2026))
	proof := []*x509.Certificate{{NotBefore: date(2026), NotAfter: date(2027)}}
	for _, at := range []time.Time{date(2099), date(1970)} {
		if err := clock.Sync(at, proof); err == nil {
			t.Errorf("took %v", at)
		}
	}
	if err := clock.Sync(date(2026), nil); err == nil {
		t.Error("took a time without proof")
	}
	if clock.Trusted() || !clock.Judge(nil).Equal(date(2026)) {
		t.Error("a refused time changed the clock")
	}
}

// req: L4 (a terminal that lost its clock still judges certificates after a restart)
func TestClockFloorIsKeptSparsely(t *testing.T) {
	dir := t.TempDir()
	w := &wall{time.Unix(0, 0)}
	log := testLog(t)
	v, err := openVault(t.Context(), opener(dir, log), Remedy{}, NewClock(w.read, date(2026)), log)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { v.close() }()
	proof := []*x509.Certificate{{NotBefore: date(2026), NotAfter: date(2028)}}
	if err := v.clock.Sync(date(2027), proof); err != nil {
		t.Fatal(err)
	}
	if !v.clock.due() {
		t.Error("a floor that rose by a year is not worth a write")
	}
	if err := v.update(nothing); err != nil {
		t.Fatal(err)
	}
	w.now = w.now.Add(23 * time.Hour)
	if v.clock.due() {
		t.Error("an idle terminal writes within a day")
	}
	w.now = w.now.Add(time.Hour)
	if !v.clock.due() {
		t.Error("an idle terminal does not write after a day")
	}
	if err := v.update(nothing); err != nil {
		t.Fatal(err)
	}
	want := v.clock.Judge(nil)
	if err := v.close(); err != nil {
		t.Fatal(err)
	}
	w.now = time.Unix(0, 0)
	v, err = openVault(t.Context(), opener(dir, log), Remedy{}, NewClock(w.read, date(2026)), log)
	if err != nil {
		t.Fatal(err)
	}
	if got := v.clock.Judge(nil); !got.Equal(want) {
		t.Errorf("after a power cut the floor is %v, want %v", got, want)
	}
}

// The present cannot be before the floor, whatever a server says; and what is
// before it is said to people.
func TestServersTimeNeverFallsBelowTheFloor(t *testing.T) {
	w := &wall{date(2025)}
	clock := NewClock(w.read, date(2026))
	clock.Raise(date(2028))
	if err := clock.Sync(date(2027), vouched()); err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string]time.Time{"now": clock.Now(), "judge": clock.Judge(nil), "said": clock.Said(), "earliest": clock.Earliest()} {
		if got.Before(date(2028)) || got.After(date(2028).Add(time.Minute)) {
			t.Errorf("%s is %v, want the floor", name, got)
		}
	}
	if s := clock.Status(); !s.Trusted || !strings.Contains(s.Text, "set the server's clock") {
		t.Errorf("status %+v", s)
	}
	if err := clock.Sync(date(2029), vouched()); err != nil {
		t.Fatal(err)
	}
	if s := clock.Status(); strings.Contains(s.Text, "set the server's clock") || s.Now.Before(date(2029)) {
		t.Errorf("status %+v", s)
	}
}

// A trusted clock goes on while the terminal is suspended.
func TestClockGoesOnInSuspend(t *testing.T) {
	clock := NewClock(time.Now, date(2026))
	s := skewed(clock)
	if err := clock.Sync(date(2027), vouched()); err != nil {
		t.Fatal(err)
	}
	s.boot.Store(int64(3 * time.Hour))
	if got := clock.Now(); got.Before(date(2027).Add(3 * time.Hour)) {
		t.Errorf("three hours later it is %v", got)
	}
}
