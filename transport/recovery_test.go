package transport

import (
	"bytes"
	"errors"
	"slices"
	"testing"
)

func testWrap(t testing.TB) (w RecoveryWrap, seed, key Sensitive) {
	t.Helper()
	seed, public, err := NewRecoveryKey()
	if err != nil {
		t.Fatal(err)
	}
	if len(public) != RecoveryKeySize {
		t.Fatalf("public key of %d bytes", len(public))
	}
	key = bytes.Repeat([]byte{7}, StoreKeySize)
	w = RecoveryWrap{Version: 1, Deployment: "demo", Device: DeviceID{1}, Store: ID{2}}
	if err := w.Seal(public, key); err != nil {
		t.Fatal(err)
	}
	if len(w.Sealed) != RecoverySealed {
		t.Fatalf("sealed into %d bytes", len(w.Sealed))
	}
	return w, seed, key
}

func TestRecoveryWrapOpensForWhatItSaysOnly(t *testing.T) {
	w, seed, key := testWrap(t)
	if got, err := w.Open(seed); err != nil || !bytes.Equal(got, key) {
		t.Fatalf("%x, %v", []byte(got), err)
	}
	other, _, err := NewRecoveryKey()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Open(other); !errors.Is(err, ErrRecovery) {
		t.Errorf("another recovery key: %v", err)
	}
	for name, spoil := range map[string]func(*RecoveryWrap){
		"version":    func(w *RecoveryWrap) { w.Version++ },
		"deployment": func(w *RecoveryWrap) { w.Deployment = "demo2" },
		"device":     func(w *RecoveryWrap) { w.Device[0]++ },
		"store":      func(w *RecoveryWrap) { w.Store[0]++ },
		"first byte": func(w *RecoveryWrap) { w.Sealed[0]++ },
		"last byte":  func(w *RecoveryWrap) { w.Sealed[len(w.Sealed)-1]++ },
		"cut":        func(w *RecoveryWrap) { w.Sealed = w.Sealed[:len(w.Sealed)-1] },
		"longer":     func(w *RecoveryWrap) { w.Sealed = append(w.Sealed, 0) },
		"empty":      func(w *RecoveryWrap) { w.Sealed = nil },
	} {
		x := w
		x.Sealed = slices.Clone(w.Sealed)
		spoil(&x)
		if _, err := x.Open(seed); !errors.Is(err, ErrRecovery) {
			t.Errorf("another %s: %v", name, err)
		}
	}
	for name, public := range map[string][]byte{"short": make([]byte, RecoveryKeySize-1), "not a key": bytes.Repeat([]byte{0xff}, RecoveryKeySize)} {
		if err := (&RecoveryWrap{}).Seal(public, key); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (&RecoveryWrap{}).Seal(make([]byte, RecoveryKeySize), key[:31]); err == nil {
		t.Error("a short store key was wrapped")
	}
}

func TestRecoveryReleaseOpensForItsGrantOnly(t *testing.T) {
	seed, recipient, err := NewRecoveryKey()
	if err != nil {
		t.Fatal(err)
	}
	key := Sensitive(bytes.Repeat([]byte{7}, StoreKeySize))
	g := RecoveryGrant{ID: ID{1}, Deployment: "demo", Terminal: "nav-001", Device: DeviceID{2}, Origin: DeviceID{3}, Store: ID{4}}
	r, err := g.Seal(recipient, key)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := g.Open(seed, r); err != nil || !bytes.Equal(got, key) {
		t.Fatalf("%x, %v", []byte(got), err)
	}
	for name, spoil := range map[string]func(*RecoveryGrant){
		"request":    func(g *RecoveryGrant) { g.ID[0]++ },
		"deployment": func(g *RecoveryGrant) { g.Deployment = "x" },
		"terminal":   func(g *RecoveryGrant) { g.Terminal = "nav-002" },
		"device":     func(g *RecoveryGrant) { g.Device[0]++ },
		"origin":     func(g *RecoveryGrant) { g.Origin[0]++ },
		"store":      func(g *RecoveryGrant) { g.Store[0]++ },
	} {
		x := g
		spoil(&x)
		if _, err := x.Open(seed, r); !errors.Is(err, ErrRecovery) {
			t.Errorf("another %s: %v", name, err)
		}
	}
	// A wrap is not a release, whatever it says.
	w := RecoveryWrap{Version: 1, Deployment: "demo"}
	if err := w.Seal(recipient, key); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Open(seed, &RecoveryRelease{ID: g.ID, Sealed: w.Sealed}); !errors.Is(err, ErrRecovery) {
		t.Errorf("a wrap opened as a release: %v", err)
	}
}

func TestRecoveryFile(t *testing.T) {
	f := &RecoveryFile{Store: ID{1}, Deployment: "demo", Terminal: "nav-001", Device: DeviceID{2}, Made: 1e9, Key: bytes.Repeat([]byte{3}, StoreKeySize)}
	file, passphrase, err := SealRecoveryFile(f)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(file, f.Key) || len(file) > MaxRecoveryFile {
		t.Errorf("%d bytes: %x", len(file), file)
	}
	got, err := OpenRecoveryFile(file, Sensitive(bytes.ToUpper(passphrase)))
	if err != nil || !bytes.Equal(got.Key, f.Key) || got.Store != f.Store || got.Terminal != f.Terminal {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err := OpenRecoveryFile(file, newPassphrase()); !errors.Is(err, ErrRecoveryPassphrase) {
		t.Errorf("another passphrase: %v", err)
	}
	if _, err := OpenRecoveryFile(file[:len(file)-1], passphrase); !errors.Is(err, ErrNotRecoveryFile) {
		t.Errorf("cut short: %v", err)
	}
	// Neither kind of file is taken for the other.
	if _, err := OpenBundle(file, passphrase); !errors.Is(err, ErrNotBundle) {
		t.Errorf("as a bundle: %v", err)
	}
	if _, _, err := SealRecoveryFile(&RecoveryFile{}); err == nil {
		t.Error("a file without a key was made")
	}
	bundle := append([]byte(bundleMagic), bytes.TrimPrefix(file, []byte(recoveryFileMagic))...)
	if _, err := OpenBundle(bundle, passphrase); !errors.Is(err, ErrNotBundle) {
		t.Errorf("under the other first line: %v", err)
	}
}

// What a decoder of files from outside takes, it bounds.
func FuzzRecoveryFile(f *testing.F) {
	f.Add([]byte(recoveryFileMagic))
	f.Add([]byte(recoveryFileMagic + "\xa2\x01\xa0\x02\x40"))
	f.Fuzz(func(t *testing.T, file []byte) {
		var s sealedFile
		var h sealedHeader
		body, ok := bytes.CutPrefix(file, []byte(recoveryFileMagic))
		if ok && Unmarshal(body, &s, MaxRecoveryFile) == nil && Unmarshal(s.Header, &h, len(s.Header)) == nil {
			return // Argon2id would follow, within its limits
		}
		if _, err := OpenRecoveryFile(file, Sensitive("x")); !errors.Is(err, ErrNotRecoveryFile) {
			t.Fatalf("%x: %v", file, err)
		}
	})
}
