package store

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/tpm"
)

// A machine is a terminal with a TPM that its firmware measures the boot into.
type machine struct {
	terminal
	chip   *hsmtest.TPM
	module hsm.Module // of the last start: an emulator has one connection at a time
}

const bootRegister = 14

func measured(kernel string) (v [32]byte) {
	digest := sha256.Sum256([]byte(kernel))
	return sha256.Sum256(append(make([]byte, 32), digest[:]...)) // TPM2_PCR_Extend of zeros
}

func newMachine(t *testing.T, kernel string) *machine {
	t.Helper()
	m := &machine{terminal: newTerminal(t), chip: hsmtest.NewTPM(t)}
	t.Cleanup(m.stop)
	m.measure(kernel)
	return m
}

// stop ends the daemon's connection to the chip.
func (m *machine) stop() {
	if m.module != nil {
		m.module.Close()
	}
	m.module = nil
}

func (m *machine) measure(kernel string) {
	m.stop()
	if kernel != "" {
		m.chip.Tool("tpm2_pcrextend", fmt.Sprintf("%d:sha256=%x", bootRegister, sha256.Sum256([]byte(kernel))))
	}
}

// reboot is a power cut, and a start of that kernel.
func (m *machine) reboot(kernel string) {
	m.chip.Kill()
	m.chip.Start()
	m.measure(kernel)
}

// start opens the store as a daemon does that starts.
func (m *machine) start(t *testing.T, boot *Boot) (*Store, error) {
	t.Helper()
	m.stop()
	module, err := tpm.Open(t.Context(), m.chip.Socket, quiet())
	if err != nil {
		t.Fatal(err)
	}
	m.module = module
	cfg := m.config()
	cfg.Boot = boot
	s, err := Open(context.Background(), cfg, module, quiet())
	if err == nil {
		t.Cleanup(func() { s.Close() })
	}
	return s, err
}

