package store

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
)

// A slot is one sealing of the store key. Usually there is one. During an update
// there are two: that of the system in use, and that of the next one (boot.go).
// Slots are not sealed: they are read before there is a key. The head vouches for
// them afterwards.

// bucketSlots holds slotRecords; a later one has a higher key.
var bucketSlots = []byte("_slots")

// storeKeyBlob is the blob that was the only slot in schema 1. No other blob may
// have the name.
const storeKeyBlob = "store-key"

const (
	slotChip = 1 // module.Seal
	slotBoot = 2 // hsm.BootSealer.SealBoot
)

// maxSlot bounds a slotRecord; maxSlots is far more than there ever are.
const (
	maxSlot  = 4096
	maxSlots = 8
)

type slotRecord struct {
	Kind      int      `cbor:"1,keyasint"`
	Next      bool     `cbor:"2,keyasint,omitempty"` // of the system after an update
	Registers []int    `cbor:"3,keyasint,omitempty"` // sorted
	Signer    []byte   `cbor:"4,keyasint,omitempty"` // SHA-256 of the authority's point
	Values    []byte   `cbor:"5,keyasint,omitempty"` // SHA-256 of values that were given; none: those of then
	Blob      hsm.Blob `cbor:"6,keyasint"`

	name   string // its key in bucketSlots
	opened bool   // it opened, or was proven to, since the store was opened
}

func (r *slotRecord) public() Slot {
	s := Slot{Name: "unknown", Registers: r.Registers, Signed: r.Signer != nil, Opened: r.opened}
	switch {
	case r.Kind == slotChip:
		s.Name = "chip"
	case r.Kind == slotBoot && r.Next:
		s.Name = "boot-next"
	case r.Kind == slotBoot:
		s.Name = "boot"
	}
	return s
}

// slots gives all slots, the newest first.
func (tx *Tx) slots() (list []*slotRecord, err error) {
	defer tx.guard(&err)
	b := tx.b.Bucket(bucketSlots)
	if b == nil {
		if blob := tx.raw(bucketBlobs, storeKeyBlob); blob != nil { // schema 1
			return []*slotRecord{{Kind: slotChip, Blob: blob}}, nil
		}
		return nil, fmt.Errorf("%w (it has no store key)", ErrDamaged)
	}
	c := b.Cursor()
	for k, v := c.Last(); k != nil; k, v = c.Prev() {
		r := &slotRecord{name: string(k)}
		if err := transport.Unmarshal(bytes.Clone(v), r, maxSlot); err != nil || len(list) == maxSlots {
			return nil, fmt.Errorf("%w (slot %q: %v)", ErrDamaged, k, err)
		}
		list = append(list, r)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%w (it has no store key)", ErrDamaged)
	}
	return list, nil
}

func (tx *Tx) addSlot(r *slotRecord) error {
	n, err := tx.sequence(bucketSlots)
	if err != nil {
		return err
	}
	r.name = fmt.Sprintf("%08x", n)
	value, err := transport.Marshal(r)
	if err != nil {
		return err
	}
	return tx.store(bucketSlots, r.name, value)
}

func (tx *Tx) dropSlots(list []*slotRecord) error {
	for _, r := range list {
		bucket, name := bucketSlots, r.name
		if name == "" {
			bucket, name = bucketBlobs, storeKeyBlob
		}
		if err := tx.delete(bucket, name); err != nil {
			return err
		}
	}
	return nil
}

