package file_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/file"
)

func pin(s string) *hsm.Secret { return hsm.NewSecret([]byte(s)) }

func sealPIN(t *testing.T, m *file.Module, secret, with string) hsm.Blob {
	t.Helper()
	b, err := m.SealPIN(t.Context(), pin(secret), pin(with))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPIN(t *testing.T) {
	path := filepath.Join(t.TempDir(), "device.secret")
	m := open(t, path)
	b := sealPIN(t, m, "behind", "1234")
	if len(b) > hsm.MaxBlob || bytes.Contains(b, []byte("behind")) || bytes.Contains(b, []byte("1234")) {
		t.Error("the blob shows what is in it, or is too long")
	}
	for range 2 {
		if s, err := m.UnsealPIN(t.Context(), b, pin("1234")); err != nil || string(s.Bytes()) != "behind" {
			t.Fatalf("right PIN: %v", err)
		}
		if _, err := os.Stat(path + ".tries"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("right PINs write: %v", err)
		}
	}
	for n, left := range []string{"locks: 31", "locks: 30"} {
		if _, err := m.UnsealPIN(t.Context(), b, pin("1235")); !errors.Is(err, hsm.ErrPIN) || !strings.Contains(err.Error(), left) {
			t.Errorf("wrong PIN %d: %v, want %s", n, err, left)
		}
		m.Close()
		m = open(t, path) // the count outlives a restart
	}
	if _, err := m.UnsealPIN(t.Context(), b, pin("1234")); err != nil {
		t.Error(err)
	}
	if _, err := m.UnsealPIN(t.Context(), b, pin("0000")); !errors.Is(err, hsm.ErrPIN) || !strings.Contains(err.Error(), "locks: 31") {
		t.Errorf("a right PIN did not clear the count: %v", err)
	}
	for _, bad := range []string{"", "123", strings.Repeat("1", hsm.MaxPIN+1)} {
		if _, err := m.SealPIN(t.Context(), pin("x"), pin(bad)); err == nil {
			t.Errorf("a PIN of %d bytes was taken", len(bad))
		}
		if _, err := m.UnsealPIN(t.Context(), b, pin(bad)); err == nil || errors.Is(err, hsm.ErrPIN) {
			t.Errorf("a PIN of %d bytes: %v", len(bad), err)
		}
	}
	longest := strings.Repeat("s", hsm.MaxSealed)
	if s, err := m.UnsealPIN(t.Context(), sealPIN(t, m, longest, strings.Repeat("9", hsm.MaxPIN)), pin(strings.Repeat("9", hsm.MaxPIN))); err != nil || string(s.Bytes()) != longest {
		t.Errorf("the longest secret: %v", err)
	}
}

func TestPINLockout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // time stands still but for the sleeps
		path := filepath.Join(t.TempDir(), "device.secret")
		m := open(t, path)
		defer m.Close()
		b := sealPIN(t, m, "behind", "1234")
		try := func(p string, want error) {
			t.Helper()
			if _, err := m.UnsealPIN(t.Context(), b, pin(p)); !errors.Is(err, want) {
				t.Fatalf("PIN %s: %v, want %v", p, err, want)
			}
		}
		file.SetTries(t, m, file.MaxTries-1)
		try("0000", hsm.ErrPIN)
		try("1234", hsm.ErrLockout) // the right one as well
		time.Sleep(file.ForgetTry - time.Second)
		try("1234", hsm.ErrLockout)
		time.Sleep(time.Second)
		try("0000", hsm.ErrPIN)
		try("1234", hsm.ErrLockout)
		m.Close()
		m = open(t, path)
		try("1234", hsm.ErrLockout) // a restart forgets nothing
		time.Sleep(file.ForgetTry)
		try("1234", nil)
		try("0000", hsm.ErrPIN)
	})
}

// A disk that takes no count does not make guessing free.
func TestPINNotWritable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "device.secret")
	m := open(t, path)
	defer m.Close()
	b := sealPIN(t, m, "behind", "1234")
	file.SetTries(t, m, file.MaxTries-3)
	if err := os.Mkdir(filepath.Join(filepath.Dir(path), ".device.secret.tries.tmp"), 0o700); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := m.UnsealPIN(t.Context(), b, pin("0000")); err == nil || errors.Is(err, hsm.ErrLockout) {
			t.Fatal(err)
		}
	}
	if _, err := m.UnsealPIN(t.Context(), b, pin("1234")); !errors.Is(err, hsm.ErrLockout) {
		t.Errorf("after all tries: %v", err)
	}
}

func TestPINDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "device.secret")
	m := open(t, path)
	defer m.Close()
	b := sealPIN(t, m, "behind", "1234")
	for n := range b {
		bad := bytes.Clone(b)
		bad[n] ^= 1 << (n % 8)
		if _, err := m.UnsealPIN(t.Context(), bad, pin("1234")); !errors.Is(err, hsm.ErrBlob) && !errors.Is(err, hsm.ErrReplaced) {
			t.Fatalf("byte %d flipped: %v", n, err)
		}
	}
	file.SetTries(t, m, 3)
	count, err := os.ReadFile(path + ".tries")
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][]byte{nil, count[:len(count)-1], append(bytes.Clone(count), 0), append([]byte("KGTRIES2"), count[8:]...)} {
		os.WriteFile(path+".tries", bad, 0o600)
		if _, err := m.UnsealPIN(t.Context(), b, pin("1234")); !errors.Is(err, hsm.ErrBlob) {
			t.Errorf("a damaged count: %v", err)
		}
	}
}
