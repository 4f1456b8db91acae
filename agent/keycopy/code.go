package keycopy

// The operator code: a one-time code that the Source makes and shows and an
// operator types on the Target, or, by policy, one that the operator types on
// both (code_strength.go, code_used.go). It lives in memory only.

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"
	"unicode/utf8"

	"github.com/kagimori/kagimori/hsm"
)

const (
	// CodeDigits is how many digits a generated operator code has: 8 random ones
	// and a check digit. No other code has as many, so that what somebody types
	// shows by its length what it is.
	CodeDigits   = 9
	randomDigits = CodeDigits - 1
	// MinTypedDigits and MaxTypedDigits bound a code that an operator made. It has
	// no check digit: nobody computes one in his head.
	MinTypedDigits = 8
	MaxTypedDigits = 16
	// CodeLifetime is how long a code is good for.
	CodeLifetime = 300 * time.Second
	// CodeAttempts is how many wrong attempts kill a code.
	CodeAttempts = 3
	// codeGroup is how many digits of a generated code are shown together,
	// typedGroup of another.
	codeGroup  = 3
	typedGroup = 4
)

// A CodeKind says who made an operator code.
type CodeKind string

// The kinds.
const (
	CodeGenerated CodeKind = "generated" // the Source, at random
	CodeTyped     CodeKind = "typed"     // the operator, who types it on both terminals
)

// A CodePolicy says which kinds a terminal takes.
type CodePolicy string

// The policies; the empty one is CodesGenerated.
const (
	CodesGenerated CodePolicy = "generated"
	CodesTyped     CodePolicy = "typed"
	CodesEither    CodePolicy = "either"
)

// Allows says whether codes of a kind are taken.
func (p CodePolicy) Allows(k CodeKind) bool {
	switch p {
	case CodesEither:
		return true
	case CodesTyped:
		return k == CodeTyped
	}
	return k == CodeGenerated
}

// What can be wrong with a typed code. None of these costs an attempt.
var (
	// ErrCodeFormat comes with how many digits were typed, or which group is wrong.
	ErrCodeFormat = errors.New("not an operator code")
	ErrMistyped   = errors.New("a digit is mistyped; compare with the old terminal and type the code again")
)

// ErrWrongCode is a Target that holds the security code and whose operator code
// was judged, and is not the Source's.
var ErrWrongCode = errors.New("wrong operator code")

// An OperatorCode prints, logs and marshals as "[secret]". Its owner wipes it.
type OperatorCode struct {
	digits *hsm.Secret // ASCII
	since  Instant
}

// NewOperatorCode makes a code of random digits.
func NewOperatorCode(random io.Reader, now Instant) (*OperatorCode, error) {
	digits := make([]byte, 0, CodeDigits)
	var b [1]byte
	for len(digits) < randomDigits {
		if _, err := io.ReadFull(random, b[:]); err != nil {
			clear(digits)
			return nil, fmt.Errorf("make operator code: %w", err)
		}
		if b[0] < 250 { // 250 is the largest multiple of 10 in a byte: no digit is favoured
			digits = append(digits, '0'+b[0]%10)
		}
	}
	b[0] = 0
	digits = append(digits, '0'+damm(digits))
	return &OperatorCode{hsm.NewSecret(digits), now}, nil
}

// Parse reads what somebody typed, and wipes it. It takes the digits in groups
// or not, and as a Japanese keyboard gives them (full width). A generated code
// is checked for slips, a typed one cannot be; CheckStrength is not called.
func (p CodePolicy) Parse(typed []byte, now Instant) (*OperatorCode, error) {
	defer clear(typed)
	digits := make([]byte, 0, MaxTypedDigits)
	groups := make([]int, 0, MaxTypedDigits) // their lengths
	grouped := false                         // the last rune was a digit
	for rest := typed; len(rest) > 0; {
		r, n := utf8.DecodeRune(rest)
		rest = rest[n:]
		if separator(r) {
			grouped = false
			continue
		}
		if r >= '０' && r <= '９' {
			r += '0' - '０'
		}
		if r < '0' || r > '9' {
			clear(digits)
			return nil, p.malformed("it has digits only")
		}
		if len(digits) == MaxTypedDigits {
			clear(digits)
			return nil, p.malformed(fmt.Sprintf("more than %d digits were typed", MaxTypedDigits))
		}
		digits = append(digits, byte(r))
		if !grouped {
			groups, grouped = append(groups, 0), true
		}
		groups[len(groups)-1]++
	}
	if err := p.check(digits, groups); err != nil {
		clear(digits)
		return nil, err
	}
	return &OperatorCode{hsm.NewSecret(digits), now}, nil
}

