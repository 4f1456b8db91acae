package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"syscall"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/open"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// A vault is the key storage and the store once both are open, and this
// device's identity key, which is made when there is none.
type vault struct {
	module   hsm.Module
	store    records
	identity hsm.Signer
	device   transport.DeviceID
	clock    *Clock
	log      *slog.Logger
	// revocations says which gates may not be talked to.
	revocations revocations
	// changed is told after every write, failed when the disk did, relisted when
	// other gates are revoked than before.
	changed, relisted func()
	failed            func(error)
	anchors           anchors
}

const (
	blobIdentity     = "identity"      // the device's signing key
	blobSecurityCode = "security-code" // a MAC key

	bucketTerminal = "terminal"
	keySelf        = "self" // terminalRecord
	bucketClock    = "clock"
	keyFloor       = "floor" // clockRecord
	bucketIdentity = "identity"
	keyChain       = "chain" // identityRecord
)

// identityRecord is the identity certificate.
type identityRecord struct {
	Chain [][]byte `cbor:"1,keyasint"` // DER, leaf first
}

// records is what a vault asks of its store, a *store.Store.
type records interface {
	View(fn func(*store.Tx) error) error
	Update(fn func(*store.Tx) error) error
	Batch(fn func(*store.Tx) error) error
	State() store.State
	Settle(ctx context.Context) error
	Close() error
}

// An Opener opens key storage and store. It is called again when it failed for
// a reason that may pass (DESIGN D5).
type Opener func(ctx context.Context) (hsm.Module, *store.Store, error)

// storeFile is the store's name in the state directory.
const storeFile = "kagimori.db"

// Storage is the usual Opener: the module that the configuration names, and a
// store in the state directory, which must exist.
func Storage(cfg open.Config, stateDir string, log *slog.Logger) Opener {
	return func(ctx context.Context) (hsm.Module, *store.Store, error) {
		module, err := open.Module(ctx, cfg, log)
		if err != nil {
			return nil, nil, err
		}
		s, err := store.Open(ctx, storeConfig(stateDir), module, log)
		if err != nil {
			return nil, nil, errors.Join(err, module.Close())
		}
		return module, s, nil
	}
}

// storeConfig is how an agent keeps its store.
func storeConfig(stateDir string) store.Config {
	return store.Config{
		Path: filepath.Join(stateDir, storeFile),
		// What holds a key, or says whose they are.
		Keys: []string{bucketCredentials, bucketIdentity, bucketPending, bucketTerminal},
	}
}

// openVault opens everything. What it opened it closes again on failure.
func openVault(ctx context.Context, opener Opener, clock *Clock, log *slog.Logger) (_ *vault, err error) {
	module, s, err := opener(ctx)
	if err != nil {
		return nil, err
	}
	v := &vault{module: module, store: s, clock: clock, log: log, changed: func() {}, relisted: func() {}, failed: func(error) {}}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.close())
		}
	}()
	v.anchors.since = s.State().Epoch
	var floor clockRecord
	var key hsm.Blob
	err = s.View(func(tx *store.Tx) error {
		key = tx.Blob(blobIdentity)
		found, err := tx.Get(bucketClock, keyFloor, &floor)
		if found && err == nil {
			clock.load(floor)
		}
		return errors.Join(err, v.revocations.load(tx))
	})
	if err != nil {
		return nil, err
	}
	if key == nil {
		if key, err = module.NewKey(ctx); err != nil {
			return nil, fmt.Errorf("make identity key: %w", err)
		}
		err = s.Update(func(tx *store.Tx) error {
			return errors.Join(tx.PutBlob(blobIdentity, key), v.audit(tx, audit.IdentityCreated, module.Level(), ""))
		})
		if err != nil {
			return nil, fmt.Errorf("keep identity key: %w", err)
		}
	}
	if v.identity, err = module.Signer(ctx, key); err != nil {
		return nil, fmt.Errorf("open identity key: %w", err)
	}
	if v.device, err = deviceOf(v.identity); err != nil {
		return nil, err
	}
	if err = v.logLosses(); err != nil {
		return nil, err
	}
	v.anchor()
	return v, nil
}

// close ends everything. It may be called on a vault that opened half.
func (v *vault) close() error {
	var errs []error
	if v.identity != nil {
		errs = append(errs, v.identity.Close())
	}
	return errors.Join(append(errs, v.store.Close(), v.module.Close())...)
}

