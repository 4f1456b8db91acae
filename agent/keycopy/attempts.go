package keycopy

// The rules for guesses at the operator code over time. AttemptLog is the state
// that the agent keeps, one for each role; the count of one code's failures is
// in Source and dies with the code.

import (
	"errors"
	"fmt"
	"io"
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
	// saltSize is how many bytes AttemptLog.Salt has.
	saltSize = 16
)

// ErrLocked is too many wrong attempts.
var ErrLocked = errors.New("too many wrong operator codes")

// Locked says for how long.
type Locked struct {
	For time.Duration
	// Typed is true if only the code now typed is spent: another one may be
	// tried at once.
	Typed bool
}

func (e *Locked) Error() string {
	if e.Typed {
		return fmt.Sprintf("this operator code was typed here %d times and is spent", CodeAttempts)
	}
	return fmt.Sprintf("%v here: this terminal takes the next one in %s", ErrLocked, spell(e.For))
}

// spell writes a waiting time as people say it, never less than it is.
func spell(d time.Duration) string {
	s := int((d + time.Second - 1) / time.Second)
	switch {
	case s < 60:
		return fmt.Sprintf("%d s", s)
	case s < 3600:
		return fmt.Sprintf("%d min %d s", s/60, s%60)
	}
	return fmt.Sprintf("%d h %d min", s/3600, s%3600/60)
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
	// Typed tells one typed code from another, in a log of a Target: those that
	// failed within CodeLifetime, oldest first. Salt is for their tags.
	Typed []TypedFailure `cbor:"4,keyasint,omitempty"`
	Salt  []byte         `cbor:"5,keyasint,omitempty"`
}

// A TypedFailure is an attempt with a code that was typed. Tag is too short to
// find the code by it; two codes that share one share their attempts.
type TypedFailure struct {
	At  int64  `cbor:"1,keyasint"`
	Tag uint16 `cbor:"2,keyasint"`
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

// CountTyped is Count for a Target, where the same code may be typed again: it
// gets no more than CodeAttempts within CodeLifetime. A new code has attempts of
// its own; all of them count towards the lock.
func (l *AttemptLog) CountTyped(now time.Time, code *OperatorCode, random io.Reader) error {
	if err := l.CheckTyped(now, code); err != nil {
		return err
	}
	if len(l.Salt) != saltSize {
		salt := make([]byte, saltSize)
		if _, err := io.ReadFull(random, salt); err != nil {
			return fmt.Errorf("salt of operator codes: %w", err)
		}
		l.Salt, l.Typed = salt, nil
	}
	if err := l.Count(now); err != nil {
		return err
	}
	l.Typed = append(l.Typed, TypedFailure{now.Unix(), code.tag(l.Salt)})
	l.Typed = l.Typed[max(0, len(l.Typed)-maxFailures):]
	return nil
}

// CheckTyped says what CountTyped would refuse, and counts nothing.
func (l *AttemptLog) CheckTyped(now time.Time, code *OperatorCode) error {
	if d := l.Lock(now); d > 0 {
		return &Locked{For: d}
	}
	if len(l.Typed) == 0 {
		return nil
	}
	var same []int64
	for tag, i := code.tag(l.Salt), 0; i < len(l.Typed); i++ {
		if l.Typed[i].Tag == tag {
			same = append(same, l.Typed[i].At)
		}
	}
	if n := len(same); n >= CodeAttempts {
		return &Locked{For: CodeLifetime - now.Sub(time.Unix(same[n-CodeAttempts], 0)), Typed: true}
	}
	return nil
}

// Succeed takes the last attempt back, and begins a new count of typed codes:
// the codes of the copy that is now done are destroyed.
func (l *AttemptLog) Succeed() {
	l.Typed = nil
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
	typed := l.Typed[:0]
	for _, f := range l.Typed {
		if f.At = min(f.At, unix); now.Sub(time.Unix(f.At, 0)) < CodeLifetime {
			typed = append(typed, f)
		}
	}
	l.Typed = typed
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
