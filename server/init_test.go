package server

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport/control"
)

func initConfig(dir string) InitConfig {
	return InitConfig{Dir: dir, Deployment: "demo", Servers: []string{"127.0.0.1:8883"}, HTTP: []string{"127.0.0.1:8880"}, Open: openFile, Actor: "tester"}
}

func TestInitIsAllOrNothing(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	bad := map[string]func(*InitConfig){
		"no name":      func(c *InitConfig) { c.Deployment = "" },
		"bad name":     func(c *InitConfig) { c.Deployment = "My Fleet" },
		"no address":   func(c *InitConfig) { c.Servers = nil },
		"no port":      func(c *InitConfig) { c.Servers = []string{"localhost"} },
		"port 0":       func(c *InitConfig) { c.Servers = []string{"localhost:0"} },
		"port by name": func(c *InitConfig) { c.Servers = []string{"localhost:mqtt"} },
		"any address":  func(c *InitConfig) { c.Servers = []string{"0.0.0.0:8883"} },
		"no host":      func(c *InitConfig) { c.Servers = []string{":8883"} },
		"bad http":     func(c *InitConfig) { c.HTTP = []string{"http://localhost:8880/"} },
		"no key store": func(c *InitConfig) {
			c.Open = func(context.Context, string) (hsm.Module, error) { return nil, hsm.ErrAbsent }
		},
		"parent absent": func(c *InitConfig) { c.Dir = filepath.Join(parent, "a", "b") },
		"not empty": func(c *InitConfig) {
			c.Dir = filepath.Join(parent, "full")
			if err := errors.Join(os.Mkdir(c.Dir, 0o700), os.WriteFile(filepath.Join(c.Dir, "x"), nil, 0o600)); err != nil {
				t.Fatal(err)
			}
		},
		"a file": func(c *InitConfig) {
			c.Dir = filepath.Join(parent, "file")
			if err := os.WriteFile(c.Dir, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, spoil := range bad {
		cfg := initConfig(filepath.Join(parent, "state"))
		spoil(&cfg)
		err := Init(t.Context(), cfg, quiet())
		p, ok := errors.AsType[*control.Problem](err)
		if name != "no key store" && (!ok || p.Next == "") || err == nil {
			t.Errorf("%s: %v, want a problem with a next step", name, err)
		}
	}
	entries, err := os.ReadDir(parent)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if n := e.Name(); n != "full" && n != "file" {
			t.Errorf("%s is left behind", n)
		}
	}
	empty := filepath.Join(parent, "empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Init(t.Context(), initConfig(empty), quiet()); err != nil {
		t.Errorf("into an empty directory: %v", err)
	}
	if fi, err := os.Stat(empty); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	if err := Init(t.Context(), initConfig(empty), quiet()); !errors.Is(err, &control.Problem{Kind: control.Conflict}) {
		t.Errorf("twice: %v", err)
	}
}

// What root makes in somebody's directory is his.
func TestInitKeepsTheOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give files away")
	}
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	const nobody = 65534
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	if err := Init(t.Context(), initConfig(dir), quiet()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "server.db", "device.secret", "lock"} {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if owner := fi.Sys().(*syscall.Stat_t); owner.Uid != nobody || owner.Gid != nobody || fi.Mode().Perm()&0o077 != 0 {
			t.Errorf("%q: owner %d:%d, mode %v", name, owner.Uid, owner.Gid, fi.Mode())
		}
	}
}

// Without its database a directory is no server, and is not made one silently.
func TestHalfADirectoryIsNoServer(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	if err := Init(t.Context(), initConfig(dir), quiet()); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "server.db")); err != nil {
		t.Fatal(err)
	}
	module, err := openFile(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer module.Close()
	if _, err := store.Open(t.Context(), dir, module, quiet()); control.AsProblem(err).Kind != control.Storage || control.AsProblem(err).Next == "" {
		t.Errorf("%v", err)
	}
	if err := Init(t.Context(), initConfig(dir), quiet()); !errors.Is(err, &control.Problem{Kind: control.Conflict}) {
		t.Errorf("%v", err)
	}
}
