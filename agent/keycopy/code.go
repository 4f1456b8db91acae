package keycopy

// The operator code: a one-time code that the Source makes and shows, and that
// an operator types on the Target. It lives in memory only.

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
	// CodeDigits is how many digits an operator code has: 8 random ones and a
	// check digit.
	CodeDigits   = 9
	randomDigits = CodeDigits - 1
	// CodeLifetime is how long a code is good for.
	CodeLifetime = 300 * time.Second
	// CodeAttempts is how many wrong attempts kill a code.
	CodeAttempts = 3
	// codeGroup is how many digits are shown together.
	codeGroup = 3
)

// What can be wrong with a typed code. None of these costs an attempt.
var (
	ErrCodeFormat = fmt.Errorf("an operator code has %d digits; read it on the old terminal and type all of them", CodeDigits)
	ErrMistyped   = errors.New("a digit is mistyped; compare with the old terminal and type the code again")
)

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

// ParseOperatorCode reads what somebody typed, and wipes it. It takes the
// digits in groups or not, and as a Japanese keyboard gives them (full width).
func ParseOperatorCode(typed []byte, now Instant) (*OperatorCode, error) {
	defer clear(typed)
	digits := make([]byte, 0, CodeDigits)
	for rest := typed; len(rest) > 0; {
		r, n := utf8.DecodeRune(rest)
		rest = rest[n:]
		if separator(r) {
			continue
		}
		if r >= '０' && r <= '９' {
			r += '0' - '０'
		}
		if r < '0' || r > '9' || len(digits) == CodeDigits {
			clear(digits)
			return nil, ErrCodeFormat
		}
		digits = append(digits, byte(r))
	}
	if len(digits) != CodeDigits {
		clear(digits)
		return nil, ErrCodeFormat
	}
	if damm(digits) != 0 {
		clear(digits)
		return nil, ErrMistyped
	}
	return &OperatorCode{hsm.NewSecret(digits), now}, nil
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
	out := make([]byte, 0, CodeDigits+CodeDigits/codeGroup)
	for i, d := range c.digits.Bytes() {
		if i > 0 && i%codeGroup == 0 {
			out = append(out, ' ')
		}
		out = append(out, d)
	}
	return out
}

// Remaining is how long the code is still good for; 0 when it is not.
func (c *OperatorCode) Remaining(now Instant) time.Duration {
	if c.digits.Len() == 0 {
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
