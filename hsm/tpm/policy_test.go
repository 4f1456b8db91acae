package tpm_test

// Signed policies: what a vendor's approval opens.

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/tpm"
)

// With a signed policy an update needs no sealing anew: the same blob opens
// under whatever the vendor approves, and under nothing else.
func TestSealBootSigned(t *testing.T) {
	p := bootedTPM(t)
	key, other := vendor(t), vendor(t)
	one := must(tpm.Approve(key, pcrs(t, p, bootRegisters...)))
	secret := hsm.RandomSecret(32)
	b := sealBoot(t, p, secret, hsm.BootPolicy{Registers: bootRegisters, Authority: &key.PublicKey})
	opens := func(approvals ...hsm.Approval) {
		t.Helper()
		if got, err := unsealBoot(t, p, b, approvals...); err != nil || !got.Equal(secret) {
			t.Errorf("%v", err)
		}
	}
	opens(one)
	_, err := unsealBoot(t, p, b)
	wantBootError(t, err) // nothing changed, but nobody said it is good
	reboot(p, "kernel 2")
	_, err = unsealBoot(t, p, b, one)
	wantBootError(t, err, 14)
	now := pcrs(t, p, bootRegisters...)
	two := must(tpm.Approve(key, now))
	opens(two)
	opens(one, two)
	opens(hsm.Approval{}, one, one, two)
	// The closest approval is the one that the difference is told to.
	far := maps.Clone(now)
	far[0], far[7], far[14] = [32]byte{1}, [32]byte{1}, [32]byte{1}
	_, err = unsealBoot(t, p, b, must(tpm.Approve(key, far)), one)
	wantBootError(t, err, 14)

	forged := must(tpm.Approve(other, now))
	_, err = unsealBoot(t, p, b, forged)
	wantBootError(t, err, 14)
	delete(far, 0)
	far[7], far[14] = now[7], now[14]
	_, err = unsealBoot(t, p, b, must(tpm.Approve(key, far))) // of fewer registers
	wantBootError(t, err, 14)
	m := open(t, p.Socket)
	for range 6 {
		m.UnsealBoot(t.Context(), b, []hsm.Approval{one})
	}
	opened, err := m.UnsealBoot(t.Context(), b, []hsm.Approval{two})
	if err != nil || !opened.Equal(secret) {
		t.Error(err)
	}
	m.Close()
	nothingLeft(t, p)
}

// The chip itself refuses an approval that our own check would let through.
func TestSealBootSignedIsTheChipsWord(t *testing.T) {
	p := bootedTPM(t)
	key, other := vendor(t), vendor(t)
	now := pcrs(t, p, bootRegisters...)
	b := sealBoot(t, p, hsm.RandomSecret(32), hsm.BootPolicy{Registers: bootRegisters, Authority: &key.PublicKey})
	m := open(t, p.Socket)
	defer m.Close()
	for name, a := range map[string]hsm.Approval{
		"another key": must(tpm.Approve(other, now)),
		"altered":     {Values: now, Signature: must(tpm.Approve(key, hsm.PCRs{7: {1}, 0: {2}, 14: {3}})).Signature},
	} {
		if _, err := tpm.UnsealUnchecked(t.Context(), m, b, a); err == nil {
			t.Errorf("%s: it opens", name)
		}
	}
	if _, err := tpm.UnsealUnchecked(t.Context(), m, b, must(tpm.Approve(key, now))); err != nil {
		t.Errorf("the good one: %v; the test proves nothing", err)
	}
}

func TestCheckApproval(t *testing.T) {
	key, other := vendor(t), vendor(t)
	values := hsm.PCRs{7: {1}, 14: {2}}
	a := must(tpm.Approve(key, values))
	if err := tpm.CheckApproval(&key.PublicKey, a); err != nil {
		t.Error(err)
	}
	values[7] = [32]byte{9} // the caller's map, not the approval's
	if a.Values[7] != [32]byte{1} {
		t.Error("the approval keeps its caller's map")
	}
	bad := func(change func(*hsm.Approval)) hsm.Approval {
		b := hsm.Approval{Values: maps.Clone(a.Values), Signature: slices.Clone(a.Signature)}
		change(&b)
		return b
	}
	for name, b := range map[string]hsm.Approval{
		"value":      bad(func(b *hsm.Approval) { b.Values[7] = [32]byte{3} }),
		"register":   bad(func(b *hsm.Approval) { b.Values[8] = b.Values[7]; delete(b.Values, 7) }),
		"fewer":      bad(func(b *hsm.Approval) { delete(b.Values, 7) }),
		"more":       bad(func(b *hsm.Approval) { b.Values[8] = [32]byte{} }),
		"none":       bad(func(b *hsm.Approval) { b.Values = nil }),
		"signature":  bad(func(b *hsm.Approval) { b.Signature[len(b.Signature)-1] ^= 1 }),
		"unsigned":   bad(func(b *hsm.Approval) { b.Signature = nil }),
		"longer":     bad(func(b *hsm.Approval) { b.Signature = append(b.Signature, 0) }),
		"impossible": bad(func(b *hsm.Approval) { b.Values[99] = [32]byte{} }),
	} {
		if err := tpm.CheckApproval(&key.PublicKey, b); err == nil {
			t.Errorf("%s altered: still good", name)
		}
	}
	if err := tpm.CheckApproval(&other.PublicKey, a); err == nil || !strings.Contains(err.Error(), "has not signed") {
		t.Errorf("another authority: %v", err)
	}
	if err := tpm.CheckApproval(nil, a); err == nil {
		t.Error("no authority is one")
	}
}
