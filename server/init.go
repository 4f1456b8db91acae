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
// place as the last step, so that Dir is whole or as it was; what a killed Init
// leaves there, the next one for the same Dir removes.
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
	tmp := filepath.Join(filepath.Dir(dir), "."+filepath.Base(dir)+initSuffix)
	lock, err := takeTemp(tmp)
	if err != nil {
		return err
	}
	defer lock.Close() // last: until then nobody takes tmp for what a killed one left
	d := store.Deployment{Name: name, Servers: cfg.Servers, HTTP: cfg.HTTP}
	work := filepath.Join(tmp, "state") // key storage locks its directory as well
	if err := os.Mkdir(work, 0o700); err != nil {
		return control.Problemf(control.Storage, "make it writable, or choose another --dir", "cannot write in %s: %w", tmp, err)
	}
	if err := build(ctx, work, d, cfg, log); err != nil {
		return errors.Join(problem(err), os.RemoveAll(tmp))
	}
	if err := place(work, dir, owner); err != nil {
		return control.Problemf(control.Storage, "choose another --dir, one that is no mount point", "put the new state in place: %w", errors.Join(err, os.RemoveAll(tmp)))
	}
	if err := os.RemoveAll(tmp); err != nil { // empty: a next init would remove it
		log.Warn("cannot remove an empty directory", "path", tmp, "err", err)
	}
	return nil
}

// initSuffix ends the name under which a state directory is built beside its
// place. The name is fixed, so that what a killed init leaves, keys included,
// is found and removed by the next one.
const initSuffix = ".init"

// takeTemp makes an empty directory, locked for this process as long as the
// file that it returns is open.
func takeTemp(tmp string) (lock *os.File, err error) {
	for {
		err := os.Mkdir(tmp, 0o700)
		made := err == nil
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, control.Problemf(control.Storage, "make it, or make it writable, or choose another --dir", "cannot write in %s: %w", filepath.Dir(tmp), err)
		}
		f, err := os.OpenFile(tmp, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue // its maker has ended meanwhile
		}
		if err != nil {
			return nil, control.Problemf(control.Storage, "remove it, then try again", "%s is in the way: %w", tmp, err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			return nil, control.Problemf(control.Conflict, "wait until it has ended, then try again", "another init is at work in %s: %w", tmp, err)
		}
		mine, err := f.Stat()
		now, missing := os.Lstat(tmp)
		if made && errors.Join(err, missing) == nil && os.SameFile(mine, now) {
			return f, nil
		}
		if !made {
			err = os.RemoveAll(tmp)
		}
		f.Close()
		if err != nil {
			return nil, control.Problemf(control.Storage, "remove it, then try again", "an init that was killed has left %s: %w", tmp, err)
		}
	}
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
	return hsm.MoveDir(tmp, dir)
}
