package tpm_test

// Secrets sealed to the boot: what opens them, what does not, and what is said
// then.

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/tpm"
)

var bootRegisters = []int{7, 0, 14}

// bootedTPM is a machine whose firmware measured what it started.
func bootedTPM(t *testing.T) *hsmtest.TPM {
	t.Helper()
	p := hsmtest.NewTPM(t)
	p.Measure("kernel 1")
	return p
}

// reboot starts the machine anew, with that kernel.
func reboot(p *hsmtest.TPM, kernel string) {
	p.Kill()
	p.Start()
	p.Measure(kernel)
}

func vendor(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
}

// sealBoot seals and closes the module again.
func sealBoot(t *testing.T, p *hsmtest.TPM, secret *hsm.Secret, policy hsm.BootPolicy) hsm.Blob {
	t.Helper()
	m := open(t, p.Socket)
	defer m.Close()
	b, err := m.SealBoot(t.Context(), secret, policy)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// unsealBoot opens, as a machine that just started does.
func unsealBoot(t *testing.T, p *hsmtest.TPM, b hsm.Blob, approvals ...hsm.Approval) (*hsm.Secret, error) {
	t.Helper()
	m := open(t, p.Socket)
	defer m.Close()
	return m.UnsealBoot(t.Context(), b, approvals)
}

func pcrs(t *testing.T, p *hsmtest.TPM, registers ...int) hsm.PCRs {
	t.Helper()
	m := open(t, p.Socket)
	defer m.Close()
	return must(m.PCRs(t.Context(), registers))
}

func wantBootError(t *testing.T, err error, changed ...int) {
	t.Helper()
	boot, ok := errors.AsType[*hsm.BootError](err)
	if !ok || !errors.Is(err, hsm.ErrBoot) || !slices.Equal(boot.Changed, changed) {
		t.Errorf("%v, want %v with the registers %v", err, hsm.ErrBoot, changed)
	}
}

// machine is one in front of a TPM, which open opens.
func machine(p *hsmtest.TPM, open hsmtest.Open) hsmtest.Machine {
	return hsmtest.Machine{Open: open, Approve: tpm.Approve, Boot: func(t *testing.T, kernel string) {
		p.Kill()
		p.Start()
		if kernel != "" {
			p.Measure(kernel)
		}
	}}
}

func TestBootSealer(t *testing.T) {
	hsmtest.RunBoot(t, func(t *testing.T) hsmtest.Machine {
		p := hsmtest.NewTPM(t)
		return machine(p, func(t *testing.T) hsm.Module { return open(t, p.Socket) })
	})
}

func TestBootSealerDevice(t *testing.T) {
	hsmtest.RunBoot(t, func(t *testing.T) hsmtest.Machine {
		p := hsmtest.NewTPM(t)
		n := newNodeAt(t, p.Socket)
		return machine(p, func(t *testing.T) hsm.Module { return n.module(t, wait) })
	})
}

func TestPCRs(t *testing.T) {
	p := bootedTPM(t)
	all := make([]int, hsm.PCRCount) // more than the chip gives in one answer
	for n := range all {
		all[n] = n
	}
	got := pcrs(t, p, all...)
	if len(got) != hsm.PCRCount {
		t.Fatalf("%d registers", len(got))
	}
	for r, v := range got {
		out := p.Tool("tpm2_pcrread", "-Q", "-o", "pcr", fmt.Sprintf("sha256:%d", r))
		if raw := p.Tool("cat", "pcr"); string(v[:]) != raw {
			t.Errorf("register %d is %x, tpm2-tools have %x%s", r, v, raw, out)
		}
	}
	m := open(t, p.Socket)
	defer m.Close()
	for _, r := range []int{-1, 24} {
		if _, err := m.PCRs(t.Context(), []int{r}); err == nil {
			t.Errorf("register %d was read", r)
		}
	}
}

func TestSealBoot(t *testing.T) {
	p := bootedTPM(t)
	secret := hsm.RandomSecret(hsm.MaxSealed)
	b := sealBoot(t, p, secret, hsm.BootPolicy{Registers: bootRegisters})
	opens := func() {
		t.Helper()
		if got, err := unsealBoot(t, p, b); err != nil || !got.Equal(secret) {
			t.Errorf("%v", err)
		}
	}
	opens()
	reboot(p, "kernel 1")
	opens()
	reboot(p, "kernel 2")
	m := open(t, p.Socket)
	for range 6 { // twice the places for sessions
		_, err := m.UnsealBoot(t.Context(), b, nil)
		wantBootError(t, err, 14)
	}
	if _, err := m.Seal(t.Context(), secret); err != nil {
		t.Errorf("the chip serves nothing else any more: %v", err)
	}
	m.Close()
	nothingLeft(t, p)
	p.Extend(0, "other firmware")
	_, err := unsealBoot(t, p, b)
	wantBootError(t, err, 0, 14)
	reboot(p, "kernel 1")
	opens()
	if got := lockouts(t, p); got != 0 {
		t.Errorf("the TPM counts %d wrong guesses", got)
	}
}

// req: C1 (a bond to a boot that nobody measures is none, and is refused)
func TestSealBootNotMeasured(t *testing.T) {
	p := hsmtest.NewTPM(t)
	key := vendor(t)
	m := open(t, p.Socket)
	for name, policy := range map[string]hsm.BootPolicy{
		"zeros":        {Registers: []int{7, 14}},
		"signed zeros": {Registers: []int{7, 14}, Authority: &key.PublicKey},
		"given zeros":  {Registers: []int{7}, Values: hsm.PCRs{7: {}}},
		"no launch":    {Registers: []int{17, 18}}, // hold ones
	} {
		if _, err := m.SealBoot(t.Context(), hsm.RandomSecret(32), policy); !errors.Is(err, hsm.ErrNotMeasured) {
			t.Errorf("%s: %v, want %v", name, err, hsm.ErrNotMeasured)
		}
	}
	m.Close()
	if _, err := tpm.Approve(key, hsm.PCRs{7: {}}); !errors.Is(err, hsm.ErrNotMeasured) {
		t.Errorf("zeros are approved: %v", err)
	}
	p.Extend(14, "something")
	sealBoot(t, p, hsm.RandomSecret(32), hsm.BootPolicy{Registers: []int{7, 14}})
}

// A refused opening gives its session back: the chip is never found full.
func TestRefusedBootKeepsNoSession(t *testing.T) {
	p := bootedTPM(t)
	b := sealBoot(t, p, hsm.RandomSecret(32), hsm.BootPolicy{Registers: bootRegisters})
	p.Extend(14, "more")
	bus := hsmtest.NewBus(t, p.Socket, nil)
	m := open(t, bus.Socket)
	const refusals = 6 // twice the places
	for range refusals {
		_, err := m.UnsealBoot(t.Context(), b, nil)
		wantBootError(t, err, 14)
	}
	if n := count(bus, tpm2.TPMCCStartAuthSession); n != refusals {
		t.Errorf("%d sessions were started, want %d", n, refusals)
	}
	if n := count(bus, tpm2.TPMCCGetCapability); n != 0 {
		t.Error("the chip was full and had to be cleared")
	}
}

// A chip without the bank says so.
func TestSealBootNoBank(t *testing.T) {
	p := hsmtest.NewTPM(t)
	p.Tool("tpm2_pcrallocate", "-Q", "sha1:all+sha256:none")
	p.Kill()
	p.Start()
	m := open(t, p.Socket)
	defer m.Close()
	if _, err := m.SealBoot(t.Context(), hsm.RandomSecret(32), hsm.BootPolicy{Registers: []int{7}}); !errors.Is(err, hsm.ErrNotMeasured) || !strings.Contains(err.Error(), "bank") {
		t.Errorf("%v, want %v", err, hsm.ErrNotMeasured)
	}
}

// Of another chip the registers say nothing: it is not called a changed boot, nor
// an approval that is missing.
func TestUnsealBootOnAnotherChip(t *testing.T) {
	vendor := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	m := open(t, bootedTPM(t).Socket)
	other := open(t, bootedTPM(t).Socket)
	defer m.Close()
	defer other.Close()
	for name, policy := range map[string]hsm.BootPolicy{
		"values": {Registers: []int{7}}, "authority": {Registers: []int{7}, Authority: &vendor.PublicKey},
	} {
		blob := must(m.SealBoot(t.Context(), hsm.RandomSecret(32), policy))
		if _, err := other.UnsealBoot(t.Context(), blob, nil); !errors.Is(err, hsm.ErrReplaced) || errors.Is(err, hsm.ErrBoot) {
			t.Errorf("%s: %v, want %v", name, err, hsm.ErrReplaced)
		}
	}
}

func TestSealBootRefuses(t *testing.T) {
	p := bootedTPM(t)
	m := open(t, p.Socket)
	defer m.Close()
	p384 := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	for name, policy := range map[string]hsm.BootPolicy{
		"none":           {},
		"too many":       {Registers: []int{0, 1, 2, 3, 4, 5, 6, 7, 8}},
		"twice":          {Registers: []int{7, 7}},
		"no such":        {Registers: []int{24}},
		"negative":       {Registers: []int{-1}},
		"resettable":     {Registers: []int{7, 16}},
		"application":    {Registers: []int{23}},
		"value missing":  {Registers: []int{0, 7}, Values: hsm.PCRs{7: {1}}},
		"other value":    {Registers: []int{7}, Values: hsm.PCRs{8: {1}}},
		"other key size": {Registers: []int{7}, Authority: &p384.PublicKey},
	} {
		if _, err := m.SealBoot(t.Context(), hsm.RandomSecret(32), policy); err == nil {
			t.Errorf("%s: sealed", name)
		}
	}
	good := hsm.BootPolicy{Registers: []int{7}}
	for name, s := range map[string]*hsm.Secret{"empty": hsm.NewSecret(nil), "long": hsm.RandomSecret(hsm.MaxSealed + 1)} {
		if _, err := m.SealBoot(t.Context(), s, good); err == nil {
			t.Errorf("%s: sealed", name)
		}
	}
	if _, err := m.UnsealBoot(t.Context(), must(m.Seal(t.Context(), hsm.RandomSecret(1))), nil); !errors.Is(err, hsm.ErrBlob) {
		t.Errorf("a secret without a bond: %v", err)
	}
	if _, err := m.Unseal(t.Context(), must(m.SealBoot(t.Context(), hsm.RandomSecret(1), good))); !errors.Is(err, hsm.ErrBlob) {
		t.Errorf("a secret with a bond, opened without: %v", err)
	}
}

// Under a bond of values each byte counts; under an authority all but the values
// of sealing time, which only serve to say what changed.
func TestBootTampered(t *testing.T) {
	p := bootedTPM(t)
	key := vendor(t)
	now := pcrs(t, p, 0, 14)
	approval := must(tpm.Approve(key, now))
	secret := hsm.RandomSecret(32)
	m := open(t, p.Socket)
	defer m.Close()
	for name, policy := range map[string]hsm.BootPolicy{
		"values":    {Registers: []int{0, 14}},
		"authority": {Registers: []int{0, 14}, Authority: &key.PublicKey},
	} {
		b := must(m.SealBoot(t.Context(), secret, policy))
		hints := [2]int{0, 0}
		if policy.Authority != nil {
			hints = [2]int{35 + 2 + 4 + 64, 35 + 2 + 4 + 64 + 2*32}
		}
		for n := range b {
			bad := slices.Clone(b)
			bad[n] ^= 1 << (n % 8)
			got, err := m.UnsealBoot(t.Context(), bad, []hsm.Approval{approval})
			switch {
			case n >= hints[0] && n < hints[1]:
				if err != nil || !got.Equal(secret) {
					t.Fatalf("%s: hint %d flipped: %v", name, n, err)
				}
			case !errors.Is(err, hsm.ErrBlob) && !errors.Is(err, hsm.ErrReplaced):
				t.Fatalf("%s: byte %d of %d flipped: %v", name, n, len(b), err)
			}
		}
	}
}

// req: C1 (the store's key is never seen on the bus)
func TestBusShowsNoBootSecret(t *testing.T) {
	p := bootedTPM(t)
	key := vendor(t)
	now := pcrs(t, p, 7)
	path, recorded := hsmtest.Record(t, p.Socket)
	m := open(t, path)
	secret := hsm.RandomSecret(32)
	plain := must(m.SealBoot(t.Context(), secret, hsm.BootPolicy{Registers: []int{7}}))
	signed := must(m.SealBoot(t.Context(), secret, hsm.BootPolicy{Registers: []int{7}, Authority: &key.PublicKey}))
	a := must(m.UnsealBoot(t.Context(), plain, nil))
	b := must(m.UnsealBoot(t.Context(), signed, []hsm.Approval{must(tpm.Approve(key, now))}))
	if !a.Equal(secret) || !b.Equal(secret) {
		t.Fatal("the module does not do what it should; the record proves nothing")
	}
	if shows(recorded(), secret.Bytes()) {
		t.Error("the secret crosses the bus in clear")
	}
	value := now[7]
	if !shows(recorded(), value[:]) {
		t.Error("the recorder does not even see the register, which is read in clear")
	}
}

// From Open to the store's key: what a start costs on a chip.
func TestCommandsToUnsealBoot(t *testing.T) {
	p := bootedTPM(t)
	key := vendor(t)
	now := pcrs(t, p, bootRegisters...)
	plain := sealBoot(t, p, hsm.RandomSecret(32), hsm.BootPolicy{Registers: bootRegisters})
	signed := sealBoot(t, p, hsm.RandomSecret(32), hsm.BootPolicy{Registers: bootRegisters, Authority: &key.PublicKey})
	start := []tpm2.TPMCC{tpm2.TPMCCReadPublic, tpm2.TPMCCLoad, tpm2.TPMCCStartAuthSession, tpm2.TPMCCPolicyPCR}
	for name, c := range map[string]struct {
		blob hsm.Blob
		want []tpm2.TPMCC
	}{
		"values": {plain, slices.Concat(start, []tpm2.TPMCC{tpm2.TPMCCUnseal})},
		"signed": {signed, slices.Concat(start, []tpm2.TPMCC{tpm2.TPMCCLoadExternal, tpm2.TPMCCVerifySignature,
			tpm2.TPMCCPolicyAuthorize, tpm2.TPMCCFlushContext, tpm2.TPMCCUnseal})},
	} {
		bus := hsmtest.NewBus(t, p.Socket, nil)
		m := open(t, bus.Socket)
		must(m.UnsealBoot(t.Context(), c.blob, []hsm.Approval{must(tpm.Approve(key, now))}))
		got := bus.Commands()
		m.Close()
		t.Logf("%s: %d commands from Open to the secret", name, len(got))
		if len(got) != len(c.want) || c.blob[2] == plain[2] && name == "values" && len(got) > maxUnseal {
			t.Fatalf("%s: commands %x, want %x", name, got, c.want)
		}
		for n := range got {
			if got[n] != uint32(c.want[n]) {
				t.Errorf("%s: commands %x, want %x", name, got, c.want)
				break
			}
		}
	}
}
