package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// How a device gets its keys back. Its store key is also wrapped for the
// server's recovery key, in the store's unsealed blobs, so that a store that no
// longer opens can be set aside (aside.go) and read once an administrator has
// had its key released. recovery_session.go is what is said to the server,
// recovery_take.go how a store that was set aside is taken over,
// recovery_control.go what people ask for.

const (
	bucketRecovery = "recovery"
	keyDevice      = "device" // deviceRecord
	keyTold        = "told"   // toldRecord
	keyLost        = "lost"   // deviceRecord, of the device that this one was before
	keyExport      = "export" // exportRecord
	keyAside       = "aside." // and the directory's name: asideRecord

	blobStoreID = "store-id"
	blobWrap    = "recovery-wrap"
)

// deviceRecord is which device this is, or was.
type deviceRecord struct {
	Device transport.DeviceID `cbor:"1,keyasint"`
	Time   int64              `cbor:"2,keyasint"`
}

// toldRecord is up to which incarnation the server knows of losses.
type toldRecord struct {
	Incarnation uint32 `cbor:"1,keyasint"`
}

// exportRecord is when a recovery file was made.
type exportRecord struct {
	Time int64 `cbor:"1,keyasint"`
}

// asideRecord is a store that is set aside, and the request for its key.
type asideRecord struct {
	ID        transport.ID               `cbor:"1,keyasint"` // of the request
	Seed      transport.Sensitive        `cbor:"2,keyasint"` // private half of the recipient key
	Recipient []byte                     `cbor:"3,keyasint"`
	Wrap      *transport.RecoveryWrap    `cbor:"4,keyasint"` // nil: the store has none
	State     transport.RecoveryProgress `cbor:"5,keyasint"` // as the server said last; empty: not asked yet
	Taken     bool                       `cbor:"6,keyasint"` // its contents are here
	Store     transport.ID               `cbor:"7,keyasint"`
	Since     int64                      `cbor:"8,keyasint"`
	// Requested is false for a key that came otherwise: the server is told so.
	Requested bool `cbor:"9,keyasint"`
	// Refused: the server has not taken the request, so nobody decides on it.
	Refused bool `cbor:"10,keyasint,omitempty"`
}

func (r *asideRecord) wipe() { r.Seed.Wipe() }

// asks says whether the server is to be asked for the key.
func (r *asideRecord) asks() bool {
	return r.Wrap != nil && !r.Taken && r.State != transport.RecoveryDone
}

// asideEntry is an asideRecord with its directory's name.
type asideEntry struct {
	name string
	asideRecord
}

// asideEntries lists what is set aside. The caller wipes them.
func asideEntries(tx *store.Tx) (list []asideEntry, err error) {
	err = tx.Each(bucketRecovery, func(key string, decode func(any) error) error {
		if len(key) <= len(keyAside) || key[:len(keyAside)] != keyAside {
			return nil
		}
		e := asideEntry{name: key[len(keyAside):]}
		if err := decode(&e.asideRecord); err != nil {
			return err
		}
		list = append(list, e)
		return nil
	})
	return list, err
}

func (v *vault) asides() (list []asideEntry, err error) {
	err = v.store.View(func(tx *store.Tx) (err error) {
		list, err = asideEntries(tx)
		return err
	})
	return list, err
}

// storeID names this store in wraps and recovery files.
func storeID(tx *store.Tx) (id transport.ID) {
	copy(id[:], tx.Blob(blobStoreID))
	return id
}

// ownWrap is this store's wrap, nil if it has none that is still true.
func (v *vault) ownWrap(tx *store.Tx, deployment transport.Name) *transport.RecoveryWrap {
	w := readWrap(tx.Blob(blobWrap))
	if w == nil || w.Device != v.device || w.Store != storeID(tx) || w.Deployment != deployment {
		return nil
	}
	return w
}

func readWrap(blob []byte) *transport.RecoveryWrap {
	var w transport.RecoveryWrap
	if blob == nil || transport.Unmarshal(blob, &w, transport.MaxRecoveryRecord) != nil || len(w.Sealed) != transport.RecoverySealed {
		return nil
	}
	return &w
}