// update writes to the store, and the clock's floor with it.
func (v *vault) update(fn func(*store.Tx) error) error {
	var floor clockRecord
	var due bool
	before := v.store.State().Epoch
	err := v.store.Update(func(tx *store.Tx) error {
		if err := fn(tx); err != nil {
			return err
		}
		if floor, due = v.clock.record(); due {
			return tx.Put(bucketClock, keyFloor, &floor)
		}
		return nil
	})
	switch {
	case errors.Is(err, store.ErrFailed):
		v.failed(err)
	case err == nil && due:
		v.clock.wrote(floor)
	}
	if err == nil {
		v.changed()
		if v.store.State().Epoch != before {
			v.anchor()
		}
	}
	return err
}

// self gives what bundles made of this device, nil before the first one. The
// common key in it is the caller's to wipe.
func (v *vault) self() (self *terminalRecord, err error) {
	err = v.store.View(func(tx *store.Tx) error {
		var r terminalRecord
		found, err := tx.Get(bucketTerminal, keySelf, &r)
		if found && err == nil {
			self = &r
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read terminal record: %w", err)
	}
	return self, nil
}

// identityChain gives the identity certificate, nil before enrollment.
func (v *vault) identityChain() ([][]byte, error) {
	var r identityRecord
	err := v.store.View(func(tx *store.Tx) error {
		_, err := tx.Get(bucketIdentity, keyChain, &r)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read identity certificate: %w", err)
	}
	return r.Chain, nil
}

// storageProblem says what is wrong with key storage or store, and what to do.
// fatal is what the service manager or an administrator has to put right before
// there is any use in running; everything else is retried.
func storageProblem(err error) (p *control.Problem, fatal bool) {
	for _, c := range []struct {
		is    error
		kind  control.Kind
		next  string
		fatal bool
	}{
		{store.ErrLocked, control.Conflict, "stop the other daemon first, or give this one a state directory of its own (state_dir)", true},
		{hsm.ErrAbsent, control.Storage, "check that the TPM is there and enabled and that the daemon's user may open it (group tss), or correct [hsm] in the configuration", false},
		{hsm.ErrBusy, control.Storage, "stop the other program that uses the TPM, or use /dev/tpmrm0, which can be shared", false},
		{hsm.ErrOwnerAuth, control.Storage, "clear the TPM's owner password, or set [hsm] kind = \"file\" and provision anew", false},
		{hsm.ErrLockout, control.Storage, "wait until the TPM's lockout has passed; do not restart it again and again, that prolongs it", false},
		{hsm.ErrReplaced, control.Storage, "put the TPM or device secret back that this state directory was made with, or move the state directory away and provision anew", false},
		{hsm.ErrBlob, control.Storage, "if the message names a damaged file, put the right one back; if [hsm] kind was changed, change it back; else move the state directory away and provision anew", false},
		{hsm.ErrUnsafe, control.Storage, "give the file named above to the daemon's user, mode 0600, in a directory that nobody else can write", true},
		{hsm.ErrTimeout, control.Storage, "nothing to do at first, it is tried again; if it stays, restart the TPM by a power cycle", false},
		{store.ErrForeign, control.Storage, "put that TPM or device secret back, or move the state directory away and provision anew", false},
		{store.ErrDamaged, control.Storage, "keep the file for inspection, then put back a backup, or move the state directory away and provision anew", false},
		{store.ErrNewer, control.Storage, "install the newer release again", false},
		{store.ErrUnfinished, control.Storage, "nothing to do once that works again: the daemon finishes it by itself; what is missing says: kagimori doctor", false},
		{store.ErrFull, control.Storage, "free space on the disk of the state directory", false},
		{store.ErrFailed, control.Storage, "look into the kernel log for disk errors", true},
		{syscall.ENOSPC, control.Storage, "free space on the disk of the state directory", false},
		{syscall.EDQUOT, control.Storage, "free space on the disk of the state directory", false},
		{fs.ErrNotExist, control.Storage, "make the state directory, or correct state_dir", true},
		{fs.ErrPermission, control.Storage, "give the state directory to the daemon's user, mode 0700", true},
	} {
		if errors.Is(err, c.is) {
			return control.Problemf(c.kind, c.next, "%w", err), c.fatal
		}
	}
	return control.Problemf(control.Storage, "look into the daemon's log", "%w", err), false
}
