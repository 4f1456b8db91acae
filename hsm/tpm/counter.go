package tpm

// Counters are NV indices of type TPM_NT_COUNTER (Part 1, 37.2.4), each in use
// with its owner's key as auth value. The owner of the machine can remove one,
// nobody can turn one back: a TPM starts a new counter above all that were.

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
)

// Our counters stand in a range of our own among the owner's NV handles (TCG
// "Registry of Reserved TPM 2.0 Handles"): FirstCounter and those after it, as
// many as MaxCounters. In it only what was left half made is ever undefined.
const (
	FirstCounter = tpm2.TPMHandle(0x01804B00)
	MaxCounters  = 16
)

// TPMA_NV of our counters (Part 2, 13.4).
const (
	nvAuthWrite  = 1 << 2
	nvCounter    = 1 << 4 // TPM_NT
	nvAuthRead   = 1 << 18
	nvNoDA       = 1 << 25
	nvWritten    = 1 << 29 // set by the TPM at the first increment
	nvAttributes = nvAuthWrite | nvCounter | nvAuthRead | nvNoDA

	countSize = 8 // bytes
)

// nvPublic is TPMS_NV_PUBLIC of a counter. The policy is 32 random bytes that no
// policy has for its digest: it authorises nothing, and makes the Name of this
// counter differ from that of any other, at the same handle too.
type nvPublic struct {
	handle     tpm2.TPMHandle
	attributes uint32
	policy     [32]byte
}

const nvPublicSize = 4 + 2 + 4 + 2 + 32 + 2

func (p nvPublic) encode() []byte {
	be := binary.BigEndian
	b := words(be.AppendUint32(nil, uint32(p.handle)), tpm2.TPMAlgSHA256)
	b = sized(be.AppendUint32(b, p.attributes), p.policy[:])
	return be.AppendUint16(b, countSize)
}

// decodeNV reads a counter of ours; anything else is not ok.
func decodeNV(b []byte) (p nvPublic, ok bool) {
	if len(b) != nvPublicSize {
		return p, false
	}
	p = nvPublic{tpm2.TPMHandle(binary.BigEndian.Uint32(b)), binary.BigEndian.Uint32(b[6:]), [32]byte(b[12:44])}
	ours := p.handle >= FirstCounter && p.handle < FirstCounter+MaxCounters && p.attributes&^nvWritten == nvAttributes
	return p, ours && bytes.Equal(p.encode(), b)
}

// written is p as it is after the first increment, which belongs to making it.
func (p nvPublic) written() nvPublic {
	p.attributes |= nvWritten
	return p
}

// entity is the counter with the Name that it must have.
func (p nvPublic) entity() entity { return entity{p.handle, nameOf(p.encode())} }

// RollbackProof tells that a TPM's counter cannot be turned back from outside.
// An emulator's can, by whoever writes its files: Health says so.
func (m *Module) RollbackProof() bool { return true }

// NewCounter makes a counter at the first free handle of our range. No handle or
// no memory left is hsm.ErrNoCounter; an owner password hsm.ErrOwnerAuth.
func (m *Module) NewCounter(ctx context.Context, key *hsm.Secret) (hsm.Blob, error) {
	if err := hsm.CheckCounterKey(key); err != nil {
		return nil, fmt.Errorf("make counter: %w", err)
	}
	input := key.Clone()
	b, err := do(ctx, m, input, func(c *chip) (hsm.Blob, error) { return c.newCounter(input.Bytes()) })
	if err != nil {
		return nil, fmt.Errorf("make counter: %w", err)
	}
	return b, nil
}

// Count reads a counter. One that is gone or another one, and a key that is not
// its own, are hsm.ErrCounter.
func (m *Module) Count(ctx context.Context, counter hsm.Blob, key *hsm.Secret) (uint64, error) {
	n, err := counting(ctx, m, counter, key, (*chip).count)
	if err != nil {
		return 0, fmt.Errorf("read counter: %w", err)
	}
	return n, nil
}

// Increment adds one: two commands, of which the first writes to the chip's own
// flash memory. Chips last for some 100,000 of them, so count what is rare.
func (m *Module) Increment(ctx context.Context, counter hsm.Blob, key *hsm.Secret) (uint64, error) {
	n, err := counting(ctx, m, counter, key, func(c *chip, p nvPublic, key []byte) (uint64, error) {
		if err := c.increment(p, key); err != nil {
			return 0, err
		}
		return c.count(p, key)
	})
	if err != nil {
		return 0, fmt.Errorf("increment counter: %w", err)
	}
	return n, nil
}

