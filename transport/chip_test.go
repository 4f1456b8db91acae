package transport

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"testing"
)

func fleetKey(t testing.TB, curve elliptic.Curve) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return spki
}

func TestFleetKey(t *testing.T) {
	good := fleetKey(t, elliptic.P256())
	key, err := ParseFleetKey(good)
	if err != nil || len(good) != FleetKeySize {
		t.Fatalf("%d bytes, %v", len(good), err)
	}
	if again, _ := x509.MarshalPKIXPublicKey(key); !bytes.Equal(again, good) {
		t.Error("another key")
	}
	off := slices.Clone(good)
	off[len(off)-1] ^= 1
	for name, bad := range map[string][]byte{"nothing": nil, "P-384": fleetKey(t, elliptic.P384()), "off the curve": off, "longer": append(slices.Clone(good), 0), "zeros": make([]byte, FleetKeySize)} {
		if _, err := ParseFleetKey(bad); !errors.Is(err, ErrFleetKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestChipFiles(t *testing.T) {
	a := &ChipApproval{Fleet: fleetKey(t, elliptic.P256()), Parent: []byte("parent"), Signature: []byte("signature")}
	chip, err := FormatChip(a.Parent)
	if err != nil {
		t.Fatal(err)
	}
	approval, err := FormatChipApproval("demo", a)
	if err != nil {
		t.Fatal(err)
	}
	if parent, err := ParseChip(append(chip, '\n', ' ')); err != nil || string(parent) != "parent" {
		t.Errorf("%q, %v", parent, err)
	}
	if d, got, err := ParseChipApproval(approval); err != nil || d != "demo" || !bytes.Equal(got.Signature, a.Signature) || !bytes.Equal(got.Fleet, a.Fleet) || !bytes.Equal(got.Parent, a.Parent) {
		t.Errorf("%q, %+v, %v", d, got, err)
	}
	for name, bad := range map[string]string{
		"nothing": "", "the other file": string(approval), "another version": strings.Replace(string(chip), ":1", ":2", 1),
		"an unknown key": strings.Replace(string(chip), "}", `,"x":1}`, 1), "a key twice": strings.Replace(string(chip), "}", `,"storage_key":"cGFyZW50"}`, 1),
		"another spelling": strings.Replace(string(chip), "storage_key", "Storage_Key", 1), "something after it": string(chip) + "{}",
		"white space": strings.Replace(string(chip), ":1", ": 1", 1), "too long": `{"kagimori_chip":1,"storage_key":"` + strings.Repeat("A", MaxChipFile) + `"}`,
		"no key": `{"kagimori_chip":1,"storage_key":""}`,
	} {
		if _, err := ParseChip([]byte(bad)); !errors.Is(err, ErrChipFile) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string]func(*ChipApproval, *Name){
		"no signature": func(a *ChipApproval, _ *Name) { a.Signature = nil }, "a long one": func(a *ChipApproval, _ *Name) { a.Signature = make([]byte, MaxChipSignature+1) },
		"no parent": func(a *ChipApproval, _ *Name) { a.Parent = nil }, "no fleet key": func(a *ChipApproval, _ *Name) { a.Fleet = nil },
		"no deployment": func(_ *ChipApproval, n *Name) { *n = "" },
	} {
		b, n := *a, Name("demo")
		change(&b, &n)
		text, err := FormatChipApproval(n, &b)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := ParseChipApproval(text); !errors.Is(err, ErrChipFile) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzChipFile: whatever is taken, there is one way to write it.
func FuzzChipFile(f *testing.F) {
	chip, _ := FormatChip([]byte("parent"))
	approval, _ := FormatChipApproval("demo", &ChipApproval{Fleet: fleetKey(f, elliptic.P256()), Parent: []byte("parent"), Signature: []byte("signature")})
	f.Add(chip)
	f.Add(approval)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if parent, err := ParseChip(data); err == nil {
			if again, err := FormatChip(parent); err != nil || !bytes.Equal(bytes.TrimSpace(again), bytes.TrimSpace(data)) {
				t.Fatalf("%q is written as %q (%v)", data, again, err)
			}
		} else if !errors.Is(err, ErrChipFile) {
			t.Fatal(err)
		}
		if d, a, err := ParseChipApproval(data); err == nil {
			if again, err := FormatChipApproval(d, a); err != nil || !bytes.Equal(bytes.TrimSpace(again), bytes.TrimSpace(data)) {
				t.Fatalf("%q is written as %q (%v)", data, again, err)
			}
		} else if !errors.Is(err, ErrChipFile) {
			t.Fatal(err)
		}
	})
}
