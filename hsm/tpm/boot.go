package tpm

// Secrets sealed to how the machine was booted (hsm.BootSealer): to the values
// of registers, or to whatever values a vendor signs. No auth value opens them.

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
)

// MaxApprovals is how many approvals are looked at for one secret.
const MaxApprovals = 64

// bootAttributes: only the policy opens the object, and only it could change it.
const bootAttributes = attrFixedTPM | attrFixedParent | attrAdminWithPolicy | attrNoDA

// A bond is what a secret is sealed to. Its encoding stands before the TPMT_PUBLIC
// in the public part of the blob:
//
//	registers 3 | 0 or 1, an authority 1 | authority 64, if any | a value of 32 each
//
// Registers and authority are checked against the policy in the TPMT_PUBLIC, and
// so are the values where there is no authority. Under one they are what the
// registers held at sealing, only to say what changed since; nothing depends on them.
type bond struct {
	selection selection
	authority []byte // nil, or the point of a P-256 key
	values    hsm.PCRs
}

func (b bond) encode() []byte {
	out := append([]byte{}, b.selection[:]...)
	if b.authority == nil {
		out = append(out, 0)
	} else {
		out = append(append(out, 1), b.authority...)
	}
	for _, r := range b.selection.registers() {
		v := b.values[r]
		out = append(out, v[:]...)
	}
	return out
}

// decodeBond splits a bond off the public part of a blob.
func decodeBond(p []byte) (b bond, area []byte, err error) {
	bad := fmt.Errorf("%w: what it is sealed to", hsm.ErrBlob)
	if len(p) < maskSize+1 || p[maskSize] > 1 {
		return b, nil, bad
	}
	b.selection = selection(p[:maskSize])
	if _, err := selectPCRs(b.selection.registers()); err != nil {
		return b, nil, bad
	}
	withAuthority := p[maskSize] == 1
	p = p[maskSize+1:]
	if withAuthority {
		if len(p) < pointSize {
			return b, nil, bad
		}
		b.authority, p = p[:pointSize:pointSize], p[pointSize:]
	}
	b.values = hsm.PCRs{}
	for _, r := range b.selection.registers() {
		if len(p) < pcrSize {
			return b, nil, bad
		}
		b.values[r], p = [pcrSize]byte(p[:pcrSize]), p[pcrSize:]
	}
	return b, p, nil
}

// policy is the digest of the policy that the secret has.
func (b bond) policy() []byte {
	p := b.selection.policyPCR(b.values)
	if b.authority != nil {
		p = b.selection.policyAuthorized(b.authority)
	}
	return p[:]
}

// key is the authority as Go has it, nil where there is none.
func (b bond) key() (*ecdsa.PublicKey, error) {
	if b.authority == nil {
		return nil, nil
	}
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, b.authority...))
}

// A bootBlob is a decoded Blob; its item has the TPMT_PUBLIC alone.
type bootBlob struct {
	item hsm.Item
	bond bond
	key  *ecdsa.PublicKey
}

// decodeBoot takes a blob apart, before the chip is asked.
func decodeBoot(b hsm.Blob) (bootBlob, error) {
	item, err := hsm.DecodeFor(bytes.Clone(b), hsm.KindTPM, hsm.PurposeBoot)
	if err != nil {
		return bootBlob{}, err
	}
	out := bootBlob{item: item}
	if out.bond, out.item.Public, err = decodeBond(item.Public); err != nil {
		return bootBlob{}, err
	}
	if !sealedArea(bootAttributes, out.bond.policy()).fits(out.item.Public) {
		return bootBlob{}, fmt.Errorf("%w: its public part is not that of a %v of ours", hsm.ErrBlob, hsm.PurposeBoot)
	}
	if out.key, err = out.bond.key(); err != nil {
		return bootBlob{}, fmt.Errorf("%w: its authority: %v", hsm.ErrBlob, err)
	}
	return out, nil
}

// PCRs reads registers of the SHA-256 bank, any number of them. A chip without
// that bank is hsm.ErrNotMeasured.
func (m *Module) PCRs(ctx context.Context, registers []int) (hsm.PCRs, error) {
	var s selection
	for _, r := range registers {
		if r < 0 || r >= hsm.PCRCount {
			return nil, fmt.Errorf("read registers: no register %d; there are 0 to %d", r, hsm.PCRCount-1)
		}
		s[r/8] |= 1 << (r % 8)
	}
	values, err := doBare(ctx, m, func(c *chip) (hsm.PCRs, error) { return c.readPCRs(s) })
	if err != nil {
		return nil, fmt.Errorf("read registers: %w", err)
	}
	return values, nil
}

// readPCRs is TPM2_PCR_Read, which answers with some of the values at a time.
func (c *chip) readPCRs(s selection) (hsm.PCRs, error) {
	values := hsm.PCRs{}
	for left := s; left != (selection{}); {
		_, out, err := c.ask(command{code: tpm2.TPMCCPCRRead, params: left.encode()})
		if err != nil {
			return nil, err
		}
		got, err := decodePCRs(out)
		if err != nil {
			return nil, err
		}
		if len(got) == 0 {
			return nil, fmt.Errorf("%w: this TPM has no bank of SHA-256 registers; have the firmware switch it on", hsm.ErrNotMeasured)
		}
		for r := range got {
			if !left.has(r) {
				return nil, errResponse
			}
			left[r/8] &^= 1 << (r % 8)
		}
		maps.Copy(values, got)
	}
	return values, nil
}