// DropCounter removes a counter, which takes the owner's authority. One that is
// gone is hsm.ErrCounter.
func (m *Module) DropCounter(ctx context.Context, counter hsm.Blob, key *hsm.Secret) error {
	_, err := counting(ctx, m, counter, key, func(c *chip, p nvPublic, key []byte) (uint64, error) {
		if _, err := c.count(p, key); err != nil { // whose it is
			return 0, err
		}
		return 0, c.undefine(p)
	})
	if err != nil {
		return fmt.Errorf("drop counter: %w", err)
	}
	return nil
}

// counting runs one step with a counter that is checked to be of this chip.
func counting(ctx context.Context, m *Module, counter hsm.Blob, key *hsm.Secret,
	step func(*chip, nvPublic, []byte) (uint64, error)) (uint64, error) {
	if err := hsm.CheckCounterKey(key); err != nil {
		return 0, err
	}
	item, p, err := decodeCounter(counter)
	if err != nil {
		return 0, err
	}
	input := key.Clone()
	again := false
	return do(ctx, m, input, func(c *chip) (uint64, error) {
		if err := c.rootFor(item.Owner); err != nil {
			return 0, err
		}
		n, err := step(c, p, input.Bytes())
		if err != nil && (denied(err) || lost(err)) {
			return 0, c.whyNoCounter(p, err, &again)
		}
		return n, err
	})
}

// decodeCounter takes a counter's blob apart, before the chip is asked.
func decodeCounter(b hsm.Blob) (hsm.Item, nvPublic, error) {
	item, err := hsm.DecodeFor(bytes.Clone(b), hsm.KindTPM, hsm.PurposeCounter)
	if err != nil {
		return item, nvPublic{}, err
	}
	p, ok := decodeNV(item.Public)
	if !ok || len(item.Sealed) != 0 || p.attributes&nvWritten == 0 {
		return item, p, fmt.Errorf("%w: not a counter of ours", hsm.ErrBlob)
	}
	return item, p, nil
}

// whyNoCounter finds out what is behind a refusal: the counter is gone, it is
// another one, or our session is out of step, which again lets happen once.
func (c *chip) whyNoCounter(p nvPublic, refused error, again *bool) error {
	public, err := c.readNVPublic(p.handle)
	switch {
	case is(err, tpm2.TPMRCHandle):
		return fmt.Errorf("%w: nothing stands at handle %#x; somebody removed it, or cleared the TPM", hsm.ErrCounter, uint32(p.handle))
	case err != nil:
		return err
	case !bytes.Equal(public, p.encode()):
		return fmt.Errorf("%w: another one stands at handle %#x; somebody removed it and made that one", hsm.ErrCounter, uint32(p.handle))
	case !*again:
		*again = true
		return &againError{refused}
	case denied(refused):
		return fmt.Errorf("%w: the one at handle %#x has another key (%v)", hsm.ErrCounter, uint32(p.handle), refused)
	}
	return refused
}

// defineTries is how often define looks for a handle, when other programs take
// and give back handles at the same time.
const defineTries = 3

// define takes a handle for a counter.
func (c *chip) define(key []byte) (p nvPublic, err error) {
	for range defineTries {
		if p, err = c.defineOnce(key); !is(err, tpm2.TPMRCNVDefined, tpm2.TPMRCHandle) {
			return p, err
		}
	}
	return p, fmt.Errorf("%w: other programs define and remove indices at the same time; try again (%v)", hsm.ErrNoCounter, err)
}

// newCounter defines a counter and increments it once: from then on its Name
// stays the same, and only then a blob of it is handed out.
func (c *chip) newCounter(key []byte) (hsm.Blob, error) {
	p, err := c.define(key)
	if err != nil {
		return nil, err
	}
	if err := c.increment(p, key); err != nil {
		return nil, err
	}
	p = p.written()
	if _, err := c.count(p, key); err != nil {
		return nil, err
	}
	return hsm.Item{Kind: hsm.KindTPM, Purpose: hsm.PurposeCounter, Owner: c.root.id(), Public: p.encode()}.Encode()
}

