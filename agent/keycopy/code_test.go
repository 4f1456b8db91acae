package keycopy

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// moment is an Instant on both clocks.
func moment(wall, mono time.Duration) Instant {
	at := time.Unix(1_800_000_000, 0).Add(wall)
	return Instant{Wall: at, Mono: time.Hour + mono, Date: at}
}

func TestOperatorCodeRoundTrip(t *testing.T) {
	seen := map[string]bool{}
	for range 200 {
		c, err := NewOperatorCode(rand.Reader, moment(0, 0))
		if err != nil {
			t.Fatal(err)
		}
		shown := c.Grouped()
		if len(shown) != 11 || shown[3] != ' ' || shown[7] != ' ' {
			t.Fatalf("%q is not grouped", shown)
		}
		seen[string(shown)] = true
		typed := bytes.Clone(shown)
		again, err := CodesGenerated.Parse(typed, moment(0, 0))
		if err != nil || !again.digits.Equal(c.digits) {
			t.Fatalf("%q: %v", shown, err)
		}
		if !bytes.Equal(typed, make([]byte, len(typed))) {
			t.Error("what was typed is not wiped")
		}
	}
	if len(seen) < 199 {
		t.Errorf("%d different codes of 200", len(seen))
	}
	if _, err := NewOperatorCode(bytes.NewReader(make([]byte, 7)), moment(0, 0)); err == nil {
		t.Error("no randomness, and no error")
	}
}

// No digit is favoured: bytes of 250 and more are drawn again.
func TestOperatorCodeDigitsAreUniform(t *testing.T) {
	c, err := NewOperatorCode(bytes.NewReader([]byte{250, 255, 0, 9, 10, 249, 1, 251, 2, 3, 4}), moment(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	if got := string(c.digits.Bytes()[:randomDigits]); got != "09091234" {
		t.Errorf("%s", got)
	}
}

// req: C2
func TestParseOperatorCode(t *testing.T) {
	digits := []byte("12345678")
	good := string(append(digits, '0'+damm(digits)))
	full := strings.Map(func(d rune) rune { return d - '0' + '０' }, good)
	for _, s := range []string{good, good[:3] + " " + good[3:6] + "-" + good[6:], full, full[:9] + "　" + full[9:], full[:9] + "ー" + full[9:18] + "－" + full[18:],
		" " + good + "\r\n"} {
		c, err := CodesGenerated.Parse([]byte(s), moment(0, 0))
		if err != nil || string(c.digits.Bytes()) != good {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"", good[:8], good + "1", good[:8] + "x", good[:8] + "\xff", "١" + good[1:], "²" + good[1:], "12.345.678", strings.Repeat(" ", 1000)} {
		if _, err := CodesGenerated.Parse([]byte(s), moment(0, 0)); !errors.Is(err, ErrCodeFormat) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// The check digit finds every single wrong digit and every swap of two
// neighbours.
func TestCheckDigit(t *testing.T) {
	base := []byte("90241865")
	base = append(base, '0'+damm(base))
	for i := range base {
		for d := byte('0'); d <= '9'; d++ {
			typed := bytes.Clone(base)
			typed[i] = d
			if _, err := CodesGenerated.Parse(typed, moment(0, 0)); (err == nil) != (d == base[i]) || err != nil && !errors.Is(err, ErrMistyped) {
				t.Errorf("digit %d as %c: %v", i, d, err)
			}
		}
	}
	for x := range dammTable {
		seen := [10]bool{}
		for y := range dammTable {
			seen[dammTable[x][y]] = true
			for c := range dammTable {
				if x != y && dammTable[dammTable[c][x]][y] == dammTable[dammTable[c][y]][x] {
					t.Errorf("after %d the swap of %d and %d is not found", c, x, y)
				}
			}
		}
		if seen != [10]bool{true, true, true, true, true, true, true, true, true, true} || dammTable[x][x] != 0 {
			t.Errorf("row %d is not a permutation with 0 on the diagonal", x)
		}
	}
}

// The code dies by the earlier of the two clocks.
func TestOperatorCodeLifetime(t *testing.T) {
	c, err := NewOperatorCode(rand.Reader, moment(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		now  Instant
		want time.Duration
	}{
		{"at once", moment(0, 0), 300 * time.Second},
		{"both clocks run", moment(299*time.Second, 299*time.Second), time.Second},
		{"both clocks are over", moment(300*time.Second, 300*time.Second), 0},
		{"wall clock set back", moment(-time.Hour, 301*time.Second), 0},
		{"suspended: the other clock stood", moment(301*time.Second, 0), 0},
		{"wall clock set forward", moment(24*time.Hour, time.Second), 0},
		{"set back a little", moment(-time.Second, time.Second), 299 * time.Second},
		{"both behind", moment(-time.Second, -time.Second), 300 * time.Second},
	} {
		if got := c.Remaining(tt.now); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	raw := c.digits.Bytes()
	c.Wipe()
	if !bytes.Equal(raw, make([]byte, CodeDigits)) || c.Remaining(moment(0, 0)) != 0 || len(c.Grouped()) != 0 {
		t.Error("a wiped code is still there")
	}
	c.Wipe()
	(*OperatorCode)(nil).Wipe()
}

func TestSystemClock(t *testing.T) {
	clock := NewClock()
	a := clock()
	if b := clock(); b.Mono < a.Mono || b.Since(a) < 0 || b.Since(a) > time.Minute {
		t.Errorf("%v then %v", a, b)
	}
}

func TestOperatorCodeDoesNotPrint(t *testing.T) {
	c, err := NewOperatorCode(rand.Reader, moment(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	js, err := json.Marshal(map[string]any{"code": c})
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("made", "code", c)
	out := fmt.Sprintf("%v %+v %#v %s %x %d %q", c, c, c, c, c, c, c) + string(js) + log.String()
	for _, form := range []string{string(c.digits.Bytes()), fmt.Sprintf("%x", c.digits.Bytes())} {
		if strings.Contains(out, form) {
			t.Errorf("printed: %s", out)
		}
	}
}
