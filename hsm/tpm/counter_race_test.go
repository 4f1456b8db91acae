package tpm_test

import (
	"errors"
	"sync/atomic"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/tpm"
)

// The range is full but for one that was left half made, and another program is
// at that place at the same time: it is tried again, and not for ever.
func TestCounterRace(t *testing.T) {
	p := hsmtest.NewTPM(t)
	var faster atomic.Int32
	var cut atomic.Bool
	cut.Store(true)
	bus := hsmtest.NewBus(t, p.Socket, func(command []byte, next func([]byte) []byte) []byte {
		switch code := tpm2.TPMCC(hsmtest.Code(command)); {
		case cut.Load() && code == tpm2.TPMCCNVIncrement:
			return nil
		case code == tpm2.TPMCCNVUndefineSpace && faster.Add(-1) >= 0:
			return hsmtest.Fail(uint32(tpm2.TPMRCHandle) + 0x200) // of the second handle
		}
		return next(command)
	})
	m := open(t, bus.Socket)
	defer m.Close()
	key := hsm.RandomSecret(hsm.CounterKeySize)
	for range 2 {
		if _, err := m.NewCounter(t.Context(), key); err == nil {
			t.Fatal("a counter, though it was cut off")
		}
	}
	cut.Store(false)
	for range tpm.MaxCounters - 2 {
		must(m.NewCounter(t.Context(), key))
	}
	faster.Store(1)
	must(m.Count(t.Context(), must(m.NewCounter(t.Context(), key)), key))
	faster.Store(1 << 10)
	if _, err := m.NewCounter(t.Context(), key); !errors.Is(err, hsm.ErrNoCounter) {
		t.Errorf("%v, want %v", err, hsm.ErrNoCounter)
	}
}