// unseal gets the store key out of the first slot that opens. When none does,
// the error is that of the module if it cannot work at all, else ErrBoot before
// ErrNewer before ErrForeign before ErrDamaged: what can be helped comes first.
func (o *opener) unseal(ctx context.Context, slots []*slotRecord) (*hsm.Secret, error) {
	var boot, newer, foreign, damaged error
	for _, r := range slots {
		key, err := o.unsealSlot(ctx, r)
		switch {
		case err == nil && key.Len() == keySize:
			r.opened = true
			return key, nil
		case err == nil:
			damaged = fmt.Errorf("%w (a store key of %d bytes)", ErrDamaged, key.Len())
			key.Wipe()
		case errors.Is(err, hsm.ErrBoot):
			boot = fmt.Errorf("unseal the store key: %w", err)
		case errors.Is(err, ErrNewer): // a release to come has put its slot beside one of ours
			newer = err
		case errors.Is(err, hsm.ErrReplaced):
			foreign = fmt.Errorf("%w (%w)", ErrForeign, err)
		case errors.Is(err, hsm.ErrBlob):
			damaged = fmt.Errorf("%w (%w)", ErrDamaged, err)
		default:
			return nil, fmt.Errorf("unseal the store key: %w", err)
		}
	}
	for _, err := range []error{boot, newer, foreign, damaged} {
		if err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w (it has no store key)", ErrDamaged)
}

func (o *opener) unsealSlot(ctx context.Context, r *slotRecord) (*hsm.Secret, error) {
	switch r.Kind {
	case slotChip:
		return o.module.Unseal(ctx, r.Blob)
	case slotBoot:
		sealer, ok := o.module.(hsm.BootSealer)
		if !ok {
			return nil, fmt.Errorf("%w: it was sealed to how a TPM was booted", hsm.ErrReplaced)
		}
		var approvals []hsm.Approval
		if r.Signer != nil && o.cfg.Boot != nil && o.cfg.Boot.Approvals != nil {
			var err error
			if approvals, err = o.cfg.Boot.Approvals(); err != nil {
				return nil, fmt.Errorf("%w: read what is approved: %w", hsm.ErrBoot, err)
			}
		}
		return sealer.UnsealBoot(ctx, r.Blob, approvals)
	}
	return nil, fmt.Errorf("%w (a slot of kind %d)", ErrNewer, r.Kind)
}

// prove makes sure that a slot opens, now, with the key.
func (o *opener) prove(ctx context.Context, r *slotRecord, key *hsm.Secret) error {
	got, err := o.unsealSlot(ctx, r)
	if err != nil {
		return err
	}
	defer got.Wipe()
	if !got.Equal(key) {
		return errors.New("key storage gave another key back than it was given")
	}
	r.opened = true
	return nil
}

// chipSlot seals the key to the module.
func (o *opener) chipSlot(ctx context.Context, key *hsm.Secret) (*slotRecord, error) {
	blob, err := o.module.Seal(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("seal the store key: %w", err)
	}
	return &slotRecord{Kind: slotChip, Blob: blob}, nil
}

// bootSlot seals the key to measurements.
func (o *opener) bootSlot(ctx context.Context, key *hsm.Secret, policy hsm.BootPolicy) (*slotRecord, error) {
	sealer, ok := o.module.(hsm.BootSealer)
	if !ok {
		return nil, fmt.Errorf("%w: key storage %q cannot know how the machine was booted", hsm.ErrNotMeasured, o.module.Level())
	}
	r, err := describe(policy)
	if err != nil {
		return nil, err
	}
	if r.Blob, err = sealer.SealBoot(ctx, key, policy); err != nil {
		return nil, fmt.Errorf("seal the store key: %w", err)
	}
	return r, nil
}

// describe is the slot of a policy, without the blob.
func describe(policy hsm.BootPolicy) (*slotRecord, error) {
	r := &slotRecord{Kind: slotBoot, Registers: slices.Sorted(slices.Values(policy.Registers))}
	switch {
	case policy.Authority != nil:
		sum, err := fingerprint(policy.Authority)
		if err != nil {
			return nil, err
		}
		r.Signer = sum
	case policy.Values != nil:
		h := sha256.New()
		for _, n := range slices.Sorted(maps.Keys(policy.Values)) {
			value := policy.Values[n]
			h.Write(binary.BigEndian.AppendUint32(nil, uint32(n)))
			h.Write(value[:])
		}
		r.Values = h.Sum(nil)
	}
	return r, nil
}

func fingerprint(key *ecdsa.PublicKey) ([]byte, error) {
	point, err := key.Bytes()
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	sum := sha256.Sum256(point)
	return sum[:], nil
}

// fits says whether a slot is what a policy asks for. Values that the policy
// leaves open may have been given when the slot was made, before an update.
func (r *slotRecord) fits(policy hsm.BootPolicy) bool {
	want, err := describe(policy)
	return err == nil && r.Kind == slotBoot && slices.Equal(r.Registers, want.Registers) && bytes.Equal(r.Signer, want.Signer) &&
		(want.Values == nil || bytes.Equal(r.Values, want.Values))
}
