package open_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/open"
)

func TestModule(t *testing.T) {
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	for level, cfg := range map[hsm.Level]open.Config{
		hsm.LevelFile:      {Kind: open.KindFile, Path: filepath.Join(t.TempDir(), "device-secret")},
		hsm.LevelTPMSocket: {Kind: open.KindTPM, Path: hsmtest.StartTPM(t)},
	} {
		m, err := open.Module(t.Context(), cfg, log)
		if err != nil {
			t.Fatal(err)
		}
		if m.Level() != level {
			t.Errorf("level %q, want %q", m.Level(), level)
		}
		if _, err := m.NewKey(t.Context()); err != nil {
			t.Error(err)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestModuleRefused(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for name, c := range map[string]struct {
		cfg  open.Config
		says []string
	}{
		"no kind":          {open.Config{}, []string{`"file"`, `"tpm"`}},
		"unknown kind":     {open.Config{Kind: "pkcs11", Path: "x"}, []string{`"pkcs11"`, `"file"`, `"tpm"`}},
		"file, no path":    {open.Config{Kind: open.KindFile}, []string{"path"}},
		"tpm, nothing":     {open.Config{Kind: open.KindTPM, Path: "/dev/no-such-tpm"}, []string{"/dev/no-such-tpm", "driver"}},
		"tpm, other files": {open.Config{Kind: open.KindTPM, Path: "/"}, []string{"neither"}},
	} {
		m, err := open.Module(t.Context(), c.cfg, log)
		if m != nil || err == nil {
			t.Errorf("%s: %v, %v", name, m, err)
			continue
		}
		for _, want := range c.says {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q does not say %s", name, err, want)
			}
		}
	}
	if _, err := os.Stat(open.DefaultTPM); err == nil {
		t.Skip("this machine has a TPM of its own, which tests leave alone")
	}
	if _, err := open.Module(t.Context(), open.Config{Kind: open.KindTPM}, log); !errors.Is(err, hsm.ErrAbsent) {
		t.Errorf("no chip at the default path: %v", err)
	}
}

// A passphrase comes from who typed it, else from where the configuration says.
func TestPassphrase(t *testing.T) {
	dir := t.TempDir()
	cfg := open.Config{Kind: open.KindFile, Dir: dir}
	module := func() (hsm.Module, error) { return open.Module(t.Context(), cfg, slog.New(slog.DiscardHandler)) }
	m, err := module()
	if err != nil {
		t.Fatal(err)
	}
	guard, ok := m.(hsm.Passphrases)
	if !ok {
		t.Fatalf("%T takes no passphrase", m)
	}
	if err := guard.SetPassphrase(t.Context(), hsm.NewSecret([]byte("the passphrase"))); err != nil {
		t.Fatal(err)
	}
	m.Close()
	right, wrong := filepath.Join(t.TempDir(), "right"), filepath.Join(t.TempDir(), "wrong")
	os.WriteFile(right, []byte("the passphrase\n"), 0o600)
	os.WriteFile(wrong, []byte("another passphrase\n"), 0o600)
	says := func(p string, err error) func(context.Context) (*hsm.Secret, error) {
		return func(context.Context) (*hsm.Secret, error) { return hsm.NewSecret([]byte(p)), err }
	}
	for name, c := range map[string]struct {
		from string
		ask  func(context.Context) (*hsm.Secret, error)
		want error
	}{
		"nobody":               {"", nil, hsm.ErrPassphrase},
		"ask, nobody there":    {open.Ask, nil, hsm.ErrPassphrase},
		"ask, nothing yet":     {open.Ask, says("", hsm.ErrPassphrase), hsm.ErrPassphrase},
		"typed":                {open.Ask, says("the passphrase", nil), nil},
		"typed wrong":          {open.Ask, says("another passphrase", nil), hsm.ErrWrongPassphrase},
		"file":                 {right, nil, nil},
		"file, nothing yet":    {right, says("", hsm.ErrPassphrase), nil},
		"wrong file":           {wrong, nil, hsm.ErrWrongPassphrase},
		"wrong file, typed":    {wrong, says("the passphrase", nil), nil},
		"no file":              {"/none/passphrase", nil, os.ErrNotExist},
		"no file, typed":       {"/none/passphrase", says("the passphrase", nil), nil},
		"no credential passed": {"credential:p", nil, hsm.ErrAbsent},
	} {
		cfg.Passphrase, cfg.Ask = c.from, c.ask
		m, err := module()
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if m != nil {
			m.Close()
		}
	}
}
