package file_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/file"
)

// with opens a device secret with a passphrase, and says how often it was asked.
func with(t *testing.T, path, passphrase string) (*file.Module, int, error) {
	t.Helper()
	asked := 0
	m, err := file.OpenWith(t.Context(), file.Config{Secret: path, Passphrase: func(context.Context) (*hsm.Secret, error) {
		asked++
		return pin(passphrase), nil
	}})
	return m, asked, err
}

func setPassphrase(t *testing.T, m *file.Module, p *hsm.Secret) {
	t.Helper()
	if err := m.SetPassphrase(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if m.HasPassphrase() != (p != nil) {
		t.Errorf("HasPassphrase is %v", m.HasPassphrase())
	}
}

// What was kept before there was a passphrase opens after each change of it.
func TestPassphrase(t *testing.T) {
	path := filepath.Join(t.TempDir(), "device.secret")
	m := open(t, path)
	key := hsm.RandomSecret(hsm.CounterKeySize)
	counter := newCounter(t, m, key)
	kept, err := m.Seal(t.Context(), pin("kept"))
	if err != nil {
		t.Fatal(err)
	}
	behind := sealPIN(t, m, "behind", "1234")
	check := func(m *file.Module) {
		t.Helper()
		if s, err := m.Unseal(t.Context(), kept); err != nil || string(s.Bytes()) != "kept" {
			t.Errorf("the sealed secret: %v", err)
		}
		if _, err := m.UnsealPIN(t.Context(), behind, pin("1234")); err != nil {
			t.Errorf("the secret behind a PIN: %v", err)
		}
		if _, err := m.Increment(t.Context(), counter, key); err != nil {
			t.Errorf("the counter: %v", err)
		}
	}
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	setPassphrase(t, m, pin("first passphrase"))
	check(m) // still open
	if now, err := os.ReadFile(path); err != nil || bytes.Equal(now, old) {
		t.Errorf("the file still holds the root key: %v", err)
	}
	m.Close()
	for name, c := range map[string]struct {
		err   error
		wrong bool
	}{
		"none":  {second(file.Open(path)), false},
		"wrong": {third(with(t, path, "First passphrase")), true},
	} {
		if !errors.Is(c.err, hsm.ErrPassphrase) || errors.Is(c.err, hsm.ErrWrongPassphrase) != c.wrong {
			t.Errorf("%s passphrase: %v", name, c.err)
		}
	}
	m, asked, err := with(t, path, "first passphrase")
	if err != nil || asked != 1 || !m.HasPassphrase() {
		t.Fatalf("asked %d times: %v", asked, err)
	}
	check(m)
	secret, _ := os.ReadFile(path)
	setPassphrase(t, m, pin("second passphrase"))
	if now, _ := os.ReadFile(path); !bytes.Equal(now, secret) {
		t.Error("another passphrase changed the device secret")
	}
	m.Close()
	if _, _, err := with(t, path, "first passphrase"); !errors.Is(err, hsm.ErrWrongPassphrase) {
		t.Errorf("the old passphrase: %v", err)
	}
	m, _, err = with(t, path, "second passphrase")
	if err != nil {
		t.Fatal(err)
	}
	setPassphrase(t, m, nil)
	m.Close()
	m, asked, err = with(t, path, "not asked for")
	if err != nil || asked != 0 {
		t.Fatalf("without a passphrase: asked %d times, %v", asked, err)
	}
	defer m.Close()
	check(m)
	for _, bad := range []int{0, hsm.MinPassphrase - 1, hsm.MaxPassphrase + 1} {
		if err := m.SetPassphrase(t.Context(), hsm.NewSecret(make([]byte, bad))); err == nil {
			t.Errorf("a passphrase of %d bytes was taken", bad)
		}
	}
}

func third[A, B any](_ A, _ B, err error) error { return err }

// The power is cut between every two steps of the first passphrase.
func TestPassphraseCut(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "device.secret")
	m := open(t, path)
	kept, err := m.Seal(t.Context(), pin("kept"))
	if err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadFile(path)
	setPassphrase(t, m, pin("a passphrase"))
	m.Close()
	after, _ := os.ReadFile(path)
	ring, _ := os.ReadFile(path + ".keyring")
	for name, files := range map[string]map[string][]byte{
		"nothing":      {"": before},
		"new secret":   {"": before, ".new": after},
		"keyring":      {"": before, ".new": after, ".keyring": ring},
		"moved":        {"": after, ".new": after, ".keyring": ring},
		"tidied up":    {"": after, ".keyring": ring},
		"older change": {"": after, ".new": before, ".keyring": ring},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "device.secret")
			for end, data := range files {
				if err := os.WriteFile(path+end, data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				m, asked, err := with(t, path, "a passphrase")
				if err != nil || (asked > 0) != (files[".keyring"] != nil) {
					t.Fatalf("asked %d times: %v", asked, err)
				}
				if _, err := m.Unseal(t.Context(), kept); err != nil {
					t.Error(err)
				}
				m.Close()
			}
			if _, err := os.Stat(path + ".new"); !errors.Is(err, os.ErrNotExist) {
				t.Error("the new secret stays beside the one in use")
			}
		})
	}
}

