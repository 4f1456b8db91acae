package file_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/file"
	"github.com/kagimori/kagimori/hsm/hsmtest"
)

// credentials is a directory as the service manager makes it.
func credentials(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	return dir
}

func putCredential(t *testing.T, dir, name string, data []byte) {
	t.Helper()
	path := filepath.Join(dir, name)
	os.Remove(path)
	if err := os.WriteFile(path, data, 0o400); err != nil {
		t.Fatal(err)
	}
}

func TestCredentialModule(t *testing.T) {
	creds := credentials(t)
	hsmtest.Run(t, func(t *testing.T) hsmtest.Open {
		name, dir := strings.NewReplacer("/", "-", "#", "-").Replace(t.Name()), t.TempDir()
		for { // several places of one test
			if _, err := os.Stat(filepath.Join(creds, name)); err != nil {
				break
			}
			name += "x"
		}
		putCredential(t, creds, name, hsm.RandomSecret(32).Bytes())
		return func(t *testing.T) hsm.Module {
			t.Helper()
			m, err := file.OpenWith(t.Context(), file.Config{Secret: "credential:" + name, Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			return m
		}
	})
}

func TestCredentialRefused(t *testing.T) {
	dir := t.TempDir()
	open := func(name string) error {
		_, err := file.OpenWith(t.Context(), file.Config{Secret: "credential:" + name, Dir: dir})
		return err
	}
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	if err := open("kagimori-device"); !errors.Is(err, hsm.ErrAbsent) || !strings.Contains(err.Error(), "LoadCredentialEncrypted=kagimori-device:") {
		t.Errorf("no credentials at all: %v", err)
	}
	creds := credentials(t)
	if err := open("kagimori-device"); !errors.Is(err, hsm.ErrAbsent) || !strings.Contains(err.Error(), "LoadCredentialEncrypted=kagimori-device:") {
		t.Errorf("missing: %v", err)
	}
	for _, data := range [][]byte{nil, make([]byte, 31), make([]byte, 33), bytes.Repeat([]byte("a0"), 32)} {
		putCredential(t, creds, "kagimori-device", data)
		if err := open("kagimori-device"); !errors.Is(err, hsm.ErrBlob) {
			t.Errorf("%d bytes: %v", len(data), err)
		}
	}
	putCredential(t, creds, "kagimori-device", make([]byte, 32))
	chmod(t, filepath.Join(creds, "kagimori-device"), 0o444)
	if err := open("kagimori-device"); !errors.Is(err, hsm.ErrUnsafe) {
		t.Errorf("readable by all: %v", err)
	}
	for _, name := range []string{"", ".", "..", "../kagimori-device", "a/b", "a b"} {
		if err := open(name); err == nil || !strings.Contains(err.Error(), "name of a credential") {
			t.Errorf("%q: %v", name, err)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) > 1 || len(entries) == 1 && entries[0].Name() != ".device.secret.lock" {
		t.Errorf("left behind: %v", entries)
	}
}

// With a credential from the start a passphrase can be set. With one that was
// a file before, it would guard nothing: that is refused.
func TestCredentialPassphrase(t *testing.T) {
	creds, dir := credentials(t), t.TempDir()
	secret := hsm.RandomSecret(32)
	putCredential(t, creds, "d", secret.Bytes())
	open := func() *file.Module {
		t.Helper()
		m, err := file.OpenWith(t.Context(), file.Config{Secret: "credential:d", Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	m := open()
	setPassphrase(t, m, pin("a passphrase"))
	m.Close()
	if _, err := file.OpenWith(t.Context(), file.Config{Secret: "credential:d", Dir: dir}); !errors.Is(err, hsm.ErrPassphrase) {
		t.Errorf("locked: %v", err)
	}

	dir = t.TempDir()
	m, err := file.OpenWith(t.Context(), file.Config{Secret: filepath.Join(dir, "device.secret")})
	if err != nil {
		t.Fatal(err)
	}
	kept, err := m.Seal(t.Context(), pin("kept"))
	if err != nil {
		t.Fatal(err)
	}
	m.Close()
	was, _ := os.ReadFile(filepath.Join(dir, "device.secret"))
	putCredential(t, creds, "d", was)
	os.Rename(filepath.Join(dir, "device.secret"), filepath.Join(dir, "elsewhere"))
	m = open()
	defer m.Close()
	if _, err := m.Unseal(t.Context(), kept); err != nil {
		t.Errorf("moved from a file to a credential: %v", err)
	}
	if err := m.SetPassphrase(t.Context(), pin("a passphrase")); err == nil || !strings.Contains(err.Error(), "guard nothing") {
		t.Errorf("a passphrase around the credential itself: %v", err)
	}
}

func TestReadPassphrase(t *testing.T) {
	creds := credentials(t)
	path := filepath.Join(t.TempDir(), "passphrase")
	for content, want := range map[string]string{
		"a passphrase": "a passphrase", "a passphrase\n": "a passphrase", "a passphrase\r\n": "a passphrase",
		" a passphrase \n\n": " a passphrase \n", "": "", "short\n": "", strings.Repeat("x", hsm.MaxPassphrase+1): "",
	} {
		os.WriteFile(path, []byte(content), 0o600)
		putCredential(t, creds, "p", []byte(content))
		for _, spec := range []string{path, "credential:p"} {
			p, err := file.ReadPassphrase(spec)
			if (err == nil) != (want != "") || err == nil && string(p.Bytes()) != want {
				t.Errorf("%s with %q: %v", spec, content, err)
			}
		}
	}
	chmod(t, path, 0o640)
	if _, err := file.ReadPassphrase(path); !errors.Is(err, hsm.ErrUnsafe) {
		t.Errorf("readable by the group: %v", err)
	}
}

func TestHealth(t *testing.T) {
	creds, dir := credentials(t), t.TempDir()
	putCredential(t, creds, "d", hsm.RandomSecret(32).Bytes())
	apart := filepath.Join(t.TempDir(), "s")
	for name, c := range map[string]struct {
		cfg  file.Config
		says []string
	}{
		"beside":     {file.Config{Secret: filepath.Join(dir, "device.secret"), Dir: dir}, []string{"same directory", "no passphrase is set"}},
		"apart":      {file.Config{Secret: apart, Dir: dir}, []string{"apart from the state", apart}},
		"credential": {file.Config{Secret: "credential:d", Dir: t.TempDir()}, []string{`systemd credential "d"`}},
	} {
		m, err := file.OpenWith(t.Context(), c.cfg)
		if err != nil {
			t.Fatal(err)
		}
		h, err := m.Health(t.Context())
		notes := strings.Join(h.Notes, "\n")
		if err != nil || h.Level != hsm.LevelFile || h.RollbackProof || h.Chip != nil {
			t.Errorf("%s: %+v, %v", name, h, err)
		}
		for _, want := range append(c.says, "not rollback-proof: whoever can write the disk can put an older file back") {
			if !strings.Contains(notes, want) {
				t.Errorf("%s does not say %q:\n%s", name, want, notes)
			}
		}
		for _, lie := range []string{"stolen", "non-exportable"} {
			if strings.Contains(notes, lie) {
				t.Errorf("%s says %q", name, lie)
			}
		}
		file.SetTries(t, m, 3)
		setPassphrase(t, m, pin("a passphrase"))
		h, err = m.Health(t.Context())
		notes = strings.Join(h.Notes, "\n")
		if err != nil || strings.Contains(notes, "no passphrase") || !strings.Contains(notes, "3 of 32 wrong PINs") {
			t.Errorf("%s: %v\n%s", name, err, notes)
		}
		m.Close()
		if _, err := m.Health(t.Context()); !errors.Is(err, hsm.ErrClosed) {
			t.Errorf("%s, closed: %v", name, err)
		}
	}
}
