package keycopy

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/hsm"
)

func operatorMade(t testing.TB, digits string) *OperatorCode {
	t.Helper()
	c, err := CodesTyped.Parse([]byte(digits), moment(0, 0))
	if err != nil {
		t.Fatalf("%s: %v", digits, err)
	}
	return c
}

// What was typed shows by its length whether it has a check digit.
//
// req: C2
func TestWhatWasTyped(t *testing.T) {
	good := "123456786"
	if damm([]byte(good)) != 0 {
		t.Fatalf("%s is not a code", good)
	}
	const (
		generated = "generated"
		typed     = "typed"
		mistyped  = "mistyped"
		malformed = "malformed"
	)
	for _, tt := range []struct {
		text                  string
		byTyped, either, none string // under CodesTyped, CodesEither, CodesGenerated
	}{
		{good, malformed, generated, generated},
		{"123 456 786", malformed, generated, generated},
		{"123456787", malformed, mistyped, mistyped},
		{"83174092", typed, typed, malformed},
		{"8317-4092", typed, typed, malformed},
		{"８３１７　４０９２", typed, typed, malformed},
		{"8317409265", typed, typed, malformed},
		{"8317409265173048", typed, typed, malformed},
		{"83174092651730481", malformed, malformed, malformed},
		{"8317409", malformed, malformed, malformed},
		{"", malformed, malformed, malformed},
		{"831740x2", malformed, malformed, malformed},
		// Three groups, one too short or too long: a generated code misread.
		{"123 45 786", typed, malformed, malformed},
		{"123 4567 786", typed, malformed, malformed},
		{"12 34 5678", typed, typed, malformed},
	} {
		for policy, want := range map[CodePolicy]string{CodesTyped: tt.byTyped, CodesEither: tt.either, CodesGenerated: tt.none, "": tt.none} {
			in := []byte(tt.text)
			c, err := policy.Parse(in, moment(0, 0))
			got := ""
			switch {
			case err == nil:
				got = string(c.Kind())
			case errors.Is(err, ErrMistyped):
				got = mistyped
			case errors.Is(err, ErrCodeFormat):
				got = malformed
			}
			if got != want {
				t.Errorf("%q under %q: %v, %v; want %s", tt.text, policy, got, err, want)
			}
			if !bytes.Equal(in, make([]byte, len(in))) {
				t.Errorf("%q is not wiped", tt.text)
			}
			if err != nil && len(tt.text) > 8 && strings.Contains(err.Error(), tt.text[:3]) {
				t.Errorf("%q is in the error: %v", tt.text, err)
			}
		}
	}
	for text, words := range map[string]string{"123 45 786": "group 2 of it has 2 digits", "1234 456 786": "group 1 of it has 4", "123 456 78": "group 3", "12345678": "8 digits typed", "1": "1 digit typed"} {
		if _, err := CodesGenerated.Parse([]byte(text), moment(0, 0)); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %v, want %q", text, err, words)
		}
	}
}

func TestCodesThatManyWouldChoose(t *testing.T) {
	numbers := []string{"nav-00173", "SN 8841-5520 93", "x1"}
	for _, tt := range []struct{ code, why string }{
		{"00000000", "different digits"}, {"12121212", "different digits"}, {"11223311", "different digits"},
		{"14921492", "repeats"}, {"4709470947", "repeats"}, {"1492714927149271", "repeats"},
		{"12345678", "steps"}, {"98765432", "steps"}, {"78901234", "steps"}, {"13579135", "steps"}, {"11223344", "steps"}, {"24680246", "steps"},
		{"71234508", "in a row"}, {"49876530", "in a row"}, {"82222249", "in a row"}, {"47890136", "in a row"},
		{"40622604", "backwards"}, {"1470330741", "backwards"},
		{"19840713", "date"}, {"13071984", "date"}, {"07131984", "date"}, {"4719840713", "date"}, {"200211068301", "date"},
		{"40017392", "serial"}, {"17348841", ""}, {"4088415520", "serial"}, {"55209384", "serial"}, {"15520841", ""}, {"15520937", "serial"},
		{"83174092", ""}, {"83174092651", ""}, {"4071829365", ""},
	} {
		err := operatorMade(t, tt.code).CheckStrength(numbers)
		if tt.why == "" && err != nil || tt.why != "" && (!errors.Is(err, ErrWeakCode) || !strings.Contains(err.Error(), tt.why)) {
			t.Errorf("%s: %v, want %q", tt.code, err, tt.why)
		}
		if err != nil && strings.Contains(err.Error(), tt.code) {
			t.Errorf("the code is in the error: %v", err)
		}
	}
	if c, err := CodesGenerated.Parse([]byte("000000000"), moment(0, 0)); err != nil || c.CheckStrength(numbers) != nil {
		t.Errorf("a generated code is judged: %v", err)
	}
}

// Whoever does choose at random is rarely sent away.
func TestRandomCodesAreStrong(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for n, most := range map[int]int{8: 40, 10: 40, 16: 50} { // of 1000
		refused := 0
		for range 1000 {
			d := make([]byte, n)
			for i := range d {
				d[i] = '0' + byte(r.IntN(10))
			}
			if operatorMade(t, string(d)).CheckStrength([]string{"nav-0017"}) != nil {
				refused++
			}
		}
		if refused > most {
			t.Errorf("%d of 1000 random codes of %d digits are refused", refused, n)
		}
	}
}