// noticeLoss finds out what has happened since this store was last open, and
// readies what the server has to be told: after a loss, all that is held.
func (v *vault) noticeLoss() error {
	incarnation := v.store.State().Incarnation
	var id hsm.Blob
	var was deviceRecord
	var told toldRecord
	var known, toldBefore bool
	err := v.store.View(func(tx *store.Tx) (err error) {
		id = tx.Blob(blobStoreID)
		if known, err = tx.Get(bucketRecovery, keyDevice, &was); err != nil {
			return err
		}
		toldBefore, err = tx.Get(bucketRecovery, keyTold, &told)
		return err
	})
	if err != nil {
		return err
	}
	fresh := id == nil || !known || was.Device != v.device || !toldBefore
	lost := toldBefore && told.Incarnation != incarnation
	if !fresh && !lost {
		return nil
	}
	return v.store.Update(func(tx *store.Tx) error {
		if id == nil {
			id := transport.NewID(rand.Reader)
			if err := tx.PutBlob(blobStoreID, id[:]); err != nil {
				return err
			}
		}
		if lost {
			return v.claimAll(tx)
		}
		if !toldBefore { // nobody knows of an earlier one
			if err := tx.Put(bucketRecovery, keyTold, &toldRecord{Incarnation: incarnation}); err != nil {
				return err
			}
		}
		return tx.Put(bucketRecovery, keyDevice, &deviceRecord{Device: v.device, Time: v.clock.Stamp()})
	})
}

// claimAll has every holding reported anew.
func (v *vault) claimAll(tx *store.Tx) error {
	return eachHolding(tx, func(h *holdingRecord) error {
		if h.Record.Usage != transport.UsageClient {
			return nil
		}
		source := h.Source
		if h.Origin == OriginIssue {
			source = v.device // from nowhere else
		}
		return claimLater(tx, h, source)
	})
}

// forgetDevice takes note that the keys in key storage are gone: what was issued
// to the earlier device is a copy now, its certificate and codes are nobody's.
func (v *vault) forgetDevice(tx *store.Tx) error {
	var was deviceRecord
	if _, err := tx.Get(bucketRecovery, keyDevice, &was); err != nil {
		return err
	}
	err := eachHolding(tx, func(h *holdingRecord) error {
		if h.Record.Usage != transport.UsageClient {
			return nil
		}
		if h.Origin == OriginIssue {
			h.Origin, h.Source = OriginCopy, was.Device
		}
		return errors.Join(tx.Put(bucketCredentials, string(h.Record.ID), h), claimLater(tx, h, h.Source))
	})
	if err != nil {
		return err
	}
	var self terminalRecord
	defer self.wipe()
	switch found, err := tx.Get(bucketTerminal, keySelf, &self); {
	case err != nil:
		return err
	case found:
		next := self
		if err := errors.Join(keepCodes(tx, &self, &next, nil), tx.Put(bucketTerminal, keySelf, &next)); err != nil {
			return err
		}
	}
	return errors.Join(tx.Delete(bucketIdentity, keyChain), tx.DeleteBlob(blobPIN), tx.DeleteBlob(blobWrap), tx.DeleteBlob(blobCodeTags),
		tx.Put(bucketRecovery, keyLost, &deviceRecord{Device: was.Device, Time: v.clock.Stamp()}),
		v.audit(tx, audit.Recovered, was.Device.Short(), "the store key was kept elsewhere; the keys inside the earlier key storage are gone"))
}

// reenroll says whether the keys inside the earlier key storage are gone, and
// this device has not been enrolled anew yet.
func (v *vault) reenroll() (gone bool) {
	_ = v.store.View(func(tx *store.Tx) (err error) {
		gone, err = tx.Get(bucketRecovery, keyLost, &deviceRecord{})
		return err
	})
	return gone
}

