package tpm_test

// What the chip is asked to do, and how long it takes. On hardware each command
// costs milliseconds to tenths of a second: the number of commands is the figure
// that lasts, the times here are a software TPM's.

import (
	"context"
	"crypto"
	"crypto/rand"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/tpm"
)

// maxUnseal is the gate of the design: commands from Open to the first secret.
const maxUnseal = 6

func TestCommandsToUnseal(t *testing.T) {
	p := hsmtest.NewTPM(t)
	blob := works(t, p.Socket) // the root is stored from now on
	bus := hsmtest.NewBus(t, p.Socket, nil)
	m := open(t, bus.Socket)
	opens(t, m, blob)
	got := bus.Commands()
	want := []uint32{
		uint32(tpm2.TPMCCReadPublic), uint32(tpm2.TPMCCLoad), uint32(tpm2.TPMCCStartAuthSession), uint32(tpm2.TPMCCUnseal),
	}
	t.Logf("from Open to the first Unseal: %d commands", len(got))
	if len(got) > maxUnseal || !slices.Equal(got, want) {
		t.Errorf("commands %x, want %x", got, want)
	}
	before := len(bus.Commands())
	opens(t, m, blob)
	if n := len(bus.Commands()) - before; n != 1 {
		t.Errorf("the second Unseal takes %d commands, want 1", n)
	}
	s := must(m.Signer(t.Context(), must(m.NewKey(t.Context()))))
	before = len(bus.Commands())
	must(s.Sign(rand.Reader, make([]byte, 32), crypto.SHA256))
	if n := len(bus.Commands()) - before; n != 1 {
		t.Errorf("signing with the loaded key takes %d commands, want 1", n)
	}
}

// With another party's key at the handle there are as many, and then Close has
// one thing more to take out.
func TestCommandsToUnsealBesideForeignKey(t *testing.T) {
	p := hsmtest.NewTPM(t)
	storeForeignKey(p)
	blob := works(t, p.Socket)
	n := newNodeAt(t, p.Socket)
	m := n.module(t, wait)
	opens(t, m, blob)
	if got := n.commands.Load(); got > maxUnseal {
		t.Errorf("%d commands on a device node, want at most %d", got, maxUnseal)
	}
}

func TestTimeToUnseal(t *testing.T) {
	p := hsmtest.NewTPM(t)
	blob := works(t, p.Socket)
	const rounds = 41
	took := make([]time.Duration, 0, rounds)
	for range rounds {
		start := time.Now()
		m, err := openQuiet(p.Socket)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Unseal(t.Context(), blob); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(start))
		m.Close()
	}
	slices.Sort(took)
	t.Logf("from Open to the first Unseal: median %v, most %v", took[rounds/2], took[rounds-1])
	if took[rounds/2] > time.Second { // 60 ms is the goal for the whole agent, elsewhere
		t.Errorf("a median of %v", took[rounds/2])
	}
}

func benchmark(b *testing.B, prepare func(ctx context.Context, m *tpm.Module) func() error) {
	b.Helper()
	path := hsmtest.StartTPM(b)
	m, err := tpm.Open(b.Context(), path, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	run := prepare(b.Context(), m)
	for b.Loop() {
		if err := run(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSign(b *testing.B) {
	benchmark(b, func(ctx context.Context, m *tpm.Module) func() error {
		s := must(m.Signer(ctx, must(m.NewKey(ctx))))
		digest := make([]byte, 32)
		return func() error { _, err := s.Sign(rand.Reader, digest, crypto.SHA256); return err }
	})
}

func BenchmarkSignTwoKeys(b *testing.B) { // each is loaded anew
	benchmark(b, func(ctx context.Context, m *tpm.Module) func() error {
		one := must(m.Signer(ctx, must(m.NewKey(ctx))))
		two := must(m.Signer(ctx, must(m.NewKey(ctx))))
		digest := make([]byte, 32)
		return func() error {
			one, two = two, one
			_, err := one.Sign(rand.Reader, digest, crypto.SHA256)
			return err
		}
	})
}

func BenchmarkMAC(b *testing.B) {
	benchmark(b, func(ctx context.Context, m *tpm.Module) func() error {
		key := must(m.ImportMAC(ctx, hsm.RandomSecret(32)))
		message := make([]byte, 64)
		return func() error { _, err := m.MAC(ctx, key, message); return err }
	})
}

func BenchmarkSeal(b *testing.B) {
	benchmark(b, func(ctx context.Context, m *tpm.Module) func() error {
		secret := hsm.RandomSecret(32)
		return func() error { _, err := m.Seal(ctx, secret); return err }
	})
}

func BenchmarkUnseal(b *testing.B) {
	benchmark(b, func(ctx context.Context, m *tpm.Module) func() error {
		blob := must(m.Seal(ctx, hsm.RandomSecret(32)))
		return func() error { _, err := m.Unseal(ctx, blob); return err }
	})
}

func BenchmarkNewKey(b *testing.B) {
	benchmark(b, func(ctx context.Context, m *tpm.Module) func() error {
		return func() error { _, err := m.NewKey(ctx); return err }
	})
}

func BenchmarkOpenToUnseal(b *testing.B) {
	path := hsmtest.StartTPM(b)
	m := must(openQuiet(path))
	blob := must(m.Seal(b.Context(), hsm.RandomSecret(32)))
	m.Close()
	for b.Loop() {
		m := must(openQuiet(path))
		must(m.Unseal(b.Context(), blob))
		m.Close()
	}
}
