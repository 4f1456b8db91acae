package open_test

import (
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
