package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/kagimori/kagimori/hsm"
)

// The bond of the store key to how the machine was booted. Without Config.Boot
// there is one slot, sealed to the module. With it there is one slot, sealed to
// the measurements; and around an update two: Prepare adds that of the system to
// come, Confirm removes that of the system before. Every change of slots is a
// key change, so the second copy has the same slots.

// firstSlot seals a new store's key as the configuration says. When that cannot
// be, it is sealed to the module only, and weaker says why.
func (o *opener) firstSlot(ctx context.Context, key *hsm.Secret) (slot *slotRecord, weaker, err error) {
	if o.cfg.Boot != nil {
		slot, err := o.proven(ctx, key, o.cfg.Boot)
		switch {
		case err == nil:
			return slot, nil, nil
		case !errors.Is(err, hsm.ErrNotMeasured) && !errors.Is(err, hsm.ErrBoot):
			return nil, nil, err
		}
		weaker = err
	}
	slot, err = o.proven(ctx, key, nil)
	return slot, weaker, err
}

// proven makes a slot, to measurements or to the module, that opens now.
func (o *opener) proven(ctx context.Context, key *hsm.Secret, boot *Boot) (slot *slotRecord, err error) {
	if boot != nil {
		slot, err = o.bootSlot(ctx, key, boot.Policy)
	} else {
		slot, err = o.chipSlot(ctx, key)
	}
	if err != nil {
		return nil, err
	}
	return slot, o.prove(ctx, slot, key)
}

// bond finds out whether the slots are what the configuration asks for, and if
// not makes the one that is, proves that it opens, and returns it.
func (s *Store) bond(ctx context.Context) (slot *slotRecord, err error) {
	if s.o.key != nil { // what is there did not open
		slot, s.weaker, err = s.o.firstSlot(ctx, s.key)
		return slot, err
	}
	for _, r := range s.slots {
		if r.Next {
			return nil, nil // an update is under way
		}
	}
	boot := s.o.cfg.Boot
	if len(s.slots) == 1 {
		if r := s.slots[0]; boot == nil && r.Kind == slotChip || boot != nil && r.fits(boot.Policy) {
			return nil, nil
		}
	}
	if slot, err = s.o.proven(ctx, s.key, boot); err != nil { // what opened will open again
		s.weaker = err
		return nil, nil
	}
	s.log.InfoContext(ctx, "the store key is sealed anew", "bond", bondOf(s.o.module.Level(), []*slotRecord{slot}))
	return slot, nil
}

// useSlot has a transaction, a key change, put one slot in the place of others.
func (tx *Tx) useSlot(slot *slotRecord, drop []*slotRecord, keep ...*slotRecord) error {
	if err := errors.Join(tx.addSlot(slot), tx.dropSlots(drop)); err != nil {
		return err
	}
	tx.reslot = append([]*slotRecord{slot}, keep...)
	return nil
}

// Prepare seals the store key a second time, to how the machine will be booted
// after an update. Until Confirm both slots are there, and the store opens before
// and after the update. Prepare again replaces what was prepared before. It is a
// key change. It fails with hsm.ErrNotMeasured when nothing is measured, and with
// ErrNotBound when the store is not bound to the boot at all.
func (s *Store) Prepare(ctx context.Context, policy hsm.BootPolicy) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	if bondOf(s.o.module.Level(), s.slotList()) == bondChip {
		return ErrNotBound
	}
	slot, err := s.o.bootSlot(ctx, s.key, policy)
	if err != nil {
		return err
	}
	slot.Next = true
	return s.Update(func(tx *Tx) error {
		var keep, drop []*slotRecord
		for _, r := range s.slotList() {
			if r.Next {
				drop = append(drop, r)
			} else {
				keep = append(keep, r)
			}
		}
		return tx.useSlot(slot, drop, keep...)
	})
}

// Confirm removes the slots from before the update, after it made sure that the
// new one opens now. If the system came up as before, it fails with hsm.ErrBoot
// and both slots stay. Without a slot of Prepare it does nothing. It is a key
// change.
func (s *Store) Confirm(ctx context.Context) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	var next *slotRecord
	for _, r := range s.slotList() {
		if r.Next {
			next = r
		}
	}
	if next == nil {
		return nil
	}
	slot := *next
	if err := s.o.prove(ctx, &slot, s.key); err != nil {
		return fmt.Errorf("the slot of the new system does not open: %w", err)
	}
	slot.Next = false
	return s.Update(func(tx *Tx) error { return tx.useSlot(&slot, s.slotList()) })
}

func (s *Store) slotList() []*slotRecord {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.slots
}

// What State.Bond says.
const (
	bondSecret = "device secret"
	bondChip   = "chip"
	bondBoot   = "boot"
	bondSigned = "boot, signed"
)

// bondOf is the weakest of slots.
func bondOf(level hsm.Level, slots []*slotRecord) string {
	bond := bondSigned
	for _, r := range slots {
		switch {
		case r.Kind == slotChip && level == hsm.LevelFile:
			return bondSecret
		case r.Kind != slotBoot: // or one of a kind to come, of which nothing is known
			return bondChip
		case r.Signer == nil:
			bond = bondBoot
		}
	}
	return bond
}
