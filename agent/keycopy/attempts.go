package keycopy

// The rules for guesses at the operator code over time. AttemptLog is the state
// that the agent keeps, one for each role; the count of one code's failures is
// in Source and dies with the code.

import (
	"errors"
	"fmt"
	"time"
)

const (
	// AttemptsPerWindow wrong attempts within AttemptWindow lock the role.
	AttemptsPerWindow = 9
	// AttemptWindow is how long a wrong attempt counts.
	AttemptWindow = 24 * time.Hour
	// FirstLock doubles with each further wrong attempt, up to LongestLock.
	FirstLock   = time.Hour
	LongestLock = 24 * time.Hour
	// maxFailures bounds the log: locks allow no more in one window.
	maxFailures = 16
)

// ErrLocked is too many wrong attempts.
var ErrLocked = errors.New("too many wrong operator codes")

// Locked says for how long.
type Locked struct {
	For time.Duration
	// Typed is true if only the code now typed is spent: a new one from the old
	// terminal may be tried after For.
	Typed bool
}

func (e *Locked) Error() string {
	if e.Typed {
		return fmt.Sprintf("%v: make a new code on the old terminal and type it in %v", ErrLocked, e.For.Round(time.Second))
	}
	return fmt.Sprintf("%v: wait %v, or have an administrator reset the count", ErrLocked, e.For.Round(time.Second))
}

// Unwrap gives ErrLocked.
func (e *Locked) Unwrap() error { return ErrLocked }

// An AttemptLog is stored durably after every call that changes it, before the
// call's result is used, also when the result is an error. Its times are Unix
// seconds; those that lie ahead, because the clock was set back, count as now.
type AttemptLog struct {
	Failures []int64 `cbor:"1,keyasint"` // oldest first
	Since    int64   `cbor:"2,keyasint"` // when the lock began; 0: none
	Level    uint8   `cbor:"3,keyasint"` // locks since the log was last empty
}

// Count records an attempt as failed until Succeed says otherwise. The error is
// a *Locked; then nothing was recorded.
func (l *AttemptLog) Count(now time.Time) error {
	if d := l.Lock(now); d > 0 {
		return &Locked{For: d}
	}
	l.Failures = append(l.Failures, now.Unix())
	l.Failures = l.Failures[max(0, len(l.Failures)-maxFailures):]
	if len(l.Failures) >= AttemptsPerWindow {
		l.Since = now.Unix()
		l.Level = min(l.Level+1, maxFailures)
	}
	return nil
}

// CountTyped is Count for a Target, where the same code may be typed again: no
// more than CodeAttempts within CodeLifetime, so that no code has more.
func (l *AttemptLog) CountTyped(now time.Time) error {
	l.settle(now)
	if n := len(l.Failures); n >= CodeAttempts {
		oldest := time.Unix(l.Failures[n-CodeAttempts], 0)
		if d := CodeLifetime - now.Sub(oldest); d > 0 && l.Lock(now) == 0 {
			return &Locked{For: d, Typed: true}
		}
	}
	return l.Count(now)
}

// Succeed takes the last attempt back.
func (l *AttemptLog) Succeed() {
	n := len(l.Failures)
	if n == 0 {
		return
	}
	if n >= AttemptsPerWindow && l.Since != 0 {
		l.Since, l.Level = 0, l.Level-1
	}
	l.Failures = l.Failures[:n-1]
}

// Lock is how long the role is still locked; 0 when it is not.
func (l *AttemptLog) Lock(now time.Time) time.Duration {
	l.settle(now)
	if l.Since == 0 {
		return 0
	}
	return l.length() - now.Sub(time.Unix(l.Since, 0))
}

// Reset forgets everything, on an administrator's word.
func (l *AttemptLog) Reset() { *l = AttemptLog{} }

// settle brings the log to the present.
func (l *AttemptLog) settle(now time.Time) {
	unix := now.Unix()
	l.Since = min(l.Since, unix)
	kept := l.Failures[:0]
	for _, f := range l.Failures {
		if f = min(f, unix); now.Sub(time.Unix(f, 0)) < AttemptWindow {
			kept = append(kept, f)
		}
	}
	l.Failures = kept
	if l.Since != 0 && now.Sub(time.Unix(l.Since, 0)) >= l.length() {
		l.Since = 0
	}
	if len(l.Failures) == 0 && l.Since == 0 {
		l.Level = 0
	}
}

// length is how long a lock of the present level lasts.
func (l *AttemptLog) length() time.Duration {
	return min(FirstLock<<max(0, int(l.Level)-1), LongestLock)
}
