package file_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/file"
	"github.com/kagimori/kagimori/hsm/hsmtest"
)

func open(t *testing.T, path string) *file.Module {
	t.Helper()
	m, err := file.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestModule(t *testing.T) {
	hsmtest.Run(t, func(t *testing.T) hsmtest.Open {
		path := filepath.Join(t.TempDir(), "state", "device-secret")
		return func(t *testing.T) hsm.Module { return open(t, path) }
	})
}

func TestSecretIsMadeOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	path := filepath.Join(dir, "device-secret")
	if err := open(t, path).Close(); err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(path)
	if err != nil || len(first) != 32 || bytes.Equal(first, make([]byte, 32)) {
		t.Fatalf("%d bytes, %v", len(first), err)
	}
	for p, want := range map[string]fs.FileMode{path: 0o600, dir: 0o700, filepath.Dir(dir): 0o700} {
		if fi, err := os.Stat(p); err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s: mode %v, want %v", p, fi.Mode().Perm(), want)
		}
	}
	open(t, path).Close()
	if again, _ := os.ReadFile(path); !bytes.Equal(first, again) {
		t.Error("the second Open changed the secret")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestSecretMadeByTwo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "device-secret")
	modules := make([]*file.Module, 8)
	var wg sync.WaitGroup
	for n := range modules {
		wg.Go(func() {
			var err error
			if modules[n], err = file.Open(path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	b, err := modules[0].Seal(t.Context(), hsm.NewSecret([]byte("x")))
	if err != nil {
		t.Fatal(err)
	}
	for n, m := range modules {
		if _, err := m.Unseal(t.Context(), b); err != nil {
			t.Errorf("module %d has another secret: %v", n, err)
		}
	}
}

func TestSecretRefused(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(t *testing.T, dir, path string)
		want  error
		says  string
	}{
		"group readable": {func(t *testing.T, _, path string) { chmod(t, path, 0o640) }, hsm.ErrUnsafe, "chmod 600"},
		"world readable": {func(t *testing.T, _, path string) { chmod(t, path, 0o604) }, hsm.ErrUnsafe, "chmod 600"},
		"group writable": {func(t *testing.T, _, path string) { chmod(t, path, 0o620) }, hsm.ErrUnsafe, "chmod 600"},
		"open directory": {func(t *testing.T, dir, _ string) { chmod(t, dir, 0o777) }, hsm.ErrUnsafe, "chmod go-w"},
		"foreign owner":  {func(t *testing.T, _, path string) { chown(t, path) }, hsm.ErrUnsafe, "chown"},
		"foreign directory": {func(t *testing.T, dir, _ string) { chown(t, dir) }, hsm.ErrUnsafe,
			"directory of its own"},
		"empty":  {func(t *testing.T, _, path string) { resize(t, path, 0) }, hsm.ErrBlob, "put the right file back"},
		"short":  {func(t *testing.T, _, path string) { resize(t, path, 31) }, hsm.ErrBlob, "put the right file back"},
		"long":   {func(t *testing.T, _, path string) { resize(t, path, 33) }, hsm.ErrBlob, "put the right file back"},
		"link":   {replace(func(path string) error { return os.Symlink("/dev/zero", path) }), hsm.ErrUnsafe, "symbolic link"},
		"fifo":   {replace(func(path string) error { return syscall.Mkfifo(path, 0o600) }), hsm.ErrBlob, "no regular file"},
		"folder": {replace(func(path string) error { return os.Mkdir(path, 0o700) }), hsm.ErrBlob, "no regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			path := filepath.Join(dir, "device-secret")
			open(t, path).Close()
			c.spoil(t, dir, path)
			before, _ := os.Lstat(path)
			_, err := file.Open(path)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v; want %v with %q", err, c.want, c.says)
			}
			if after, _ := os.Lstat(path); !os.SameFile(before, after) {
				t.Error("the refused file was replaced")
			}
		})
	}
	if _, err := file.Open(""); err == nil {
		t.Error("no path was opened")
	}
	if _, err := file.Open("/proc/none/device-secret"); err == nil || !strings.Contains(err.Error(), "make /proc/none") {
		t.Errorf("a directory that cannot be made: %v", err)
	}
}

func chmod(t *testing.T, path string, mode fs.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func chown(t *testing.T, path string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	if err := os.Chown(path, 65534, 65534); err != nil {
		t.Fatal(err)
	}
}

func resize(t *testing.T, path string, n int64) {
	t.Helper()
	if err := os.Truncate(path, n); err != nil {
		t.Fatal(err)
	}
}

func replace(with func(path string) error) func(t *testing.T, dir, path string) {
	return func(t *testing.T, _, path string) {
		t.Helper()
		if err := errors.Join(os.Remove(path), with(path)); err != nil {
			t.Fatal(err)
		}
	}
}

// Golden: blobs of this version open for ever. The device secret is 32 bytes
// of 0x2a; the blobs were made by this code when the format was fixed.
func TestGolden(t *testing.T) {
	path := filepath.Join(t.TempDir(), "device-secret")
	if err := os.WriteFile(path, bytes.Repeat([]byte{0x2a}, 32), 0o600); err != nil {
		t.Fatal(err)
	}
	m := open(t, path)
	defer m.Close()
	if len(golden) != 3 {
		t.Fatalf("%d golden blobs, want 3", len(golden))
	}
	for name, blob := range golden {
		var err error
		switch name {
		case "secret":
			var s *hsm.Secret
			if s, err = m.Unseal(t.Context(), blob); err == nil && string(s.Bytes()) != "golden secret" {
				err = errors.New("another secret")
			}
		case "key":
			_, err = m.Signer(t.Context(), blob)
		case "MAC key":
			_, err = m.MAC(t.Context(), blob, nil)
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func BenchmarkUnseal(b *testing.B) {
	m, err := file.Open(filepath.Join(b.TempDir(), "device-secret"))
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	blob, err := m.Seal(b.Context(), hsm.RandomSecret(32))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := m.Unseal(b.Context(), blob); err != nil {
			b.Fatal(err)
		}
	}
}

// Whoever makes a state directory holds a lock on it meanwhile.
func TestLockedDirectory(t *testing.T) {
	dir := t.TempDir()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	m := open(t, filepath.Join(dir, "device.secret"))
	defer m.Close()
	newCounter(t, m, hsm.RandomSecret(hsm.CounterKeySize))
	setPassphrase(t, m, hsm.NewSecret([]byte("a passphrase")))
}
