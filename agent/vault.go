package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/open"
	"github.com/kagimori/kagimori/transport"
)

// A vault is the key storage and the store once both are open, and this
// device's identity key, which is made when there is none.
type vault struct {
	module   hsm.Module
	store    records
	kept     *store.Store // the same, for what it says of itself; nil in some tests
	identity hsm.Signer
	device   transport.DeviceID
	dir      string // the state directory; empty in some tests
	clock    *Clock
	log      *slog.Logger
	// revocations says which gates may not be talked to.
	revocations revocations
	// changed is told after every write, failed when the disk did, relisted when
	// other gates are revoked than before, or credentials have moved away.
	changed, relisted func()
	failed            func(error)
	anchors           anchors
	taking            sync.Mutex // held while a store that was set aside is taken over
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

// An Opener opens key storage and store, with a remedy if there is one. It is
// called again when it failed for a reason that may pass (DESIGN D5).
type Opener func(ctx context.Context, r Remedy) (hsm.Module, *store.Store, error)

// storeFile is the store's name in the state directory.
const storeFile = "kagimori.db"

// StoreConfig is what a daemon decides about an agent's store.
type StoreConfig struct {
	Dir   string                                       // the state directory, which must exist
	Boot  *store.Boot                                  // see store.Config
	Check func(ctx context.Context, path string) error // see store.Config
}

// Storage is the usual Opener: the module that the configuration names, and a
// store in the state directory.
func Storage(cfg open.Config, sc StoreConfig, log *slog.Logger) Opener {
	return func(ctx context.Context, r Remedy) (hsm.Module, *store.Store, error) {
		if err := finishAside(sc.Dir); err != nil {
			return nil, nil, err
		}
		if r.Aside != "" {
			name, err := setAside(sc.Dir, r.Secret, r.Aside)
			if err != nil {
				return nil, nil, err
			}
			log.Warn("the store is set aside, nothing is deleted; a fresh one begins", "to", filepath.Join(sc.Dir, asideDir, name), "why", r.Aside)
		}
		module, err := open.Module(ctx, cfg, log)
		if err != nil {
			return nil, nil, moduleError{err}
		}
		s, err := openStore(ctx, sc.config(), module, r, log)
		if err != nil {
			return nil, nil, errors.Join(err, module.Close())
		}
		return module, s, nil
	}
}

func openStore(ctx context.Context, cfg store.Config, module hsm.Module, r Remedy, log *slog.Logger) (*store.Store, error) {
	switch {
	case r.Key != nil:
		return store.OpenWith(ctx, cfg, module, r.Key, log)
	case r.Older:
		return store.AcceptOlder(ctx, cfg, module, log)
	}
	return store.Open(ctx, cfg, module, log)
}

// moduleError is key storage itself that does not open, not the store.
type moduleError struct{ error }

func (e moduleError) Unwrap() error { return e.error }

// config is how an agent keeps its store.
func (sc StoreConfig) config() store.Config {
	return store.Config{
		Path: filepath.Join(sc.Dir, storeFile), Boot: sc.Boot, Check: sc.Check,
		// What holds a key, or says whose they are.
		Keys: []string{bucketCredentials, bucketIdentity, bucketPending, bucketTerminal, bucketRecovery,
			bucketTransactions, bucketStaged},
	}
}

// openVault opens everything. What it opened it closes again on failure.
func openVault(ctx context.Context, opener Opener, r Remedy, clock *Clock, log *slog.Logger) (_ *vault, err error) {
	module, s, err := opener(ctx, r)
	if err != nil {
		return nil, err
	}
	v := &vault{module: module, store: s, kept: s, clock: clock, log: log, changed: func() {}, relisted: func() {}, failed: func(error) {}}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.close())
		}
	}()
	v.anchors.since = s.State().Epoch
	var floor clockRecord
	err = s.View(func(tx *store.Tx) error {
		found, err := tx.Get(bucketClock, keyFloor, &floor)
		if found && err == nil {
			clock.load(floor)
		}
		return errors.Join(err, v.revocations.load(tx))
	})
	if err != nil {
		return nil, err
	}
	if err = v.migrate(); err != nil {
		return nil, err
	}
	if err = v.openIdentity(ctx); err != nil {
		return nil, err
	}
	v.logLosses()
	if err = v.noticeLoss(); err != nil {
		return nil, err
	}
	v.anchor()
	return v, nil
}

// migrate takes records of earlier releases to what they are today.
func (v *vault) migrate() error {
	found := false
	err := v.store.View(func(tx *store.Tx) error {
		return tx.Each(bucketCopies, func(string, func(any) error) error {
			found = true
			return store.ErrStop
		})
	})
	if err != nil || !found {
		return err
	}
	return v.store.Update(takeCopies)
}

// openIdentity opens this device's own key, or makes one: at the first start,
// and when a store was recovered whose keys were in another chip.
func (v *vault) openIdentity(ctx context.Context) (err error) {
	var key hsm.Blob
	err = v.store.View(func(tx *store.Tx) error {
		key = tx.Blob(blobIdentity)
		return nil
	})
	if err != nil {
		return err
	}
	if key != nil {
		v.identity, err = v.module.Signer(ctx, key)
		// The store opened under this module, so that the blob is of another one,
		// or of none, is no passing trouble: that key is gone.
		if err != nil && !errors.Is(err, hsm.ErrReplaced) && !errors.Is(err, hsm.ErrBlob) {
			return fmt.Errorf("open identity key: %w", err)
		}
		if err == nil {
			v.device, err = deviceOf(v.identity)
			return err
		}
		v.log.Warn("the identity key was in another chip or under another device secret: a new one is made, and this device must be enrolled anew", "err", err)
	}
	fresh, err := v.module.NewKey(ctx)
	if err != nil {
		return fmt.Errorf("make identity key: %w", err)
	}
	if v.identity, err = v.module.Signer(ctx, fresh); err != nil {
		return fmt.Errorf("open identity key: %w", err)
	}
	if v.device, err = deviceOf(v.identity); err != nil {
		return err
	}
	err = v.store.Update(func(tx *store.Tx) error {
		if key != nil {
			if err := v.forgetDevice(tx); err != nil {
				return err
			}
		}
		return errors.Join(tx.PutBlob(blobIdentity, fresh), audit.Adopt(tx, v.identity.Public()),
			v.audit(tx, audit.IdentityCreated, v.device, "level %s", v.module.Level()))
	})
	if err != nil {
		return fmt.Errorf("keep identity key: %w", err)
	}
	return nil
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
	if errors.Is(err, store.ErrFull) || errors.Is(err, store.ErrUnfinished) {
		problem, _ := storageProblem(err) // people see it as it is
		return problem
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