// check judges the digits by how many there are, and in which groups.
func (p CodePolicy) check(digits []byte, groups []int) error {
	n := len(digits)
	if n == CodeDigits {
		switch {
		case !p.Allows(CodeGenerated):
			return p.malformed(fmt.Sprintf("%d digits were typed, as a terminal makes them", n))
		case damm(digits) != 0:
			return ErrMistyped
		}
		return nil
	}
	// Whoever reads three groups aloud and loses a digit has not made a code of
	// his own: it must not cost an attempt.
	if odd := oddGroup(groups); odd > 0 && p.Allows(CodeGenerated) {
		return p.malformed(fmt.Sprintf("group %d of it has %s instead of %d", odd, plural(groups[odd-1], "digit"), codeGroup))
	}
	if !p.Allows(CodeTyped) || n < MinTypedDigits {
		return p.malformed(plural(n, "digit") + " typed")
	}
	return nil
}

// oddGroup is the one group of three that has not codeGroup digits, from 1; 0 if
// that is not what is wrong.
func oddGroup(groups []int) (odd int) {
	if len(groups) != CodeDigits/codeGroup {
		return 0
	}
	for i, n := range groups {
		if n != codeGroup {
			if odd > 0 {
				return 0
			}
			odd = i + 1
		}
	}
	return odd
}

func (p CodePolicy) malformed(what string) error {
	shown := fmt.Sprintf("a code that a terminal shows has %d digits; read it on the old terminal and type all of them", CodeDigits)
	made := fmt.Sprintf("a code of your own has %d, or %d to %d, digits (never %d), the same on both terminals", MinTypedDigits, CodeDigits+1, MaxTypedDigits, CodeDigits)
	switch p {
	case CodesEither:
		shown += "; " + made
	case CodesTyped:
		shown = made
	}
	return fmt.Errorf("%w: %s: %s", ErrCodeFormat, what, shown)
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// Kind tells who made the code: the lengths differ.
func (c *OperatorCode) Kind() CodeKind {
	if c.digits.Len() == CodeDigits {
		return CodeGenerated
	}
	return CodeTyped
}

// separator tells what may stand between digits: space and hyphen, their full
// width forms, and the two marks that a Japanese keyboard gives for a hyphen.
func separator(r rune) bool {
	switch r {
	case ' ', '-', '\u3000', '\uff0d', '\u30fc', '\u2212', '\r', '\n':
		return true
	}
	return false
}

// Grouped is the code as it is shown to the operator: "123 456 789". The caller
// wipes it. It is the only way to see a code.
func (c *OperatorCode) Grouped() []byte {
	group := codeGroup
	if c.Kind() == CodeTyped {
		group = typedGroup
	}
	out := make([]byte, 0, MaxTypedDigits+MaxTypedDigits/typedGroup)
	for i, d := range c.digits.Bytes() {
		if i > 0 && i%group == 0 {
			out = append(out, ' ')
		}
		out = append(out, d)
	}
	return out
}

// Remaining is how long the code is still good for; 0 when it is not.
func (c *OperatorCode) Remaining(now Instant) time.Duration {
	if c == nil || c.digits.Len() == 0 {
		return 0
	}
	return max(0, CodeLifetime-max(0, now.Since(c.since)))
}

// tag is what AttemptLog knows a typed code by: 16 bits of HMAC-SHA256, which
// thousands of codes share.
func (c *OperatorCode) tag(salt []byte) uint16 {
	m := hmac.New(sha256.New, salt)
	m.Write(c.digits.Bytes())
	return binary.BigEndian.Uint16(m.Sum(nil))
}

// Wipe destroys the code.
func (c *OperatorCode) Wipe() {
	if c != nil {
		c.digits.Wipe()
	}
}

// Format keeps fmt from printing the code.
func (c *OperatorCode) Format(f fmt.State, verb rune) { c.digits.Format(f, verb) }

// LogValue keeps log/slog from printing the code.
func (c *OperatorCode) LogValue() slog.Value { return c.digits.LogValue() }

// MarshalText keeps encoding/json from printing the code.
func (c *OperatorCode) MarshalText() ([]byte, error) { return c.digits.MarshalText() }

// dammTable is a totally anti-symmetric quasigroup of order 10 (H. M. Damm,
// 2004): it finds every single wrong digit and every swap of neighbours.
var dammTable = [10][10]byte{
	{0, 3, 1, 7, 5, 9, 8, 6, 4, 2},
	{7, 0, 9, 2, 1, 5, 4, 8, 6, 3},
	{4, 2, 0, 6, 8, 7, 1, 3, 5, 9},
	{1, 7, 5, 0, 9, 8, 3, 4, 2, 6},
	{6, 1, 2, 3, 0, 4, 5, 9, 7, 8},
	{3, 6, 7, 4, 2, 0, 9, 5, 8, 1},
	{5, 8, 6, 9, 7, 2, 0, 1, 3, 4},
	{8, 9, 4, 5, 3, 6, 2, 0, 1, 7},
	{9, 4, 3, 8, 6, 1, 7, 2, 0, 5},
	{2, 5, 8, 1, 4, 3, 6, 7, 9, 0},
}

// damm is the check digit of ASCII digits, and 0 for digits that end in theirs.
func damm(digits []byte) byte {
	c := byte(0)
	for _, d := range digits {
		c = dammTable[c][d-'0']
	}
	return c
}