// defineOnce takes the first handle that is free, or was left half made. That
// another program was faster with that one is TPM_RC_NV_DEFINED or TPM_RC_HANDLE.
func (c *chip) defineOnce(key []byte) (nvPublic, error) {
	taken, err := c.handles(FirstCounter, MaxCounters)
	if err != nil {
		return nvPublic{}, err
	}
	p := nvPublic{attributes: nvAttributes}
	rand.Read(p.policy[:])
	for p.handle = FirstCounter; p.handle < FirstCounter+MaxCounters; p.handle++ {
		if taken[p.handle] {
			continue
		}
		err := c.defineAt(p, key)
		if is(err, tpm2.TPMRCNVDefined) { // another program was faster
			continue
		}
		return p, err
	}
	for p.handle = FirstCounter; p.handle < FirstCounter+MaxCounters; p.handle++ {
		// A counter of ours that was never incremented: power failed in
		// newCounter, nobody has its blob.
		old, err := c.readNVPublic(p.handle)
		half, ok := decodeNV(old)
		if err != nil || !ok || half.attributes&nvWritten != 0 {
			continue
		}
		if err := c.undefine(half); err != nil {
			return p, err
		}
		return p, c.defineAt(p, key)
	}
	return p, fmt.Errorf("%w: all %d handles from %#x on are taken; remove one that no store uses any more: tpm2_nvundefine -C o HANDLE",
		hsm.ErrNoCounter, MaxCounters, uint32(FirstCounter))
}

// defineAt is TPM2_NV_DefineSpace: the key crosses encrypted.
func (c *chip) defineAt(p nvPublic, key []byte) error {
	auth, err := c.auth(encIn)
	if err != nil {
		return err
	}
	params := make([]byte, 0, 2+len(key)+2+nvPublicSize)
	defer clear(params[:cap(params)])
	params = sized(sized(params, key), p.encode())
	_, _, err = c.ask(command{
		code: tpm2.TPMCCNVDefineSpace, handles: []entity{permanent(tpm2.TPMRHOwner)}, auth: auth,
		params: params,
	})
	switch {
	case denied(err):
		return fmt.Errorf("%w: a counter needs the owner; take its password away, or use the store without a counter (%v)", hsm.ErrOwnerAuth, err)
	case is(err, tpm2.TPMRCNVSpace):
		return fmt.Errorf("%w: the TPM's own memory is full; see tpm2_getcap handles-nv-index, and remove what nobody needs", hsm.ErrNoCounter)
	}
	return err
}

// undefine is TPM2_NV_UndefineSpace.
func (c *chip) undefine(p nvPublic) error {
	auth, err := c.auth(plain)
	if err != nil {
		return err
	}
	_, _, err = c.ask(command{
		code: tpm2.TPMCCNVUndefineSpace, handles: []entity{permanent(tpm2.TPMRHOwner), p.entity()}, auth: auth,
	})
	if denied(err) {
		return fmt.Errorf("%w: only the owner removes a counter: tpm2_nvundefine -C o -P PASSWORD %#x (%v)", hsm.ErrOwnerAuth, uint32(p.handle), err)
	}
	return err
}

// increment is TPM2_NV_Increment.
func (c *chip) increment(p nvPublic, key []byte) error {
	auth, err := c.authWith(plain, key)
	if err != nil {
		return err
	}
	_, _, err = c.ask(command{code: tpm2.TPMCCNVIncrement, handles: []entity{p.entity(), p.entity()}, auth: auth})
	return err
}

// count is TPM2_NV_Read: the HMAC of its answer says that the chip itself gave
// this number, now.
func (c *chip) count(p nvPublic, key []byte) (uint64, error) {
	auth, err := c.authWith(plain, key)
	if err != nil {
		return 0, err
	}
	_, params, err := c.ask(command{
		code: tpm2.TPMCCNVRead, handles: []entity{p.entity(), p.entity()}, auth: auth,
		params: []byte{0, countSize, 0, 0}, // size, offset
	})
	if err != nil {
		return 0, err
	}
	n, err := only(params)
	if err != nil || len(n) != countSize {
		return 0, errResponse
	}
	return binary.BigEndian.Uint64(n), nil
}

// readNVPublic is TPM2_NV_ReadPublic: the TPMS_NV_PUBLIC at a handle.
func (c *chip) readNVPublic(h tpm2.TPMHandle) ([]byte, error) {
	_, params, err := c.ask(command{code: tpm2.TPMCCNVReadPublic, handles: []entity{{handle: h}}})
	if err != nil {
		return nil, err
	}
	public, _, err := unsized(params)
	return public, err
}
