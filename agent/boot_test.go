package agent

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/open"
	"github.com/kagimori/kagimori/hsm/tpm"
	"github.com/kagimori/kagimori/transport/control"
)

// measured is what a register holds after firmware has measured these digits.
func measured(digits ...string) (v [32]byte) {
	for _, d := range digits {
		m, _ := hex.DecodeString(strings.Repeat(d, 32))
		v = sha256.Sum256(append(v[:], m...))
	}
	return v
}

// reboot cuts the chip's power and measures another boot into register 7.
func (s *stage) reboot(chip *hsmtest.TPM, digits ...string) {
	s.t.Helper()
	s.stop()
	chip.Kill()
	chip.Start()
	for _, d := range digits {
		chip.Tool("tpm2_pcrextend", "7:sha256="+strings.Repeat(d, 32))
	}
	s.start()
}

func (s *stage) bindTo(b *store.Boot) {
	s.boot = b
	s.bootConfig = &BootConfig{Registers: b.Policy.Registers}
	if b.Policy.Authority != nil {
		s.bootConfig.Authority = "a vendor"
	}
}

// Two slots around an update: the machine may be booted old or new until the
// update is confirmed, and the new way only afterwards.
func TestUpdateWithTwoSlots(t *testing.T) {
	s, chip := newStage(t, open.KindTPM)
	chip.Tool("tpm2_pcrextend", "7:sha256="+strings.Repeat("11", 32))
	s.bindTo(&store.Boot{Policy: hsm.BootPolicy{Registers: []int{7}}})
	s.start()
	s.enroll()
	was := s.vault().device
	b, err := s.a.bootStatus(t.Context())
	old := measured("11")
	if err != nil || b.Bond != "boot" || len(b.Slots) != 1 || !b.Measured || b.Registers[0].Value != hex.EncodeToString(old[:]) {
		t.Fatalf("%+v, %v", b, err)
	}
	if err := s.a.confirmBoot(t.Context()); !errors.Is(err, &control.Problem{Kind: control.Conflict}) {
		t.Errorf("confirmed what was not prepared: %v", err)
	}
	for _, bad := range [][]string{nil, {"7"}, {"7=00"}, {"8=" + strings.Repeat("00", 32)}, {"24=" + strings.Repeat("00", 32)}} {
		if err := s.a.prepareBoot(t.Context(), bad); err == nil || control.AsProblem(err).Next == "" {
			t.Errorf("prepared %q: %v", bad, err)
		}
	}
	fresh := measured("22")
	if err := s.a.prepareBoot(t.Context(), []string{"7=" + hex.EncodeToString(fresh[:])}); err != nil {
		t.Fatal(err)
	}
	s.reboot(chip, "11") // the update did not come up: back to the old system
	if s.vault().device != was {
		t.Error("another device")
	}
	if err := s.a.confirmBoot(t.Context()); err == nil {
		t.Error("the old system confirmed the update")
	}
	s.reboot(chip, "33")
	s.closed(hsm.ErrBoot)
	s.reboot(chip, "22")
	if s.vault().device != was {
		t.Error("another device")
	}
	if err := s.a.confirmBoot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b, err := s.a.bootStatus(t.Context()); err != nil || len(b.Slots) != 1 || b.Bond != "boot" {
		t.Errorf("%+v, %v", b, err)
	}
	s.reboot(chip, "11")
	s.closed(hsm.ErrBoot)
	if p := s.closed(hsm.ErrBoot); !strings.Contains(p.Next, "boot show") {
		t.Errorf("%+v", p)
	}
	s.reboot(chip, "22")
	s.vault()
}

// An approval brings the keys back under a new boot, and nothing is sealed anew.
func TestApprovalOfABoot(t *testing.T) {
	vendor, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, chip := newStage(t, open.KindTPM)
	var list []hsm.Approval
	approve := func(by *ecdsa.PrivateKey, digits ...string) {
		a, err := tpm.Approve(by, hsm.PCRs{7: measured(digits...)})
		if err != nil {
			t.Fatal(err)
		}
		list = append([]hsm.Approval{a}, list...)
	}
	chip.Tool("tpm2_pcrextend", "7:sha256="+strings.Repeat("11", 32))
	s.bindTo(&store.Boot{Policy: hsm.BootPolicy{Registers: []int{7}, Authority: &vendor.PublicKey}, Approvals: func() ([]hsm.Approval, error) { return list, nil }})
	approve(vendor, "11")
	s.start()
	s.enroll()
	epoch := s.vault().store.State().Epoch
	if k := s.a.Status().Keys; k.Bond != "boot, signed" {
		t.Errorf("%+v", k)
	}
	s.reboot(chip, "22")
	s.closed(hsm.ErrBoot)
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	approve(stranger, "22")
	if err := s.a.try(t.Context(), Remedy{}); err == nil {
		t.Error("opened by a stranger's word")
	}
	approve(vendor, "22")
	if err := s.a.try(t.Context(), Remedy{}); err != nil {
		t.Fatal(err)
	}
	if now := s.vault().store.State().Epoch; now != epoch {
		t.Errorf("epoch %d after %d: something was sealed anew", now, epoch)
	}
	if err := s.a.prepareBoot(t.Context(), []string{"7=" + strings.Repeat("00", 32)}); !errors.Is(err, &control.Problem{Kind: control.Conflict}) {
		t.Errorf("prepared what needs an approval: %v", err)
	}
}

// A board that measures nothing is not bound, and says so.
func TestBootThatIsNotMeasured(t *testing.T) {
	s, _ := newStage(t, open.KindTPM)
	s.bindTo(&store.Boot{Policy: hsm.BootPolicy{Registers: []int{7, 14}}})
	s.start()
	if k := s.a.Status().Keys; !k.Open || !k.NotMeasured || k.Bond != "chip" {
		t.Errorf("%+v", k)
	}
	b, err := s.a.bootStatus(t.Context())
	if err != nil || b.Measured || !strings.Contains(b.Text, "nothing is measured") {
		t.Errorf("%+v, %v", b, err)
	}
}
