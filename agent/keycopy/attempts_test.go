package keycopy

import (
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kagimori/kagimori/transport"
)

// attempt counts one, and says how long the role is locked if it may not.
func attempt(t *testing.T, l *AttemptLog, now time.Time) time.Duration {
	t.Helper()
	err := l.Count(now)
	if err == nil {
		return 0
	}
	locked, ok := errors.AsType[*Locked](err)
	if !ok || !errors.Is(err, ErrLocked) || locked.For <= 0 {
		t.Fatalf("%v", err)
	}
	return locked.For
}

func TestNineFailuresLockTheRole(t *testing.T) {
	var l AttemptLog
	now := time.Unix(1_800_000_000, 0)
	for i := range AttemptsPerWindow {
		if d := attempt(t, &l, now.Add(time.Duration(i)*time.Minute)); d != 0 {
			t.Fatalf("attempt %d is locked for %v", i+1, d)
		}
	}
	now = now.Add(8 * time.Minute)
	for _, lock := range []time.Duration{1, 2, 4, 8} { // the last begins 7 h after the ninth attempt
		lock *= time.Hour
		if d := attempt(t, &l, now.Add(time.Second)); d != lock-time.Second {
			t.Fatalf("locked for %v, want %v", d, lock)
		}
		now = now.Add(lock)
		if d := attempt(t, &l, now); d != 0 {
			t.Fatalf("still locked for %v after %v", d, lock)
		}
	}
	if d := l.Lock(now); d != 16*time.Hour {
		t.Errorf("locked for %v, want 16 h", d)
	}
	l.Reset()
	if d := attempt(t, &l, now); d != 0 {
		t.Errorf("locked for %v after a reset", d)
	}
}

func TestLockNeverExceedsADay(t *testing.T) {
	l := AttemptLog{Level: 200}
	now := time.Unix(1_800_000_000, 0)
	for range AttemptsPerWindow {
		l.Failures = append(l.Failures, now.Unix())
	}
	if d := attempt(t, &l, now); d != 0 {
		t.Fatal("locked without a lock")
	}
	if d := l.Lock(now); d != LongestLock {
		t.Errorf("locked for %v", d)
	}
	if d := l.Lock(now.Add(LongestLock)); d != 0 || l.Level != 0 || len(l.Failures) != 0 {
		t.Errorf("a day later: locked for %v, %+v", d, l)
	}
}

func TestSuccessTakesItsAttemptBack(t *testing.T) {
	var l AttemptLog
	now := time.Unix(1_800_000_000, 0)
	for range 100 {
		if d := attempt(t, &l, now); d != 0 {
			t.Fatalf("locked for %v by successes", d)
		}
		l.Succeed()
	}
	for range AttemptsPerWindow - 1 {
		attempt(t, &l, now)
	}
	attempt(t, &l, now) // the ninth locks, and is right
	l.Succeed()
	if d := attempt(t, &l, now); d != 0 {
		t.Errorf("locked for %v though the ninth was right", d)
	}
	if d := attempt(t, &l, now); d != FirstLock {
		t.Errorf("locked for %v after nine failures", d)
	}
	(&AttemptLog{}).Succeed()
}

func TestFailuresAgeOut(t *testing.T) {
	var l AttemptLog
	now := time.Unix(1_800_000_000, 0)
	for i := range 50 {
		if d := attempt(t, &l, now.Add(time.Duration(i)*AttemptWindow/8)); d != 0 {
			t.Fatalf("attempt %d is locked for %v", i, d)
		}
	}
}

// A clock that was set back neither frees a role nor locks it for years.
func TestAttemptsUnderABadClock(t *testing.T) {
	var l AttemptLog
	now := time.Unix(1_800_000_000, 0)
	for range AttemptsPerWindow {
		attempt(t, &l, now)
	}
	boot := time.Unix(100, 0)
	if d := l.Lock(boot); d != FirstLock {
		t.Errorf("in 1970: locked for %v", d)
	}
	if d := l.Lock(boot.Add(FirstLock)); d != 0 {
		t.Errorf("an hour later: locked for %v", d)
	}
	if d := attempt(t, &l, boot.Add(FirstLock)); d != 0 || l.Lock(boot.Add(FirstLock)) != 2*time.Hour {
		t.Errorf("the failures were forgotten: %+v", l)
	}
}

// The Target cannot tell one code from another, so it gives any code no more
// than three attempts.
func TestTypedCodesAreCounted(t *testing.T) {
	var l AttemptLog
	now := time.Unix(1_800_000_000, 0)
	for i := range CodeAttempts {
		if err := l.CountTyped(now.Add(time.Duration(i) * time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	now = now.Add(10 * time.Second)
	locked, ok := errors.AsType[*Locked](l.CountTyped(now))
	if !ok || !locked.Typed || locked.For != 290*time.Second {
		t.Fatalf("%+v", locked)
	}
	if err := l.CountTyped(now.Add(290 * time.Second)); err != nil {
		t.Errorf("a new code: %v", err)
	}
	for range 5 {
		l.Failures = append(l.Failures, now.Unix())
	}
	l.Since, l.Level = now.Unix(), 1
	if locked, ok := errors.AsType[*Locked](l.CountTyped(now)); !ok || locked.Typed || locked.For != FirstLock {
		t.Errorf("%+v", locked)
	}
}

// However attempts and time are mixed: never more than three guesses at one
// typed code, never more than sixteen failures kept, and the log survives its
// encoding.
func TestAttemptLogHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var l AttemptLog
		now := time.Unix(1_800_000_000, 0)
		var wrong []time.Time
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 7200).Draw(t, "seconds")) * time.Second / 8)
			if l.CountTyped(now) == nil {
				if rapid.Bool().Draw(t, "right") {
					l.Succeed()
				} else {
					wrong = append(wrong, now)
				}
			}
			if n := len(wrong); n > CodeAttempts && wrong[n-1].Sub(wrong[n-1-CodeAttempts]) < CodeLifetime-time.Second {
				t.Fatalf("%d failures within %v", CodeAttempts+1, wrong[n-1].Sub(wrong[n-1-CodeAttempts]))
			}
			// 9, then one after each lock of 1, 2, 4 and 8 h.
			if n := len(wrong); n > 13 && wrong[n-1].Sub(wrong[n-14]) < AttemptWindow-time.Minute {
				t.Fatalf("14 failures within %v", wrong[n-1].Sub(wrong[n-14]))
			}
			if len(l.Failures) > maxFailures {
				t.Fatalf("%d failures kept", len(l.Failures))
			}
			data, err := transport.Marshal(&l)
			if err != nil {
				t.Fatal(err)
			}
			var again AttemptLog
			if err := transport.Unmarshal(data, &again, 1024); err != nil {
				t.Fatal(err)
			}
			l = again
		}
	})
}
