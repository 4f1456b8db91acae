package keycopy

// The rules for codes that operators make themselves. People choose far fewer
// codes than there are, and the same ones: what most would choose is refused.
// They guard against three online guesses, not against a machine that tries all.

import (
	"bytes"
	"errors"
	"fmt"
)

const (
	// leastDifferent is how many different digits a code has at least.
	leastDifferent = 4
	// longestRun is how many neighbours may go up, or down, by the same step.
	longestRun = 4
	// datedDigits is how many digits a written date has.
	datedDigits = 8
	// firstYear to lastYear is what is taken for a year.
	firstYear, lastYear = 1900, 2099
	// leastNumber is how many digits a number of this terminal has to be looked
	// for; sharedDigits in a row of a longer one are too many.
	leastNumber  = 3
	sharedDigits = 6
)

// ErrWeakCode is a code that is easy to guess. The text says why, without a
// digit of it.
var ErrWeakCode = errors.New("this operator code is easy to guess")

// CheckStrength refuses a typed code that others may guess. numbers are those
// that are written on this terminal or known of it: its name, its serial number;
// only their digits count. A generated code is always strong.
func (c *OperatorCode) CheckStrength(numbers []string) error {
	if c.Kind() == CodeGenerated {
		return nil
	}
	d := c.digits.Bytes()
	switch {
	case different(d) < leastDifferent:
		return weak("it has fewer than %d different digits", leastDifferent)
	case repeats(d):
		return weak("it repeats the same digits")
	case steady(d):
		return weak("it goes by the same steps all along")
	case run(d) > longestRun:
		return weak("more than %d of its digits in a row count up, down, or stay the same", longestRun)
	case mirrored(d):
		return weak("it reads the same backwards")
	case dated(d):
		return weak("it has a date in it")
	}
	for _, n := range numbers {
		if shares(d, n) {
			return weak("it has digits of this terminal's name or serial number in it")
		}
	}
	return nil
}

func weak(format string, args ...any) error {
	return fmt.Errorf("%w: %s; choose another one at random", ErrWeakCode, fmt.Sprintf(format, args...))
}

func different(d []byte) (n int) {
	var seen [10]bool
	for _, c := range d {
		if !seen[c-'0'] {
			seen[c-'0'] = true
			n++
		}
	}
	return n
}

// repeats tells a code that is one piece, at most half as long, again and again.
func repeats(d []byte) bool {
	for p := 1; p <= len(d)/2; p++ {
		if bytes.Equal(d[p:], d[:len(d)-p]) {
			return true
		}
	}
	return false
}

// stepAt is from one digit to the next, modulo 10: after 9 comes 0.
func stepAt(d []byte, i int) byte { return (d[i+1] + 10 - d[i]) % 10 }

// steady tells codes such as 13579135 and 11223344, whose steps alternate
// between two or are all the same.
func steady(d []byte) bool {
	for i := 0; i+3 < len(d); i++ {
		if stepAt(d, i) != stepAt(d, i+2) {
			return false
		}
	}
	return true
}

// run is the length of the longest piece that counts up, down, or stays.
func run(d []byte) int {
	longest, length := 1, 1
	for i := 0; i+1 < len(d); i++ {
		s := stepAt(d, i)
		switch {
		case s != 0 && s != 1 && s != 9:
			length = 1
		case i > 0 && s == stepAt(d, i-1):
			length++
		default:
			length = 2
		}
		longest = max(longest, length)
	}
	return longest
}

func mirrored(d []byte) bool {
	for i := range len(d) / 2 {
		if d[i] != d[len(d)-1-i] {
			return false
		}
	}
	return true
}

// dated looks for a date, in the orders year month day, day month year, and
// month day year.
func dated(d []byte) bool {
	for i := 0; i+datedDigits <= len(d); i++ {
		w := d[i : i+datedDigits]
		if date(w[:4], w[4:6], w[6:]) || date(w[4:], w[2:4], w[:2]) || date(w[4:], w[:2], w[2:4]) {
			return true
		}
	}
	return false
}

func date(year, month, day []byte) bool {
	y, m, d := number(year), number(month), number(day)
	return y >= firstYear && y <= lastYear && m >= 1 && m <= 12 && d >= 1 && d <= 31
}

func number(d []byte) (n int) {
	for _, c := range d {
		n = 10*n + int(c-'0')
	}
	return n
}

// shares looks for the digits of a number in a code: all of them, or
// sharedDigits in a row.
func shares(d []byte, text string) bool {
	var n []byte
	for _, c := range []byte(text) {
		if c >= '0' && c <= '9' {
			n = append(n, c)
		}
	}
	if len(n) < leastNumber {
		return false
	}
	if bytes.Contains(d, n) {
		return true
	}
	for i := 0; i+sharedDigits <= len(n); i++ {
		if bytes.Contains(d, n[i:i+sharedDigits]) {
			return true
		}
	}
	return false
}