// tagger is a MAC under a key of its own.
func tagger(key string) func(context.Context, []byte) (*hsm.Secret, error) {
	return func(_ context.Context, m []byte) (*hsm.Secret, error) {
		h := hmac.New(sha256.New, []byte(key))
		h.Write(m)
		return hsm.NewSecret(h.Sum(nil)), nil
	}
}

func TestUsedCodes(t *testing.T) {
	tag := func(code, key string) uint16 {
		n, err := operatorMade(t, code).Tag(t.Context(), tagger(key))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if a, b := tag("83174092", "k"), tag("83174092", "l"); a == b || a != tag("8317 4092", "k") || a == tag("83174093", "k") {
		t.Error("tags do not tell codes or keys apart")
	}
	now := time.Unix(1_800_000_000, 0)
	var u UsedCodes
	code := func(n int) uint16 { return uint16(1000 + n) }
	if u.Check(code(0), now) != nil {
		t.Error("a new code is refused")
	}
	// At a Target: again as long as the code may be in force, and no longer.
	u.Use(code(0), now, false)
	u.Use(code(0), now.Add(time.Second), false)
	if len(u.Codes) != 1 || u.Check(code(0), now.Add(CodeLifetime-time.Second)) != nil || u.Check(code(0), now.Add(-time.Hour)) != nil {
		t.Errorf("a code cannot be typed a second time: %+v", u)
	}
	if err := u.Check(code(0), now.Add(CodeLifetime)); !errors.Is(err, ErrUsedCode) {
		t.Errorf("%v after its lifetime", err)
	}
	u.Use(code(0), now.Add(2*time.Second), true)
	if err := u.Check(code(0), now.Add(2*time.Second)); !errors.Is(err, ErrUsedCode) || len(u.Codes) != 1 {
		t.Errorf("%v once it has done its work", err)
	}
	for n := 1; n < usedKept; n++ {
		u.Use(code(n), now, true)
	}
	if u.Check(code(0), now) == nil || len(u.Codes) != usedKept {
		t.Error("a code is forgotten too early")
	}
	u.Use(code(usedKept), now, true)
	if u.Check(code(0), now) != nil || u.Check(code(1), now) == nil || len(u.Codes) != usedKept {
		t.Error("the oldest is not forgotten")
	}
	broken := errors.New("the chip is gone")
	if _, err := operatorMade(t, "83174092").Tag(t.Context(), func(context.Context, []byte) (*hsm.Secret, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Error(err)
	}
}

// Three tries and nine hold for typed codes as for generated ones.
//
// req: C3
func TestAttemptsOfTypedCodes(t *testing.T) {
	var log AttemptLog
	now := time.Unix(1_800_000_000, 0)
	c := operatorMade(t, "83174092")
	for n := range CodeAttempts {
		if err := log.CountTyped(now, c, randomness{}); err != nil {
			t.Fatalf("try %d: %v", n, err)
		}
	}
	var locked *Locked
	if err := log.CountTyped(now, c, randomness{}); !errors.As(err, &locked) || !locked.Typed {
		t.Errorf("a fourth try: %v", err)
	}
	if err := log.CountTyped(now.Add(CodeLifetime), c, randomness{}); err != nil {
		t.Errorf("a new code that is the same one: %v", err)
	}
}

type randomness struct{}

func (randomness) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(i)
	}
	return len(p), nil
}

// Whatever is typed: no panic, the input is wiped, and what is taken has the
// form that was allowed.
func FuzzOperatorCode(f *testing.F) {
	for _, s := range []string{"123 456 786", "８３１７　４０９２", "8317409265173048", "12 345 6789", "\xff", "ー－−", "12345678901234567890"} {
		f.Add([]byte(s), uint8(2))
	}
	f.Fuzz(func(t *testing.T, typed []byte, policy uint8) {
		p := []CodePolicy{CodesGenerated, CodesTyped, CodesEither}[policy%3]
		before := bytes.Clone(typed)
		c, err := p.Parse(typed, moment(0, 0))
		if !bytes.Equal(typed, make([]byte, len(typed))) {
			t.Error("not wiped")
		}
		if err != nil {
			return
		}
		n := c.digits.Len()
		if n < MinTypedDigits || n > MaxTypedDigits || !p.Allows(c.Kind()) || c.Kind() == CodeGenerated && damm(c.digits.Bytes()) != 0 {
			t.Errorf("%q is taken as %d digits", before, n)
		}
		if err := c.CheckStrength([]string{"SN " + string(c.digits.Bytes())}); c.Kind() == CodeTyped && err == nil {
			t.Errorf("%q does not contain itself", before)
		}
		again, err := p.Parse(c.Grouped(), moment(0, 0))
		if err != nil && c.Kind() == CodeGenerated || err == nil && !again.digits.Equal(c.digits) {
			t.Errorf("%q as it is shown: %v", before, err)
		}
		if s := fmt.Sprintf("%v %+v %q", c, c, c); bytes.Contains([]byte(s), c.digits.Bytes()) {
			t.Error("it prints")
		}
	})
}
