package tpm_test

// Storms: a chip that keeps asking for patience, signals that keep interrupting,
// a chip that refuses everything because somebody guessed.

import (
	"crypto"
	"crypto/rand"
	"errors"
	mrand "math/rand/v2"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/tpm"
)

// Every third answer is "not now", at random, to whatever command: the whole
// contract holds.
func TestModuleInRetryStorm(t *testing.T) {
	later := []tpm2.TPMRC{tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate}
	var refused atomic.Int64
	hsmtest.Run(t, func(t *testing.T) hsmtest.Open {
		bus := hsmtest.NewBus(t, hsmtest.StartTPM(t), func(command []byte, next func([]byte) []byte) []byte {
			if mrand.IntN(3) == 0 {
				refused.Add(1)
				return hsmtest.Fail(uint32(later[mrand.IntN(len(later))]))
			}
			return next(command)
		})
		return func(t *testing.T) hsm.Module { return open(t, bus.Socket) }
	})
	if refused.Load() < 100 {
		t.Errorf("%d answers of patience: the test proves nothing", refused.Load())
	}
}

// Signals come all the time, also in the middle of system calls.
func TestModuleInSignalStorm(t *testing.T) {
	got := make(chan os.Signal, 1)
	signal.Notify(got, syscall.SIGUSR1)
	defer signal.Stop(got)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				syscall.Kill(os.Getpid(), syscall.SIGUSR1)
			}
		}
	})
	defer wg.Wait()
	defer close(stop)
	p := hsmtest.NewTPM(t)
	p.Measure("kernel")
	n := newNodeAt(t, p.Socket)
	for name, open := range map[string]func(*testing.T) *tpm.Module{
		"socket": func(t *testing.T) *tpm.Module { return open(t, p.Socket) },
		"device": func(t *testing.T) *tpm.Module { return n.module(t, wait) },
	} {
		m := open(t)
		k := keep(t.Context(), m)
		for range 20 {
			if err := k.use(t.Context(), m); err != nil {
				t.Errorf("%s: %v", name, err)
				break
			}
		}
		m.Close()
	}
	if len(got) == 0 {
		t.Error("no signal came: the test proves nothing")
	}
}

// A chip that answers LOCKOUT to all that is authorised: each verb says so at
// once, sends its command once, and works again when the storm is over.
func TestLockoutStorm(t *testing.T) {
	p := hsmtest.NewTPM(t)
	p.Measure("kernel")
	var on atomic.Bool
	bus := hsmtest.NewBus(t, p.Socket, func(command []byte, next func([]byte) []byte) []byte {
		const sessions = 0x02 // the low byte of the tag: the command is authorised
		if on.Load() && command[1] == sessions {
			return hsmtest.Fail(uint32(tpm2.TPMRCLockout))
		}
		return next(command)
	})
	m := open(t, bus.Socket)
	k := keep(t.Context(), m)
	behind := must(m.SealPIN(t.Context(), k.secret, pin("1234")))
	s := must(m.Signer(t.Context(), k.key))
	ctx := t.Context()
	verbs := map[string]func() error{
		"Seal":   func() error { _, err := m.Seal(ctx, k.secret); return err },
		"Unseal": func() error { _, err := m.Unseal(ctx, k.sealed); return err },
		"SealBoot": func() error {
			_, err := m.SealBoot(ctx, k.secret, hsm.BootPolicy{Registers: bootRegisters})
			return err
		},
		"UnsealBoot":   func() error { _, err := m.UnsealBoot(ctx, k.boot, nil); return err },
		"SealPIN":      func() error { _, err := m.SealPIN(ctx, k.secret, pin("1234")); return err },
		"UnsealPIN":    func() error { _, err := m.UnsealPIN(ctx, behind, pin("1234")); return err },
		"NewKey":       func() error { _, err := m.NewKey(ctx); return err },
		"Sign":         func() error { _, err := s.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); return err },
		"ImportMAC":    func() error { _, err := m.ImportMAC(ctx, k.macKey); return err },
		"MAC":          func() error { _, err := m.MAC(ctx, k.mac, nil); return err },
		"NewCounter":   func() error { _, err := m.NewCounter(ctx, k.counterKey); return err },
		"Count":        func() error { _, err := m.Count(ctx, k.counter, k.counterKey); return err },
		"Increment":    func() error { _, err := m.Increment(ctx, k.counter, k.counterKey); return err },
		"ResetLockout": func() error { return m.ResetLockout(ctx, nil) },
	}
	on.Store(true)
	for name, verb := range verbs {
		before := authorised(bus)
		if err := verb(); !errors.Is(err, hsm.ErrLockout) {
			t.Errorf("%s: %v, want %v", name, err, hsm.ErrLockout)
		}
		if sent := authorised(bus) - before; sent != 1 {
			t.Errorf("%s: %d authorised commands, want 1", name, sent)
		}
	}
	if _, err := m.Health(ctx); err != nil {
		t.Errorf("Health: %v", err)
	}
	if _, err := m.PCRs(ctx, bootRegisters); err != nil {
		t.Errorf("PCRs: %v", err)
	}
	on.Store(false)
	for name, verb := range verbs {
		if err := verb(); err != nil {
			t.Errorf("%s, after the storm: %v", name, err)
		}
	}
}

// authorised counts the commands that carried an authorisation.
func authorised(bus *hsmtest.Bus) (n int) {
	for _, cc := range bus.Commands() {
		switch tpm2.TPMCC(cc) {
		case tpm2.TPMCCGetCapability, tpm2.TPMCCReadPublic, tpm2.TPMCCNVReadPublic, tpm2.TPMCCPCRRead, tpm2.TPMCCFlushContext,
			tpm2.TPMCCStartAuthSession, tpm2.TPMCCPolicyPCR, tpm2.TPMCCShutdown:
		default:
			n++
		}
	}
	return n
}