func TestKeyringSpoiled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "device.secret")
	m := open(t, path)
	setPassphrase(t, m, pin("a passphrase"))
	m.Close()
	ring, err := os.ReadFile(path + ".keyring")
	if err != nil {
		t.Fatal(err)
	}
	for n := range ring {
		bad := bytes.Clone(ring)
		bad[n] ^= 1 << (n % 8)
		os.WriteFile(path+".keyring", bad, 0o600)
		if _, asked, err := with(t, path, "a passphrase"); !errors.Is(err, hsm.ErrBlob) && !errors.Is(err, hsm.ErrReplaced) || asked != 0 {
			t.Fatalf("byte %d flipped: asked %d times, %v", n, asked, err)
		}
	}
	os.WriteFile(path+".keyring", ring, 0o600)
	secret, _ := os.ReadFile(path)
	os.Remove(path)
	if _, _, err := with(t, path, "a passphrase"); !errors.Is(err, hsm.ErrReplaced) {
		t.Errorf("no device secret: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error("another device secret was made")
	}
	os.WriteFile(path, make([]byte, 32), 0o600)
	if _, _, err := with(t, path, "a passphrase"); !errors.Is(err, hsm.ErrReplaced) {
		t.Errorf("another device secret: %v", err)
	}
	os.WriteFile(path, secret, 0o600)
	if m, _, err := with(t, path, "a passphrase"); err != nil {
		t.Error(err)
	} else {
		m.Close()
	}
}

// Golden: a keyring of version 1 opens for ever. Device secret 32 bytes of 0x55,
// passphrase "golden passphrase", root key 32 bytes of 0x2a: so the golden blobs
// open under it.
func TestKeyringGolden(t *testing.T) {
	path := filepath.Join(t.TempDir(), "device.secret")
	os.WriteFile(path, bytes.Repeat([]byte{0x55}, 32), 0o600)
	os.WriteFile(path+".keyring", goldenKeyring, 0o600)
	m, _, err := with(t, path, "golden passphrase")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if s, err := m.Unseal(t.Context(), golden["secret"]); err != nil || string(s.Bytes()) != "golden secret" {
		t.Error(err)
	}
}

func FuzzKeyring(f *testing.F) {
	secret := hsm.NewSecret(bytes.Repeat([]byte{1}, 32))
	for _, p := range []*hsm.Secret{nil, pin("a passphrase")} {
		good := file.NewKeyring(f, hsm.RandomSecret(32), secret, p)
		f.Add(good)
		f.Add(good[:len(good)-1])
		f.Add(append(bytes.Clone(good), 0))
	}
	f.Add([]byte{})
	f.Add([]byte("KGKEYRNG"))
	f.Fuzz(func(t *testing.T, b []byte) {
		again, err := file.Recode(b)
		switch {
		case err == nil && !bytes.Equal(again, b):
			t.Fatalf("%x decodes, encodes to %x", b, again)
		case err != nil && !errors.Is(err, hsm.ErrBlob):
			t.Fatalf("garbage is %v", err)
		}
	})
}