// decodePCRs reads the answer: update counter 4, TPML_PCR_SELECTION, TPML_DIGEST.
func decodePCRs(b []byte) (hsm.PCRs, error) {
	be := binary.BigEndian
	const head = 4 + 4
	if len(b) < head || be.Uint32(b[4:]) > 1 {
		return nil, errResponse
	}
	var s selection
	n := be.Uint32(b[4:])
	b = b[head:]
	if n == 1 {
		const one = 2 + 1 + maskSize
		if len(b) < one || be.Uint16(b) != uint16(tpm2.TPMAlgSHA256) || b[2] != maskSize {
			return nil, errResponse
		}
		s, b = selection(b[3:one]), b[one:]
	}
	registers := s.registers()
	if len(b) < 4 || uint64(be.Uint32(b)) != uint64(len(registers)) {
		return nil, errResponse
	}
	b = b[4:]
	values := hsm.PCRs{}
	for _, r := range registers {
		v, rest, err := unsized(b)
		if err != nil || len(v) != pcrSize {
			return nil, errResponse
		}
		values[r], b = [pcrSize]byte(v), rest
	}
	if len(b) != 0 {
		return nil, errResponse
	}
	return values, nil
}

// SealBoot keeps 1 to hsm.MaxSealed bytes. What is sealed to the values of now
// is opened once before its blob is handed out, so that nobody relies on values
// which something on the way to the chip made up.
func (m *Module) SealBoot(ctx context.Context, secret *hsm.Secret, policy hsm.BootPolicy) (hsm.Blob, error) {
	if err := hsm.CheckSealed(secret); err != nil {
		return nil, fmt.Errorf("seal to the boot: %w", err)
	}
	b, err := newBond(policy)
	if err != nil {
		return nil, fmt.Errorf("seal to the boot: %w", err)
	}
	input := secret.Clone()
	blob, err := do(ctx, m, input, func(c *chip) (hsm.Blob, error) { return c.sealBoot(b, input) })
	if err != nil {
		return nil, fmt.Errorf("seal to the boot: %w", err)
	}
	return blob, nil
}

// newBond is what a policy asks for; its values are nil where the chip's count.
func newBond(p hsm.BootPolicy) (b bond, err error) {
	if b.selection, err = selectPCRs(p.Registers); err != nil {
		return b, err
	}
	if p.Authority != nil {
		b.authority, err = pointOf(p.Authority)
		return b, err
	}
	if p.Values == nil {
		return b, nil
	}
	if err := b.selection.fits(p.Values); err != nil {
		return b, err
	}
	b.values = maps.Clone(p.Values)
	return b, measured(b.values)
}

func (c *chip) sealBoot(b bond, secret *hsm.Secret) (hsm.Blob, error) {
	now := b.values == nil
	if now {
		values, err := c.readPCRs(b.selection)
		if err != nil {
			return nil, err
		}
		if err := measured(values); err != nil {
			return nil, err
		}
		b.values = values
	}
	public, private, err := c.make(sealedArea(bootAttributes, b.policy()), nil, secret.Bytes())
	if err != nil {
		return nil, err
	}
	item := hsm.Item{Kind: hsm.KindTPM, Purpose: hsm.PurposeBoot, Owner: c.root.id(), Public: public, Sealed: private}
	if now && b.authority == nil {
		got, err := c.unsealBoot(bootBlob{item: item, bond: b}, nil)
		if err != nil {
			return nil, fmt.Errorf("it does not open again: %w", err)
		}
		defer got.Wipe()
		if !got.Equal(secret) {
			return nil, errors.New("something else comes back: look for a device on the TPM's bus")
		}
	}
	item.Public = append(b.encode(), public...)
	return item.Encode()
}

// UnsealBoot opens what SealBoot kept. Approvals that do not fit are passed over;
// the first that does is tried first, so put the newest there.
func (m *Module) UnsealBoot(ctx context.Context, sealed hsm.Blob, approvals []hsm.Approval) (*hsm.Secret, error) {
	b, err := decodeBoot(sealed)
	if err != nil {
		return nil, fmt.Errorf("unseal: %w", err)
	}
	good := b.good(approvals)
	secret, err := do(ctx, m, nil, func(c *chip) (*hsm.Secret, error) { return c.unsealBoot(b, good) })
	if err != nil {
		return nil, fmt.Errorf("unseal: %w", err)
	}
	return secret, nil
}

// good are the approvals that the authority signed, for these registers.
func (b bootBlob) good(approvals []hsm.Approval) (good []hsm.Approval) {
	if b.key == nil {
		return nil
	}
	for _, a := range approvals[:min(len(approvals), MaxApprovals)] {
		if b.bond.selection.fits(a.Values) == nil && CheckApproval(b.key, a) == nil {
			good = append(good, a)
		}
	}
	return good
}
