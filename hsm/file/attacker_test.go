package file

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/kagimori/kagimori/hsm"
)

// Whoever could write to the directory leaves something strange in the place of
// a file: nothing waits for it, no other device secret is made, and no file
// elsewhere is touched.
func TestStrangeFiles(t *testing.T) {
	victimText := bytes.Repeat([]byte("precious"), 4)
	strange := map[string]func(path, victim string) error{
		"fifo":      func(path, _ string) error { return syscall.Mkfifo(path, 0o600) },
		"directory": func(path, _ string) error { return os.MkdirAll(filepath.Join(path, "x"), 0o700) },
		"link":      func(path, victim string) error { return os.Symlink(victim, path) },
		"hard link": func(path, victim string) error { return os.Link(victim, path) },
		"zeros":     func(path, _ string) error { return os.Symlink("/dev/zero", path) },
		"huge": func(path, _ string) error {
			return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 1<<40))
		},
	}
	for _, name := range []string{"device.secret", "device.secret.new", "device.secret.keyring", ".device.secret.lock", "device.secret.tries", "counter"} {
		for kind, put := range strange {
			t.Run(name+" "+kind, func(t *testing.T) {
				t.Parallel()
				dir, victim := t.TempDir(), filepath.Join(t.TempDir(), "victim")
				secret, pin, key, passphrase := hsm.RandomSecret(32), hsm.NewSecret([]byte("123456")), hsm.RandomSecret(hsm.CounterKeySize), []byte("correct horse battery")
				open := func() (*Module, error) {
					return OpenWith(t.Context(), Config{Secret: filepath.Join(dir, "device.secret"),
						Passphrase: func(context.Context) (*hsm.Secret, error) { return hsm.NewSecret(bytes.Clone(passphrase)), nil }})
				}
				m, err := open()
				if err != nil {
					t.Fatal(err)
				}
				sealed, err := m.Seal(t.Context(), secret)
				counter, err2 := m.NewCounter(t.Context(), key)
				var guarded hsm.Blob
				var err3 error
				switch name { // they cost an Argon2id each
				case "device.secret.tries":
					guarded, err3 = m.SealPIN(t.Context(), secret, pin)
				case "device.secret.new", "device.secret.keyring":
					err3 = m.SetPassphrase(t.Context(), hsm.NewSecret(bytes.Clone(passphrase)))
				}
				if err := errors.Join(err, err2, err3, os.WriteFile(victim, victimText, 0o600), m.Close()); err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(dir, name)
				if name == "counter" {
					found, _ := filepath.Glob(filepath.Join(dir, "*.counter-*"))
					path = found[0]
				}
				_ = os.Remove(path)
				if err := put(path, victim); err != nil {
					t.Fatal(err)
				}
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					m, err := open()
					if err != nil {
						return
					}
					defer m.Close()
					if got, err := m.Unseal(t.Context(), sealed); err == nil && !got.Equal(secret) {
						t.Error("another secret opens")
					}
					if n, err := m.Count(t.Context(), counter, key); err == nil && n != 0 || err == nil && name == "counter" {
						t.Errorf("it counts %d", n)
					}
					m.Increment(t.Context(), counter, key)
					switch name {
					case "device.secret.tries":
						m.UnsealPIN(t.Context(), guarded, hsm.NewSecret([]byte("654321")))
					case "device.secret.new", "device.secret.keyring":
						m.SetPassphrase(t.Context(), nil)
					}
				}()
				select {
				case <-ended:
				case <-time.After(20 * time.Second):
					t.Fatal("it hangs")
				}
				if got, err := os.ReadFile(victim); err != nil || !bytes.Equal(got, victimText) {
					t.Errorf("victim: %q, %v", got, err)
				}
			})
		}
	}
}
