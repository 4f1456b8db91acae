package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// Taking over a store that was set aside: what is worth keeping comes into the
// present store in one transaction, and only then is the old one destroyed.

// Takeover says what was taken over.
type Takeover struct {
	Device      transport.DeviceID `json:"device"` // that the store was of
	Credentials []transport.Name   `json:"credentials"`
	Kept        []transport.Name   `json:"kept"`    // that were here already, newer ones
	Refused     []transport.Name   `json:"refused"` // that are not what this deployment issues
	Results     int                `json:"results"`
	Entries     int                `json:"audit_entries"`
}

const (
	bucketPast = "audit-past" // for audit list --earlier: entries of stores that were taken over, as they were
)

// errTaken is a store that was taken over before: its key came twice.
var errTaken = errors.New("the store that was set aside has been taken over already")

// takeOver takes over the store that is set aside under name, with its key;
// errTaken if that was done before. A key may come from the server and in a file
// at once: one at a time, since what the first leaves behind no longer opens.
func (v *vault) takeOver(ctx context.Context, name string, key *hsm.Secret, state transport.RecoveryProgress) (*Takeover, error) {
	v.taking.Lock()
	defer v.taking.Unlock()
	err := v.store.View(func(tx *store.Tx) error {
		r, err := untaken(tx, name)
		r.wipe()
		return err
	})
	if err != nil {
		return nil, err
	}
	old, err := store.OpenAside(ctx, filepath.Join(v.dir, asideDir, name, storeFile), key, v.log)
	if err != nil {
		return nil, err
	}
	defer old.Close()
	t := &Takeover{Credentials: []transport.Name{}, Kept: []transport.Name{}, Refused: []transport.Name{}}
	err = old.View(func(from *store.Tx) error {
		judge, err := v.mayTake(from)
		if err != nil {
			return err
		}
		return v.update(func(to *store.Tx) error {
			var was deviceRecord
			if _, err := from.Get(bucketRecovery, keyDevice, &was); err != nil {
				return err
			}
			t.Device = was.Device
			err := errors.Join(v.takeCredentials(ctx, from, to, judge, t), takeResults(from, to, t), takeAudit(from, to, name, t))
			if err != nil {
				return err
			}
			r, err := untaken(to, name)
			defer r.wipe()
			if err != nil {
				return err
			}
			r.Taken, r.State = true, state
			return errors.Join(to.Put(bucketRecovery, keyAside+name, &r),
				v.audit(to, audit.Recovered, t.Device.Short(), "took over the store that was set aside: %d credentials, %d results; refused %v", len(t.Credentials), t.Results, t.Refused))
		})
	})
	if err != nil {
		return nil, fmt.Errorf("take over the store that is set aside: %w", err)
	}
	v.log.Info("took over a store that was set aside", "device", t.Device.Short(), "credentials", len(t.Credentials), "results", t.Results)
	if err := old.DropCounter(ctx, v.module); err != nil {
		v.log.Warn("the counter of a store that was taken over stays in key storage", "err", err)
	}
	if err := errors.Join(old.Close(), scrubAside(v.dir, name)); err != nil {
		v.log.Warn("a store that was taken over is not destroyed yet; the next start tries again", "err", err)
	}
	return t, nil
}

// untaken gives the record of a store that is set aside; errTaken when its
// contents are here, which may be so long ago that there is no record.
func untaken(tx *store.Tx, name string) (r asideRecord, err error) {
	found, err := tx.Get(bucketRecovery, keyAside+name, &r)
	if err == nil && (!found || r.Taken) {
		err = errTaken
	}
	return r, err
}

// mayTake refuses the store of another deployment or terminal: its credentials
// would be claimed in vain, and under another root. It gives what judges them.
func (v *vault) mayTake(from *store.Tx) (*party, error) {
	self, err := v.self()
	if err != nil {
		return nil, err
	}
	defer self.wipe()
	var was terminalRecord
	defer was.wipe()
	found, err := from.Get(bucketTerminal, keySelf, &was)
	switch {
	case err != nil:
		return nil, err
	case self == nil && found:
		return nil, control.Problemf(control.Conflict, "take in the bundle of "+string(was.Terminal)+" first", "this device is not provisioned yet")
	case self == nil:
		return &party{vault: v, self: &terminalRecord{}, roots: x509.NewCertPool()}, nil
	case found && (self.Deployment != was.Deployment || self.Terminal != was.Terminal && was.Terminal != ""):
		return nil, control.Problemf(control.Refused, "use a store and key of this very terminal",
			"the store that is set aside is of %s in deployment %s, and this is %s in %s", was.Terminal, was.Deployment, self.Terminal, self.Deployment)
	}
	roots, err := self.roots()
	return &party{vault: v, self: self, roots: roots}, err
}

// takeCredentials takes the software keys for services, to be reported as what
// came from the device that had them. One that is here already is newer. That the
// key opened the store says only that whoever filled it knew the server's public
// recovery key, as every terminal does: so each is held to what a copy is. For the
// same reason no key copy is gone on with: its resume key could be anybody's. The
// other end has what it moved, disabled or staged, and its last resort.
func (v *vault) takeCredentials(ctx context.Context, from, to *store.Tx, judge *party, t *Takeover) error {
	return eachHolding(from, func(h *holdingRecord) error {
		if h.Record.Usage != transport.UsageClient {
			return nil // a gate's own: the server orders another
		}
		id := h.Record.ID
		here, err := holding(to, id)
		here.wipe()
		if err != nil {
			return err
		}
		if here != nil {
			t.Kept = append(t.Kept, id)
			return nil
		}
		if h.Away != nil {
			v.log.Error("a credential of a store that is set aside was moving to another terminal: it is that one's now", "credential", id, "txn", short(h.Away.Txn))
			t.Refused = append(t.Refused, id)
			return nil
		}
		if err := judge.checkHeld(ctx, &h.Record); err != nil {
			v.log.Error("a credential of a store that is set aside is not taken", "credential", id, "err", err)
			t.Refused = append(t.Refused, id)
			return nil
		}
		h.Origin, h.Source, h.SourceName = OriginCopy, t.Device, ""
		t.Credentials = append(t.Credentials, id)
		return hold(to, h)
	})
}

// takeResults takes the results that the server has not acknowledged, with what
// is remembered of commands: one that comes again must have no second effect.
func takeResults(from, to *store.Tx, t *Takeover) error {
	return from.Each(bucketLedger, func(key string, decode func(any) error) error {
		var r, here ledgerRecord
		if err := decode(&r); err != nil {
			return err
		}
		if found, err := to.Get(bucketLedger, key, &here); found || err != nil {
			return err
		}
		if err := to.Put(bucketLedger, key, &r); err != nil {
			return err
		}
		waiting, err := from.Get(bucketOutbox, key, &outboxRecord{})
		if err != nil || !waiting {
			return err
		}
		t.Results++
		return to.Put(bucketOutbox, key, &outboxRecord{})
	})
}

// takeAudit keeps the entries of the earlier log as they were. They are no part
// of the present chain, which says that they came.
func takeAudit(from, to *store.Tx, name string, t *Takeover) error {
	n := 0
	return audit.Each(from, func(e *audit.Entry) error {
		n++
		t.Entries = n
		return to.Put(bucketPast, fmt.Sprintf("%s.%016x", name, e.Seq), e)
	})
}
