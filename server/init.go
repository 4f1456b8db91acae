package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/server/ca"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// InitConfig is what a deployment starts from; all of it is for good.
type InitConfig struct {
	Dir        string // state directory: missing or empty
	Deployment string
	Servers    []string // host:port of MQTT, as bundles and the certificate name it
	HTTP       []string // host:port of revocation lists, as certificates name it
	// Open opens key storage in a directory, the new state directory under its
	// temporary name.
	Open func(ctx context.Context, dir string) (hsm.Module, error)
	// Actor is who does it.
	Actor string
}

// Init makes a deployment: keys and certificates of the CAs, the database, the
// default group with a security code. It is built beside Dir and takes its
// place as the last step, so that Dir is whole or as it was.
func Init(ctx context.Context, cfg InitConfig, log *slog.Logger) error {
	name, err := parseName("deployment", cfg.Deployment)
	if err != nil {
		return err
	}
	if len(cfg.Servers) == 0 {
		return control.Problemf(control.BadInput, "give it with --address HOST:PORT", "the address is missing under which terminals reach this server")
	}
	for _, a := range slices.Concat(cfg.Servers, cfg.HTTP) {
		if err := checkAddress(a); err != nil {
			return control.Problemf(control.BadInput, "give addresses as HOST:PORT, as terminals reach this server", "address %w", err)
		}
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return err
	}
	owner, err := emptyDir(dir)
	if err != nil {
		return err
	}
	parent := filepath.Dir(dir)
	tmp, err := os.MkdirTemp(parent, ".kagimori-init-*")
	if err != nil {
		return control.Problemf(control.Storage, "make it, or make it writable, or choose another --dir", "cannot write in %s: %w", parent, err)
	}
	defer os.RemoveAll(tmp) // nothing is left of it when all went well
	d := store.Deployment{Name: name, Servers: cfg.Servers, HTTP: cfg.HTTP}
	if err := build(ctx, tmp, d, cfg, log); err != nil {
		return err
	}
	if err := place(tmp, dir, owner); err != nil {
		return control.Problemf(control.Storage, "choose another --dir, one that is no mount point", "put the new state in place: %w", err)
	}
	return nil
}

// emptyDir checks that dir is missing, or empty; then it says whose it is.
func emptyDir(dir string) (owner *syscall.Stat_t, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, control.Problemf(control.Storage, "choose another --dir", "cannot read %s: %w", dir, err)
	}
	if len(entries) > 0 {
		return nil, control.Problemf(control.Conflict, "choose another --dir; if a server is there already, start it with: kagimori-server run",
			"%s is not empty: it has %s", dir, entries[0].Name())
	}
	fi, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	owner, _ = fi.Sys().(*syscall.Stat_t)
	return owner, nil
}

// build makes a whole state directory in dir.
func build(ctx context.Context, dir string, d store.Deployment, cfg InitConfig, log *slog.Logger) (err error) {
	module, err := cfg.Open(ctx, dir)
	if err != nil {
		return fmt.Errorf("open key storage: %w", err)
	}
	defer module.Close()
	now := time.Now()
	material, err := ca.Create(ctx, module, d.Name, d.HTTP, rand.Reader, now)
	if err != nil {
		return err
	}
	// Only lists are signed here, under the shortest lifetime there may be: the
	// server renews them when it starts.
	authority, err := ca.Open(ctx, module, ca.Config{Deployment: d.Name, CRLLifetime: time.Hour}, material, rand.Reader)
	if err != nil {
		return err
	}
	defer authority.Close()
	by := store.By{Actor: cfg.Actor, At: now}
	st, err := store.Create(ctx, dir, module, by, log)
	if err != nil {
		return err
	}
	err = st.Update(ctx, by, func(tx *store.Tx) error {
		code := hsm.RandomSecret(transport.SecurityCodeSize)
		defer code.Wipe()
		errs := []error{tx.PutDeployment(d), tx.AddGroup(DefaultGroup, code), tx.Audit("server.init", string(d.Name), "")}
		for _, m := range material {
			errs = append(errs, tx.PutAuthority(store.Authority{Name: m.Name, Certificate: m.Certificate, Key: m.Key}))
		}
		for _, issuer := range ca.Issuers() {
			errs = append(errs, relist(tx, authority, issuer))
		}
		return errors.Join(errs...)
	})
	return errors.Join(err, st.Close())
}

// place moves the new directory to where it belongs, durably. rename(2) takes
// the place of an empty directory and of nothing else.
func place(tmp, dir string, owner *syscall.Stat_t) error {
	if owner != nil && int(owner.Uid) != os.Getuid() {
		err := filepath.WalkDir(tmp, func(path string, _ fs.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(path, int(owner.Uid), int(owner.Gid)))
		})
		if err != nil {
			return fmt.Errorf("give it to the owner of %s: %w", dir, err)
		}
	}
	if err := syncDir(tmp); err != nil {
		return err
	}
	if err := unix.Rename(tmp, dir); err != nil {
		return &os.LinkError{Op: "rename", Old: tmp, New: dir, Err: err}
	}
	return syncDir(filepath.Dir(dir))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
