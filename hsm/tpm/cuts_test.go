package tpm_test

// Power cuts at random: the chip dies before or after any command that an agent
// sends, or just stops answering to it. The agent comes back, everything opens,
// no counter lost what it said, and no wrong guess was counted.

import (
	"context"
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/tpm"
)

func TestPowerCuts(t *testing.T) { powerCuts(t, hsmtest.NewTPM(t), 40, 0) }

func TestPowerCutsLockedOut(t *testing.T) {
	p := hsmtest.NewTPM(t)
	powerCuts(t, p, 30, lockOut(t, p))
}

// The figure of the design: 1,000 cuts leave the lockout counter unchanged.
func TestPowerCutsSoak(t *testing.T) {
	if os.Getenv("KAGIMORI_SOAK") == "" {
		t.Skip("takes minutes: make soak")
	}
	powerCuts(t, hsmtest.NewTPM(t), 1000, 0)
}

func TestPowerCutsLockedOutSoak(t *testing.T) {
	if os.Getenv("KAGIMORI_SOAK") == "" {
		t.Skip("takes minutes: make soak")
	}
	p := hsmtest.NewTPM(t)
	powerCuts(t, p, 1000, lockOut(t, p))
}

// lockOut has another program guess until the chip locks, for a year, and says
// how many guesses it counts after a restart.
func lockOut(t *testing.T, p *hsmtest.TPM) int {
	t.Helper()
	p.Tool("tpm2_dictionarylockout", "-Q", "-s", "-n", "2", "-t", "31536000", "-l", "1000")
	p.Tool("tpm2_createprimary", "-Q", "-C", "o", "-G", "ecc", "-c", "primary.ctx")
	p.Tool("tpm2_create", "-Q", "-C", "primary.ctx", "-i", "/proc/self/comm", "-u", "o.pub", "-r", "o.priv", "-p", "right",
		"-a", "fixedtpm|fixedparent|userwithauth")
	p.Tool("tpm2_flushcontext", "-t")
	p.Tool("tpm2_load", "-Q", "-C", "primary.ctx", "-u", "o.pub", "-r", "o.priv", "-c", "o.ctx")
	p.Tool("tpm2_flushcontext", "-t")
	for range 3 {
		if _, err := p.TryTool("tpm2_unseal", "-c", "o.ctx", "-p", "wrong"); err == nil {
			t.Fatal("a wrong guess opens it")
		}
		p.Tool("tpm2_flushcontext", "-t")
	}
	if _, err := p.TryTool("tpm2_unseal", "-c", "o.ctx", "-p", "right"); err == nil || !strings.Contains(err.Error(), "lockout") {
		t.Fatalf("the TPM is not locked out: %v", err)
	}
	p.Tool("tpm2_flushcontext", "-t")
	p.Kill()
	p.Start()
	return lockouts(t, p)
}

// kept is what an agent has in the chip.
type kept struct {
	secret, counterKey, macKey      *hsm.Secret
	sealed, boot, key, mac, counter hsm.Blob
	acknowledged, maxCounts         uint64
}

func keep(ctx context.Context, m *tpm.Module) *kept {
	k := &kept{secret: hsm.RandomSecret(32), counterKey: hsm.RandomSecret(hsm.CounterKeySize), macKey: hsm.RandomSecret(32)}
	k.sealed = must(m.Seal(ctx, k.secret))
	k.boot = must(m.SealBoot(ctx, k.secret, hsm.BootPolicy{Registers: bootRegisters}))
	k.key = must(m.NewKey(ctx))
	k.mac = must(m.ImportMAC(ctx, k.macKey))
	k.counter = must(m.NewCounter(ctx, k.counterKey))
	k.acknowledged = must(m.Count(ctx, k.counter, k.counterKey))
	k.maxCounts = k.acknowledged
	return k
}