// wrapFor keeps this store's key also under a recovery key of the server.
func (v *vault) wrapFor(deployment transport.Name, version uint32, public []byte) error {
	w := transport.RecoveryWrap{Version: version, Deployment: deployment, Device: v.device}
	err := v.store.View(func(tx *store.Tx) error {
		w.Store = storeID(tx)
		return nil
	})
	if err != nil {
		return err
	}
	err = v.kept.WithKey(func(key *hsm.Secret) error { return w.Seal(public, key.Bytes()) })
	if err != nil {
		return fmt.Errorf("wrap the store key: %w", err)
	}
	blob, err := transport.Marshal(&w)
	if err != nil {
		return err
	}
	err = v.update(func(tx *store.Tx) error {
		return errors.Join(tx.PutBlob(blobWrap, blob), v.audit(tx, audit.RecoverySet, deployment, "for the server's recovery key, version %d", version))
	})
	if err != nil {
		return fmt.Errorf("keep the recovery wrap: %w", err)
	}
	v.log.Info("the store key can be recovered through the server", "version", version)
	return nil
}

// noteAside is noticeAside, once or, on a full disk, until it works.
func (a *Agent) noteAside(ctx context.Context, v *vault) {
	err := a.noticeAside(ctx, v)
	if err != nil {
		a.log.Error("what is set aside is not looked at", "err", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.unnoted = err
}

func (a *Agent) asideUnnoted() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.unnoted
}

// noticeAside makes a record of every store that is set aside, with the request
// for its key, and finishes what a power cut left.
func (a *Agent) noticeAside(ctx context.Context, v *vault) error {
	if a.cfg.StateDir == "" {
		return nil
	}
	names, err := asides(a.cfg.StateDir)
	if err != nil {
		return fmt.Errorf("look for stores that are set aside: %w", err)
	}
	known := map[string]bool{}
	list, err := v.asides()
	if err != nil {
		return err
	}
	for _, e := range list {
		known[e.name] = true
		e.wipe()
		if e.Taken {
			if err := scrubAside(a.cfg.StateDir, e.name); err != nil {
				a.log.Warn("a store that was taken over is not destroyed yet", "err", err)
			}
			continue
		}
		if slices.Contains(names, e.name) {
			continue
		}
		a.log.Warn("a store that was set aside is gone: its key is not asked for any more", "name", e.name)
		if err := v.changeAside(e.name, func(r *asideRecord) { r.Taken, r.State = true, transport.RecoveryDenied }); err != nil {
			return err
		}
	}
	for _, name := range names {
		if known[name] {
			continue
		}
		if err := v.adopt(ctx, a.cfg.StateDir, name); err != nil {
			return err
		}
	}
	return nil
}

// adopt makes the record of one.
func (v *vault) adopt(ctx context.Context, dir, name string) error {
	r := asideRecord{ID: transport.NewID(rand.Reader), Since: v.clock.Stamp()}
	defer r.wipe()
	if seen, err := store.Peek(ctx, filepath.Join(dir, asideDir, name, storeFile)); err == nil {
		copy(r.Store[:], seen[blobStoreID])
		r.Wrap = readWrap(seen[blobWrap])
	} else {
		v.log.Warn("a store that is set aside cannot be looked into", "name", name, "err", err)
	}
	var err error
	if r.Wrap != nil {
		if r.Seed, r.Recipient, err = transport.NewRecoveryKey(); err != nil {
			return err
		}
	}
	err = v.update(func(tx *store.Tx) error { return tx.Put(bucketRecovery, keyAside+name, &r) })
	if err != nil {
		return fmt.Errorf("take note of a store that is set aside: %w", err)
	}
	return nil
}

// lostForGood says whether what keeps key storage from opening will not pass by
// itself, so that setting the store aside makes sense.
func lostForGood(err error) bool {
	for _, is := range []error{store.ErrForeign, store.ErrDamaged, store.ErrOlder, hsm.ErrReplaced, hsm.ErrBlob, hsm.ErrBoot, hsm.ErrCounter, hsm.ErrPassphrase} {
		if errors.Is(err, is) {
			return true
		}
	}
	return false
}

// errNotLost refuses to set aside what may come back.
func (a *Agent) errNotLost(cause error) error {
	p, _ := a.explain(cause)
	if diskFull(cause) {
		return p // nothing can be done before there is room, and then it may open by itself
	}
	return control.Problemf(control.Conflict, p.Next, "this may pass, and nothing is lost: %w", cause)
}
