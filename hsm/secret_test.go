package hsm_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/hsm"
)

const needle = "hunter2-HUNTER2"

// leaks tells whether text shows the needle: as it is, in hex or as the list
// of decimal bytes that %v and %d make.
func leaks(text string) bool {
	low := strings.ToLower(text)
	list := strings.Trim(fmt.Sprint([]byte(needle)), "[]")
	return strings.Contains(low, strings.ToLower(needle)) ||
		strings.Contains(low, hex.EncodeToString([]byte(needle))) ||
		strings.Contains(text, list)
}

func TestSecretPrintsNothing(t *testing.T) {
	if !leaks(fmt.Sprintf("%v", []byte(needle))) || !leaks(fmt.Sprintf("%X", needle)) {
		t.Fatal("the test would not see a leak")
	}
	s := hsm.NewSecret([]byte(needle))
	type holder struct {
		Exported   *hsm.Secret
		Value      hsm.Secret
		unexported *hsm.Secret
		value      hsm.Secret
	}
	values := map[string]any{
		"pointer": s, "value": *s, "slice": []*hsm.Secret{s}, "map": map[string]*hsm.Secret{"k": s},
		"struct": holder{s, *s, s, *s}, "struct pointer": &holder{s, *s, s, *s},
	}
	for name, v := range values {
		for _, verb := range "vTtbcdoOqxXUeEfFgGspw" {
			for _, flags := range []string{"", "+", "#", " ", "0", "-20", ".3", "+#x"} {
				format := "%" + flags + string(verb)
				if got := fmt.Sprintf(format, v); leaks(got) {
					t.Errorf("%s with %q shows the secret", name, format)
				}
			}
		}
		if got := fmt.Sprint(v) + fmt.Sprintln(v); leaks(got) {
			t.Errorf("%s: Sprint shows the secret", name)
		}
		var out bytes.Buffer
		slog.New(slog.NewTextHandler(&out, nil)).Info("m", "v", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "v", v, slog.Any("w", []any{v}))
		slog.New(slog.NewJSONHandler(&out, nil)).With("v", v).WithGroup("g").Info("m", "v", v)
		if leaks(out.String()) {
			t.Errorf("%s: slog shows the secret", name)
		}
		j, err := json.Marshal(v)
		if err != nil || leaks(string(j)) {
			t.Errorf("%s: json %s, %v", name, j, err)
		}
		if x, err := xml.Marshal(v); err == nil && leaks(string(x)) {
			t.Errorf("%s: xml shows the secret", name)
		}
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%x", "%s", "%d", "%q"} {
		if got := fmt.Sprintf(verb, s); got != "[secret]" {
			t.Errorf("%s prints %q, want [secret]", verb, got)
		}
	}
	if j, _ := json.Marshal(s); string(j) != `"[secret]"` {
		t.Errorf("json %s", j)
	}
}

func TestSecretWipe(t *testing.T) {
	b := []byte(needle)
	s := hsm.NewSecret(b)
	c := s.Clone()
	s.Wipe()
	s.Wipe()
	if !bytes.Equal(b, make([]byte, len(needle))) || s.Len() != 0 || s.Bytes() != nil {
		t.Error("bytes stay after Wipe")
	}
	if string(c.Bytes()) != needle {
		t.Error("a clone goes with its original")
	}
	var none *hsm.Secret
	none.Wipe()
	if none.Len() != 0 || none.Bytes() != nil {
		t.Error("a nil secret holds something")
	}
}

func TestSecretEqual(t *testing.T) {
	a, b := hsm.NewSecret([]byte("same")), hsm.NewSecret([]byte("same"))
	if !a.Equal(b) || a.Equal(hsm.NewSecret([]byte("sam"))) || a.Equal(nil) || a.Equal(hsm.NewSecret([]byte("sama"))) {
		t.Error("Equal is wrong")
	}
	if hsm.RandomSecret(32).Equal(hsm.RandomSecret(32)) || hsm.RandomSecret(32).Len() != 32 {
		t.Error("RandomSecret is not random")
	}
}

func TestSecretMarshalBinary(t *testing.T) {
	s := hsm.NewSecret([]byte(needle))
	b, err := s.MarshalBinary()
	if err != nil || string(b) != needle {
		t.Fatalf("%v, %v", b, err)
	}
	old := []byte("old")
	back := hsm.NewSecret(old)
	if err := back.UnmarshalBinary(b); err != nil || !back.Equal(s) {
		t.Fatal("MarshalBinary does not round-trip")
	}
	b[0]++
	if !back.Equal(s) || !bytes.Equal(old, make([]byte, 3)) {
		t.Error("UnmarshalBinary keeps the caller's memory, or the old bytes")
	}
	var zero hsm.Secret
	if err := zero.UnmarshalBinary([]byte("x")); err != nil || zero.Len() != 1 {
		t.Error("the zero Secret cannot be filled")
	}
}