// use does what an agent does, and fails at the first thing that is not right.
func (k *kept) use(ctx context.Context, m *tpm.Module) error {
	got, err := m.UnsealBoot(ctx, k.boot, nil)
	if err != nil || !got.Equal(k.secret) {
		return fmt.Errorf("unseal to the boot: %w", err)
	}
	n, err := m.Count(ctx, k.counter, k.counterKey)
	if err != nil {
		return fmt.Errorf("count: %w", err)
	}
	if n < k.acknowledged || n > k.maxCounts {
		return fmt.Errorf("the counter is at %d: %d were acknowledged, %d sent", n, k.acknowledged, k.maxCounts)
	}
	k.acknowledged, k.maxCounts = n, n+1
	if n, err = m.Increment(ctx, k.counter, k.counterKey); err != nil {
		return fmt.Errorf("increment: %w", err)
	}
	k.acknowledged = n
	if got, err = m.Unseal(ctx, k.sealed); err != nil || !got.Equal(k.secret) {
		return fmt.Errorf("unseal: %w", err)
	}
	if got, err = m.MAC(ctx, k.mac, []byte("m")); err != nil || !got.Equal(sum(k.macKey, hsm.NewSecret([]byte("m")))) {
		return fmt.Errorf("MAC: %w", err)
	}
	s, err := m.Signer(ctx, k.key)
	if err != nil {
		return fmt.Errorf("open key: %w", err)
	}
	if _, err := s.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err != nil {
		return fmt.Errorf("sign: %w", err)
	}
	if _, err := m.Health(ctx); err != nil {
		return fmt.Errorf("health: %w", err)
	}
	return nil
}

func powerCuts(t *testing.T, p *hsmtest.TPM, cuts, lockouts0 int) {
	p.Measure("kernel")
	m := open(t, p.Socket)
	k := keep(t.Context(), m)
	m.Close()
	seed := mrand.Uint64()
	t.Logf("seed %d", seed)
	dice := mrand.New(mrand.NewPCG(seed, 0))
	const commands = 24 // about as many as use takes
	reached := map[string]int{}
	for cut := range cuts {
		reached[cutOnce(t, p, k, dice.IntN(commands), dice.IntN(2) == 0)]++
		p.Start()
		p.Measure("kernel")
		if cut%16 != 0 && cut != cuts-1 {
			continue
		}
		if got := lockouts(t, p); got != lockouts0 {
			t.Fatalf("cut %d: the TPM counts %d wrong guesses, want %d", cut, got, lockouts0)
		}
		m := open(t, p.Socket)
		if err := k.use(t.Context(), m); err != nil {
			t.Fatalf("cut %d, afterwards: %v", cut, err)
		}
		m.Close()
	}
	t.Logf("cut while: %v", reached)
	if len(reached) < 4 {
		t.Error("the cuts came at too few places: the test proves little")
	}
}

// cutOnce lets the agent use the chip until power fails around its n-th command,
// which the chip may still have carried out, and says in what the agent was.
func cutOnce(t *testing.T, p *hsmtest.TPM, k *kept, n int, carriedOut bool) string {
	t.Helper()
	var sent atomic.Int64
	bus := hsmtest.NewBus(t, p.Socket, func(command []byte, next func([]byte) []byte) []byte {
		at := sent.Add(1) - 1
		if at < int64(n) {
			return next(command)
		}
		if at == int64(n) {
			if carriedOut {
				next(command)
			}
			p.Kill()
		}
		return nil
	})
	m, err := tpm.Open(t.Context(), bus.Socket, logger(t))
	if err == nil {
		for err == nil {
			err = k.use(t.Context(), m)
		}
		m.Close()
	}
	if !errors.Is(err, hsm.ErrAbsent) {
		t.Fatalf("while the power fails: %v", err)
	}
	if sent.Load() <= int64(n) { // cannot be: use goes on until it fails
		t.Fatal("no cut came")
	}
	what, _, _ := strings.Cut(err.Error(), ":")
	what, _, _ = strings.Cut(what, " /") // the path of this bus
	return what
}