func (m *machine) mustStart(t *testing.T, boot *Boot) *Store {
	t.Helper()
	s, err := m.start(t, boot)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// bound fails unless the store is sound and bound like that.
func bound(t *testing.T, s *Store, bond string, slots ...string) {
	t.Helper()
	st := s.State()
	var names []string
	for _, slot := range st.Slots {
		names = append(names, slot.Name)
	}
	if err := settled(s); err != nil || st.Bond != bond || !slices.Equal(names, slots) {
		t.Errorf("bond %q, slots %v, want %q, %v (%v)", st.Bond, names, bond, slots, err)
	}
}

var thisBoot = &Boot{Policy: hsm.BootPolicy{Registers: []int{bootRegister}}}

func TestBoundToBoot(t *testing.T) {
	m := newMachine(t, "kernel 1")
	s := m.mustStart(t, thisBoot)
	bound(t, s, bondBoot, "boot")
	update(t, s, changes[0])
	s.Close()
	m.reboot("kernel 1")
	s = m.mustStart(t, thisBoot)
	if e := s.Epoch(); e != 2 {
		t.Errorf("a start changed something: epoch %d", e)
	}
	s.Close()
	m.reboot("kernel 2")
	_, err := m.start(t, thisBoot)
	var changed *hsm.BootError
	if !errors.Is(err, hsm.ErrBoot) || !errors.As(err, &changed) || !slices.Equal(changed.Changed, []int{bootRegister}) || errors.Is(err, ErrDamaged) {
		t.Errorf("another kernel: %v", err)
	}
	m.reboot("kernel 1")
	if got := contents(t, m.mustStart(t, thisBoot)); got["credentials a"] != "first a" {
		t.Errorf("got %v", got)
	}
}

// Without measurements the store is bound to the chip, and says so.
func TestBootNotMeasured(t *testing.T) {
	m := newMachine(t, "")
	s := m.mustStart(t, thisBoot)
	bound(t, s, bondChip, "chip")
	if !s.State().NotMeasured {
		t.Error("it does not say that nothing is measured")
	}
	if err := s.Prepare(t.Context(), thisBoot.Policy); !errors.Is(err, ErrNotBound) {
		t.Errorf("prepare: %v", err)
	}
	s.Close()
	m.measure("kernel 1") // from now on the firmware measures
	s = m.mustStart(t, thisBoot)
	bound(t, s, bondBoot, "boot")
	if st := s.State(); st.NotMeasured || st.Weaker != "" {
		t.Errorf("it says that nothing is measured: %+v", st)
	}
}

// A store that was bound to the chip is bound to the boot when that is
// configured, and back; the slot from before is nowhere in the files.
func TestBondFollowsConfiguration(t *testing.T) {
	m := newMachine(t, "kernel 1")
	s := m.mustStart(t, nil)
	bound(t, s, bondChip, "chip")
	update(t, s, changes[0])
	for _, step := range []struct {
		boot *Boot
		bond string
		slot string
	}{
		{thisBoot, bondBoot, "boot"},
		{&Boot{Policy: hsm.BootPolicy{Registers: []int{bootRegister, 7}}}, bondBoot, "boot"},
		{nil, bondChip, "chip"},
		{nil, bondChip, "chip"},
	} {
		old, before := s.slotList()[0].Blob, s.Epoch()
		same := s.State().Bond == step.bond && step.boot == nil
		s.Close()
		s = m.mustStart(t, step.boot)
		bound(t, s, step.bond, step.slot)
		if same != (s.Epoch() == before) {
			t.Errorf("%s: epoch %d, then %d", step.bond, before, s.Epoch())
		}
		for _, path := range []string{m.path(), m.path() + copySuffix} {
			if body, err := os.ReadFile(path); err != nil || bytes.Contains(body, old) != same {
				t.Errorf("%s: the slot from before: in the file %v (%v)", step.bond, !same, err)
			}
		}
	}
	if got := contents(t, s); got["credentials a"] != "first a" {
		t.Errorf("got %v", got)
	}
}

// An update: prepared for, started, confirmed.
func TestUpdateOfTheSystem(t *testing.T) {
	m := newMachine(t, "kernel 1")
	s := m.mustStart(t, thisBoot)
	next := hsm.BootPolicy{Registers: []int{bootRegister}, Values: hsm.PCRs{bootRegister: measured("kernel 2")}}
	if err := s.Confirm(t.Context()); err != nil {
		t.Errorf("confirm without an update: %v", err)
	}
	wrong := hsm.BootPolicy{Registers: []int{bootRegister}, Values: hsm.PCRs{bootRegister: measured("kernel 3")}}
	for _, policy := range []hsm.BootPolicy{wrong, next} { // the second replaces the first
		if err := s.Prepare(t.Context(), policy); err != nil {
			t.Fatal(err)
		}
		bound(t, s, bondBoot, "boot-next", "boot")
	}
	if err := s.Confirm(t.Context()); !errors.Is(err, hsm.ErrBoot) {
		t.Errorf("confirm before the update: %v", err)
	}
	s.Close()
	m.reboot("kernel 1") // the update did not take place, and comes later
	s = m.mustStart(t, thisBoot)
	bound(t, s, bondBoot, "boot-next", "boot")
	update(t, s, changes[0])
	s.Close()
	m.reboot("kernel 2")
	s = m.mustStart(t, thisBoot)
	bound(t, s, bondBoot, "boot-next", "boot")
	old := s.slotList()[1].Blob
	if err := s.Confirm(t.Context()); err != nil {
		t.Fatal(err)
	}
	bound(t, s, bondBoot, "boot")
	for _, path := range []string{m.path(), m.path() + copySuffix} {
		if body, err := os.ReadFile(path); err != nil || bytes.Contains(body, old) {
			t.Errorf("the slot of the old system is in %s (%v)", path, err)
		}
	}
	s.Close()
	m.reboot("kernel 2")
	s = m.mustStart(t, thisBoot)
	bound(t, s, bondBoot, "boot")
	if got := contents(t, s); got["credentials a"] != "first a" {
		t.Errorf("got %v", got)
	}
	s.Close()
	m.reboot("kernel 1")
	if _, err := m.start(t, thisBoot); !errors.Is(err, hsm.ErrBoot) {
		t.Errorf("the old system after confirmation: %v", err)
	}
}

// With a vendor's key an update needs no second slot: what it approves opens.
func TestBoundToSignedBoot(t *testing.T) {
	m := newMachine(t, "kernel 1")
	vendor, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var approvals []hsm.Approval
	var unreadable error
	boot := &Boot{
		Policy:    hsm.BootPolicy{Registers: []int{bootRegister}, Authority: &vendor.PublicKey},
		Approvals: func() ([]hsm.Approval, error) { return approvals, unreadable },
	}
	approve := func(kernel string) {
		a, err := tpm.Approve(vendor, hsm.PCRs{bootRegister: measured(kernel)})
		if err != nil {
			t.Fatal(err)
		}
		approvals = append(approvals, a)
	}
	s := m.mustStart(t, boot)
	bound(t, s, bondChip, "chip") // nothing is approved yet: it would not open again
	if st := s.State(); st.Weaker == "" || st.NotMeasured {
		t.Errorf("it does not say why: %+v", st)
	}
	s.Close()
	approve("kernel 1")
	s = m.mustStart(t, boot)
	bound(t, s, bondSigned, "boot")
	s.Close()
	m.reboot("kernel 2")
	if _, err := m.start(t, boot); !errors.Is(err, hsm.ErrBoot) {
		t.Errorf("a kernel that nobody approved: %v", err)
	}
	approve("kernel 2")
	s = m.mustStart(t, boot)
	bound(t, s, bondSigned, "boot")
	s.Close()
	unreadable = os.ErrPermission
	if _, err := m.start(t, boot); !errors.Is(err, hsm.ErrBoot) || !errors.Is(err, os.ErrPermission) {
		t.Errorf("approvals that cannot be read: %v", err)
	}
}

// A key that was kept elsewhere opens a store that was bound to another boot.
func TestOpenWithAfterAnUpdate(t *testing.T) {
	m := newMachine(t, "kernel 1")
	s := m.mustStart(t, thisBoot)
	update(t, s, changes[0])
	var kept *hsm.Secret
	_ = s.WithKey(func(key *hsm.Secret) error { kept = key.Clone(); return nil })
	s.Close()
	m.reboot("kernel 2")
	module, err := tpm.Open(t.Context(), m.chip.Socket, quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer module.Close()
	cfg := m.config()
	cfg.Boot = thisBoot
	s, err = OpenWith(t.Context(), cfg, module, kept, quiet())
	if err != nil {
		t.Fatal(err)
	}
	bound(t, s, bondBoot, "boot")
	if st := s.State(); st.Incarnation != 0 || st.Fallback != nil {
		t.Errorf("nothing was lost, the counter is the same: %+v", st)
	}
	s.Close()
	m.reboot("kernel 2")
	if got := contents(t, m.mustStart(t, thisBoot)); got["credentials a"] != "first a" {
		t.Errorf("got %v", got)
	}
}

// From the connection to the TPM to the store key it takes 6 commands at most
// (DESIGN 5), and one more to read the counter.
func TestCommandsToTheStoreKey(t *testing.T) {
	m := newMachine(t, "kernel 1")
	for _, boot := range []*Boot{nil, thisBoot} {
		m.mustStart(t, boot).Close()
		m.stop()
		bus := hsmtest.NewBus(t, m.chip.Socket, nil)
		module, err := tpm.Open(t.Context(), bus.Socket, quiet())
		if err != nil {
			t.Fatal(err)
		}
		cfg := m.config()
		cfg.Boot = boot
		s, err := Open(t.Context(), cfg, module, quiet())
		if err != nil {
			t.Fatal(err)
		}
		n := len(bus.Commands())
		t.Logf("%s: %d commands", s.State().Bond, n)
		if n > 7 {
			t.Errorf("%s: %d commands", s.State().Bond, n)
		}
		if err := errors.Join(s.Close(), module.Close()); err != nil {
			t.Error(err)
		}
	}
}
