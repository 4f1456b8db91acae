package transport

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
)

// The bytes of orders never change: old terminals meet new servers.
func TestCodeGolden(t *testing.T) {
	wrapped := &WrappedCode{Group: "default", Epoch: 2, Public: []byte{1}, Duplicate: []byte{2}, Seed: []byte{3}}
	for want, m := range map[string]any{
		"a3016764656661756c740202035820" + strings.Repeat("07", 32):            &CodeInstall{Group: "default", Epoch: 2, Code: bytes.Repeat([]byte{7}, 32)},
		"a3016764656661756c74020204a5016764656661756c740202034101044102054103": &CodeInstall{Group: "default", Epoch: 2, Wrapped: wrapped},
		"a2016764656661756c7402820103":                                         &CodeRetire{Group: "default", Epochs: []uint32{1, 3}},
	} {
		if got, err := Marshal(m); err != nil || hex.EncodeToString(got) != want {
			t.Errorf("%x, %v; want %s", got, err, want)
		}
	}
}

func TestCodeCheck(t *testing.T) {
	code := bytes.Repeat([]byte{7}, 32)
	wrapped := func(group Name, epoch uint32, n int) *WrappedCode {
		return &WrappedCode{Group: group, Epoch: epoch, Public: make([]byte, n)}
	}
	for name, c := range map[string]struct {
		m    interface{ Check() error }
		good bool
	}{
		"code":             {&CodeInstall{Group: "g", Epoch: 1, Code: code}, true},
		"wrapped":          {&CodeInstall{Group: "g", Epoch: 1, Wrapped: wrapped("g", 1, 90)}, true},
		"no group":         {&CodeInstall{Epoch: 1, Code: code}, false},
		"no epoch":         {&CodeInstall{Group: "g", Code: code}, false},
		"nothing":          {&CodeInstall{Group: "g", Epoch: 1}, false},
		"short":            {&CodeInstall{Group: "g", Epoch: 1, Code: code[1:]}, false},
		"both":             {&CodeInstall{Group: "g", Epoch: 1, Code: code, Wrapped: wrapped("g", 1, 90)}, false},
		"another group":    {&CodeInstall{Group: "g", Epoch: 1, Wrapped: wrapped("h", 1, 90)}, false},
		"another epoch":    {&CodeInstall{Group: "g", Epoch: 1, Wrapped: wrapped("g", 2, 90)}, false},
		"long":             {&CodeInstall{Group: "g", Epoch: 1, Wrapped: wrapped("g", 1, maxWrapped+1)}, false},
		"retire":           {&CodeRetire{Group: "g", Epochs: []uint32{1, 2, 9}}, true},
		"retire, no group": {&CodeRetire{Epochs: []uint32{1}}, false},
		"retire nothing":   {&CodeRetire{Group: "g"}, false},
		"retire 0":         {&CodeRetire{Group: "g", Epochs: []uint32{0}}, false},
		"retire twice":     {&CodeRetire{Group: "g", Epochs: []uint32{1, 1}}, false},
		"retire many":      {&CodeRetire{Group: "g", Epochs: make([]uint32, MaxRetired+1)}, false},
	} {
		if err := c.m.Check(); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What a decoder takes, it gives back byte for byte.
func FuzzCode(f *testing.F) {
	for _, m := range []any{
		&CodeInstall{Group: "g", Epoch: 1, Code: make([]byte, 32)},
		&CodeInstall{Group: "g", Epoch: 1, Wrapped: &WrappedCode{Group: "g", Epoch: 1, Public: []byte{1}, Duplicate: []byte{2}, Seed: []byte{3}}},
		&CodeRetire{Group: "g", Epochs: []uint32{1}},
	} {
		b, err := Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, m := range []interface{ Check() error }{&CodeInstall{}, &CodeRetire{}} {
			if Unmarshal(b, m, MaxEnvelope) != nil || m.Check() != nil {
				continue
			}
			if again, err := Marshal(m); err != nil || !bytes.Equal(again, b) {
				t.Fatalf("%x decodes, encodes to %x, %v", b, again, err)
			}
		}
	})
}
