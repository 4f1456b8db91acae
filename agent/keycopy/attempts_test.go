package keycopy

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kagimori/kagimori/hsm"
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

// typedCode is an operator code of these eight digits.
func typedCode(digits string) *OperatorCode {
	return &OperatorCode{hsm.NewSecret(append([]byte(digits), '0'+damm([]byte(digits)))), moment(0, 0)}
}

// A code that was typed gets three attempts in its life, however often it is
// typed; a new code has attempts of its own, until the day's are used up.
// req: C3
func TestTypedCodesAreCounted(t *testing.T) {
	var l AttemptLog
	now := time.Unix(1_800_000_000, 0)
	spent := typedCode("12345678")
	for i := range CodeAttempts {
		if err := l.CountTyped(now.Add(time.Duration(i)*time.Second), spent, rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	now = now.Add(10 * time.Second)
	locked, ok := errors.AsType[*Locked](l.CountTyped(now, spent, rand.Reader))
	if !ok || !locked.Typed || locked.For != 290*time.Second || len(l.Failures) != CodeAttempts {
		t.Fatalf("%+v", locked)
	}
	if err := l.CheckTyped(now, typedCode("12345679")); err != nil || len(l.Failures) != CodeAttempts {
		t.Errorf("a new code: %v", err)
	}
	if err := l.CountTyped(now.Add(290*time.Second), spent, rand.Reader); err != nil {
		t.Errorf("once the code is dead everywhere: %v", err)
	}
	for i := range AttemptsPerWindow - CodeAttempts - 1 {
		if err := l.CountTyped(now.Add(290*time.Second), typedCode(fmt.Sprintf("2234567%d", i)), rand.Reader); err != nil {
			t.Errorf("new code %d: %v", i, err)
		}
	}
	now = now.Add(290 * time.Second)
	if locked, ok := errors.AsType[*Locked](l.CountTyped(now, typedCode("99999999"), rand.Reader)); !ok || locked.Typed || locked.For != FirstLock {
		t.Errorf("the tenth of the day: %+v", locked)
	}
}

// What failed before a copy that worked is held against no code after it; the
// day's count keeps it.
func TestSuccessBeginsANewCountOfTypedCodes(t *testing.T) {
	var l AttemptLog
	now := time.Unix(1_800_000_000, 0)
	code := typedCode("12345678")
	for range CodeAttempts {
		if err := l.CountTyped(now, code, rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.CountTyped(now, typedCode("00000000"), rand.Reader); err != nil {
		t.Fatal(err)
	}
	l.Succeed()
	if err := l.CountTyped(now, code, rand.Reader); err != nil || len(l.Failures) != CodeAttempts+1 {
		t.Errorf("%v, %d failures", err, len(l.Failures))
	}
}

// The log is no way to a code: thousands of codes share a tag, and another
// terminal's log has other tags.
func TestTypedCodesAreNotKept(t *testing.T) {
	a, b := typedCode("12345678"), typedCode("12345679")
	if a.tag([]byte("salt")) == b.tag([]byte("salt")) || a.tag([]byte("salt")) == a.tag([]byte("pepper")) {
		t.Error("the tags do not depend on code and salt")
	}
	var l AttemptLog
	if err := l.CountTyped(time.Unix(1_800_000_000, 0), a, rand.Reader); err != nil {
		t.Fatal(err)
	}
	data, err := transport.Marshal(&l)
	if err != nil || len(l.Salt) != saltSize || bytes.Contains(data, a.digits.Bytes()) {
		t.Errorf("%v, salt of %d bytes", err, len(l.Salt))
	}
	if err := new(AttemptLog).CountTyped(time.Unix(1_800_000_000, 0), a, bytes.NewReader(nil)); err == nil {
		t.Error("counted without a salt")
	}
}

func TestLockedSaysHowLong(t *testing.T) {
	for d, want := range map[time.Duration]string{
		1500 * time.Millisecond: "in 2 s", 296 * time.Second: "in 4 min 56 s", time.Hour: "in 1 h 0 min",
	} {
		if got := (&Locked{For: d}).Error(); !strings.HasSuffix(got, want) {
			t.Errorf("%v: %s", d, got)
		}
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
		codes := []*OperatorCode{typedCode("12345678"), typedCode("87654321"), typedCode("55555555")}
		each := map[*OperatorCode][]time.Time{} // failures since the last success
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 7200).Draw(t, "seconds")) * time.Second / 8)
			code := rapid.SampledFrom(codes).Draw(t, "code")
			if l.CountTyped(now, code, rand.Reader) == nil {
				if rapid.Bool().Draw(t, "right") {
					l.Succeed()
					clear(each)
				} else {
					wrong = append(wrong, now)
					each[code] = append(each[code], now)
				}
			}
			if f := each[code]; len(f) > CodeAttempts && f[len(f)-1].Sub(f[len(f)-1-CodeAttempts]) < CodeLifetime-time.Second {
				t.Fatalf("%d failures of one code within %v", CodeAttempts+1, f[len(f)-1].Sub(f[len(f)-1-CodeAttempts]))
			}
			// 9, then one after each lock of 1, 2, 4 and 8 h.
			if n := len(wrong); n > 13 && wrong[n-1].Sub(wrong[n-14]) < AttemptWindow-time.Minute {
				t.Fatalf("14 failures within %v", wrong[n-1].Sub(wrong[n-14]))
			}
			if len(l.Failures) > maxFailures || len(l.Typed) > maxFailures {
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
