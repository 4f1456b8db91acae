package hsmtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"maps"
	"net"
	"slices"
	"testing"

	"github.com/kagimori/kagimori/hsm"
)

// A Machine boots. Its firmware measures into the registers 0, 7 and 14.
type Machine struct {
	Open Open
	// Boot starts it anew, with that kernel; "" is one that measures nothing.
	Boot func(t *testing.T, kernel string)
	// Approve signs measurements as a vendor.
	Approve func(vendor crypto.Signer, values hsm.PCRs) (hsm.Approval, error)
}

// booted are the registers that a Machine measures into.
var booted = []int{0, 7, 14}

// Measure is what firmware does before it starts a kernel.
func (p *TPM) Measure(kernel string) {
	p.t.Helper()
	p.Extend(0, "firmware")
	p.Extend(7, "secure boot")
	p.Extend(14, kernel)
}

// Extend measures what into a register (TPM2_PCR_Extend). One client at a time:
// modules on the same TPM must be closed.
func (p *TPM) Extend(register int, what string) {
	p.t.Helper()
	be := binary.BigEndian
	digest := sha256.Sum256([]byte(what))
	b := []byte{0x80, 0x02, 0, 0, 0, 0, 0, 0, 0x01, 0x82} // TPM_CC_PCR_Extend
	b = be.AppendUint32(b, uint32(register))
	b = append(b, 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 1, 0, 0) // no password
	b = append(append(b, 0, 0, 0, 1, 0, 0x0b), digest[:]...)
	be.PutUint32(b[2:], uint32(len(b)))
	conn, err := net.Dial("unix", p.Socket)
	if err != nil {
		p.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(b); err != nil {
		p.t.Fatal(err)
	}
	response, err := frame(conn)
	if err != nil || Code(response) != 0 {
		p.t.Fatalf("extend register %d: %x, %v", register, response, err)
	}
}

// RunBoot holds a module that is a hsm.BootSealer to its contract. place makes a
// new machine.
func RunBoot(t *testing.T, place func(t *testing.T) Machine) {
	for name, check := range map[string]func(*testing.T, Machine){
		"Values": checkBootValues, "Ahead": checkBootAhead, "Signed": checkBootSigned, "NotMeasured": checkNotMeasured,
	} {
		t.Run(name, func(t *testing.T) { check(t, place(t)) })
	}
	t.Run("Foreign", func(t *testing.T) {
		ours, theirs := place(t), place(t)
		ours.Boot(t, "kernel 1")
		theirs.Boot(t, "kernel 1")
		b := ours.seal(t, hsm.RandomSecret(32), hsm.BootPolicy{Registers: booted})
		if _, err := theirs.unseal(t, b); !errors.Is(err, hsm.ErrReplaced) {
			t.Errorf("another machine, booted alike: %v, want %v", err, hsm.ErrReplaced)
		}
	})
}

// with opens the module for one use, as a machine that just started does.
func (m Machine) with(t *testing.T, use func(hsm.BootSealer)) {
	t.Helper()
	module := m.Open(t)
	defer closeModule(t, module)
	use(module.(hsm.BootSealer))
}

func (m Machine) seal(t *testing.T, secret *hsm.Secret, policy hsm.BootPolicy) (b hsm.Blob) {
	t.Helper()
	m.with(t, func(s hsm.BootSealer) {
		input := secret.Clone()
		var err error
		b, err = s.SealBoot(t.Context(), input, policy)
		input.Wipe() // the module must not need it any more
		if err != nil {
			t.Fatalf("seal to the boot: %v", err)
		}
	})
	return b
}

func (m Machine) unseal(t *testing.T, b hsm.Blob, approvals ...hsm.Approval) (got *hsm.Secret, err error) {
	t.Helper()
	m.with(t, func(s hsm.BootSealer) { got, err = s.UnsealBoot(t.Context(), b, approvals) })
	return got, err
}

func (m Machine) opens(t *testing.T, b hsm.Blob, want *hsm.Secret, approvals ...hsm.Approval) {
	t.Helper()
	if got, err := m.unseal(t, b, approvals...); err != nil || !got.Equal(want) {
		t.Errorf("it does not open: %v", err)
	}
}

// refuses wants a *hsm.BootError that names the registers.
func (m Machine) refuses(t *testing.T, b hsm.Blob, changed []int, approvals ...hsm.Approval) {
	t.Helper()
	_, err := m.unseal(t, b, approvals...)
	boot, ok := errors.AsType[*hsm.BootError](err)
	if !ok || !errors.Is(err, hsm.ErrBoot) || !slices.Equal(boot.Changed, changed) {
		t.Errorf("%v, want %v with the registers %v", err, hsm.ErrBoot, changed)
	}
}

func (m Machine) pcrs(t *testing.T) (values hsm.PCRs) {
	t.Helper()
	m.with(t, func(s hsm.BootSealer) {
		var err error
		if values, err = s.PCRs(t.Context(), booted); err != nil {
			t.Fatalf("read registers: %v", err)
		}
	})
	return values
}

func (m Machine) approve(t *testing.T, vendor crypto.Signer, values hsm.PCRs) hsm.Approval {
	t.Helper()
	a, err := m.Approve(vendor, values)
	if err != nil {
		t.Fatalf("approve: %v", err)
	}
	return a
}

func newVendor(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func checkBootValues(t *testing.T, m Machine) {
	m.Boot(t, "kernel 1")
	secret := hsm.RandomSecret(hsm.MaxSealed)
	b := m.seal(t, secret, hsm.BootPolicy{Registers: []int{14, 0, 7}})
	m.opens(t, b, secret)
	m.Boot(t, "kernel 1")
	m.opens(t, b, secret)
	m.Boot(t, "kernel 2")
	m.refuses(t, b, []int{14})
	m.Boot(t, "")
	m.refuses(t, b, booted)
	m.Boot(t, "kernel 1")
	m.opens(t, b, secret)
}

// checkBootAhead is the second slot of an update: sealed to what is not there yet.
func checkBootAhead(t *testing.T, m Machine) {
	m.Boot(t, "kernel 2")
	next := m.pcrs(t)
	m.Boot(t, "kernel 1")
	secret := hsm.RandomSecret(32)
	b := m.seal(t, secret, hsm.BootPolicy{Registers: booted, Values: next})
	m.refuses(t, b, []int{14})
	m.Boot(t, "kernel 2")
	m.opens(t, b, secret)
}

func checkBootSigned(t *testing.T, m Machine) {
	key, other := newVendor(t), newVendor(t)
	m.Boot(t, "kernel 1")
	one := m.approve(t, key, m.pcrs(t))
	secret := hsm.RandomSecret(32)
	b := m.seal(t, secret, hsm.BootPolicy{Registers: booted, Authority: &key.PublicKey})
	m.opens(t, b, secret, one)
	m.refuses(t, b, nil) // nothing changed, but nobody said that it is good
	m.Boot(t, "kernel 2")
	m.refuses(t, b, []int{14}, one)
	now := m.pcrs(t)
	two := m.approve(t, key, now)
	for _, all := range [][]hsm.Approval{{two}, {one, two}, {two, one}, {{}, one, one, two}} {
		m.opens(t, b, secret, all...)
	}
	m.refuses(t, b, []int{14}, m.approve(t, other, now))
	fewer := maps.Clone(now)
	delete(fewer, 14)
	m.refuses(t, b, []int{14}, m.approve(t, key, fewer))
}

func checkNotMeasured(t *testing.T, m Machine) {
	m.Boot(t, "")
	key := newVendor(t)
	m.with(t, func(s hsm.BootSealer) {
		for name, policy := range map[string]hsm.BootPolicy{
			"zeros":        {Registers: booted},
			"signed zeros": {Registers: booted, Authority: &key.PublicKey},
			"given zeros":  {Registers: []int{7}, Values: hsm.PCRs{7: {}}},
		} {
			if _, err := s.SealBoot(t.Context(), hsm.RandomSecret(32), policy); !errors.Is(err, hsm.ErrNotMeasured) {
				t.Errorf("%s: %v, want %v", name, err, hsm.ErrNotMeasured)
			}
		}
	})
}
