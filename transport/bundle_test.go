package transport

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math/big"
	"reflect"
	"strings"
	"testing"
	"time"
)

func testBundle(t *testing.T) *Bundle {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	root, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &Bundle{
		ID: NewID(rand.Reader), Kind: BundleTerminal, Deployment: "demo", Issued: 1, Root: root, Group: "default", Epoch: 1,
		SecurityCode: make(Sensitive, SecurityCodeSize), Terminal: "nav-001", Servers: []string{"localhost:8883"}, CommonKey: make(Sensitive, CommonKeySize),
	}
}

// req: C1
func TestBundleOpensWithItsPassphraseOnly(t *testing.T) {
	want := testBundle(t)
	file, passphrase, err := SealBundle(want)
	if err != nil {
		t.Fatal(err)
	}
	for _, typed := range []string{
		string(passphrase),
		strings.ToUpper(string(passphrase)) + "\n",
		strings.ReplaceAll(string(passphrase), "-", " "),
		strings.NewReplacer("-", "", "0", "O", "1", "l").Replace(string(passphrase)),
	} {
		got, err := OpenBundle(file, Sensitive(typed))
		if err != nil {
			t.Fatalf("passphrase typed as people do: %v", err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatal("another bundle came out")
		}
	}
	if _, err := OpenBundle(file, newPassphrase()); !errors.Is(err, ErrPassphrase) {
		t.Errorf("wrong passphrase: %v", err)
	}
	if _, err := OpenBundle(file, nil); !errors.Is(err, ErrPassphrase) {
		t.Errorf("empty passphrase: %v", err)
	}
	for _, n := range []int{0, 1, len(bundleMagic), len(file) / 2, len(file) - 1} {
		if _, err := OpenBundle(file[:n], passphrase); !errors.Is(err, ErrNotBundle) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
	for at := len(bundleMagic); at < len(file); at += 37 {
		bad := append([]byte(nil), file...)
		bad[at] ^= 1
		if _, err := OpenBundle(bad, passphrase); err == nil {
			t.Errorf("byte %d flipped: accepted", at)
		}
	}
}

func TestBundleMustBeWhole(t *testing.T) {
	for name, spoil := range map[string]func(*Bundle){
		"short code":          func(b *Bundle) { b.SecurityCode = b.SecurityCode[:16] },
		"no common key":       func(b *Bundle) { b.CommonKey = nil },
		"no server":           func(b *Bundle) { b.Servers = nil },
		"no root":             func(b *Bundle) { b.Root = nil },
		"bad name":            func(b *Bundle) { b.Terminal = "Nav 1" },
		"gate, no service":    func(b *Bundle) { b.Kind = BundleGate },
		"spare with terminal": func(b *Bundle) { b.Kind = BundleSpare },
		"unknown kind":        func(b *Bundle) { b.Kind = "other" },
		"no code":             func(b *Bundle) { b.SecurityCode = nil },
		"attest with a code":  func(b *Bundle) { b.Attest = true },
		"attest for a spare": func(b *Bundle) {
			b.Kind, b.Terminal, b.Servers, b.CommonKey, b.SecurityCode, b.Attest = BundleSpare, "", nil, nil, nil, true
		},
	} {
		b := testBundle(t)
		spoil(b)
		file, passphrase, err := SealBundle(b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := OpenBundle(file, passphrase); !errors.Is(err, ErrNotBundle) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Who proves its TPM at enrollment finds no code in its bundle. req: L3
func TestBundleWithoutACode(t *testing.T) {
	want := testBundle(t)
	want.Attest, want.SecurityCode = true, nil
	file, passphrase, err := SealBundle(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := OpenBundle(file, passphrase)
	if err != nil || !got.Attest || len(got.SecurityCode) != 0 || got.Epoch != want.Epoch {
		t.Errorf("%+v, %v", got, err)
	}
}

func FuzzOpenBundle(f *testing.F) {
	f.Add([]byte(bundleMagic))
	f.Add([]byte(bundleMagic + "\xa2\x01\x40\x02\x40"))
	f.Fuzz(func(t *testing.T, file []byte) {
		if b, err := OpenBundle(file, nil); err == nil {
			t.Fatalf("opened without a passphrase: %v", b)
		}
	})
}
