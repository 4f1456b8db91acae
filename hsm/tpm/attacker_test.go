package tpm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/tpm"
)

// What an interposer can do who answers in the chip's place.

// An older answer to the same question is not believed: so a probe on the bus
// cannot turn a counter back.
func TestBusReplaysACounter(t *testing.T) {
	chip := hsmtest.StartTPM(t)
	var mu sync.Mutex
	var old []byte
	var replay bool
	bus := hsmtest.NewBus(t, chip, func(command []byte, next func([]byte) []byte) []byte {
		mu.Lock()
		defer mu.Unlock()
		if tpm2.TPMCC(hsmtest.Code(command)) != tpm2.TPMCCNVRead {
			return next(command)
		}
		if replay {
			return old
		}
		old = next(command)
		return old
	})
	m := must(tpm.OpenWithin(t.Context(), bus.Socket, wait, logger(t)))
	defer m.Close()
	key := hsm.RandomSecret(hsm.CounterKeySize)
	c := must(m.NewCounter(t.Context(), key))
	first := must(m.Count(t.Context(), c, key))
	mu.Lock()
	recorded := bytes.Clone(old)
	mu.Unlock()
	if now := must(m.Increment(t.Context(), c, key)); now != first+1 {
		t.Fatalf("%d after %d", now, first)
	}
	mu.Lock()
	old, replay = recorded, true
	mu.Unlock()
	if n, err := m.Count(t.Context(), c, key); err == nil {
		t.Errorf("an answer of before was believed: %d", n)
	}
	if n, err := m.Increment(t.Context(), c, key); err == nil {
		t.Errorf("an answer of before was believed: %d", n)
	}
}

// An increment that the interposer keeps to itself is not taken for done.
func TestBusSwallowsAnIncrement(t *testing.T) {
	var swallow atomic.Bool
	var last []byte
	bus := hsmtest.NewBus(t, hsmtest.StartTPM(t), func(command []byte, next func([]byte) []byte) []byte {
		if tpm2.TPMCC(hsmtest.Code(command)) == tpm2.TPMCCNVIncrement {
			if swallow.Load() {
				return last
			}
			last = next(command)
			return last
		}
		return next(command)
	})
	m := must(tpm.OpenWithin(t.Context(), bus.Socket, wait, logger(t)))
	defer m.Close()
	key := hsm.RandomSecret(hsm.CounterKeySize)
	c := must(m.NewCounter(t.Context(), key))
	swallow.Store(true)
	if n, err := m.Increment(t.Context(), c, key); err == nil {
		t.Errorf("counted to %d, and the chip knows nothing of it", n)
	}
}

// Values that the interposer makes up are not sealed to: the chip is asked to open
// what was sealed before anybody relies on it. A boot that measures nothing cannot
// be made to look measured.
func TestBusMakesUpMeasurements(t *testing.T) {
	var lie atomic.Bool
	bus := hsmtest.NewBus(t, hsmtest.StartTPM(t), func(command []byte, next func([]byte) []byte) []byte {
		response := next(command)
		if lie.Load() && tpm2.TPMCC(hsmtest.Code(command)) == tpm2.TPMCCPCRRead {
			response[len(response)-1] ^= 0x5a
		}
		if lie.Load() && tpm2.TPMCC(hsmtest.Code(command)) == 0x17f { // TPM2_PolicyPCR: "it fits"
			ok := binary.BigEndian.AppendUint32([]byte{0x80, 0x01}, 10)
			return append(ok, 0, 0, 0, 0)
		}
		return response
	})
	m := must(tpm.OpenWithin(t.Context(), bus.Socket, wait, logger(t)))
	defer m.Close()
	policy := hsm.BootPolicy{Registers: []int{7}}
	if _, err := m.SealBoot(t.Context(), hsm.RandomSecret(32), policy); !errors.Is(err, hsm.ErrNotMeasured) {
		t.Fatalf("nothing is measured: %v", err)
	}
	lie.Store(true)
	if _, err := m.SealBoot(t.Context(), hsm.RandomSecret(32), policy); err == nil {
		t.Error("sealed to values that the chip never had")
	}
}

// RETRY without end, an answer that never ends, and one byte at a time: each ends
// at the command's deadline, and the chip works afterwards.
func TestBusStalls(t *testing.T) {
	for name, bad := range map[string]func(command []byte) []byte{
		"retry": func([]byte) []byte { return hsmtest.Fail(0x922) },
		"oversize": func([]byte) []byte {
			return append(binary.BigEndian.AppendUint32([]byte{0x80, 0x01}, 0xfffffff0), make([]byte, 64)...)
		},
		"short":       func([]byte) []byte { return binary.BigEndian.AppendUint32([]byte{0x80, 0x01}, 4) },
		"longer said": func([]byte) []byte { return append(binary.BigEndian.AppendUint32([]byte{0x80, 0x02}, 200), 0, 0, 0, 0) },
		"wrong handle": func([]byte) []byte {
			return append(binary.BigEndian.AppendUint32([]byte{0x80, 0x01}, 14), 0, 0, 0, 0, 0x40, 0, 0, 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var stall atomic.Bool
			chip := hsmtest.StartTPM(t)
			bus := hsmtest.NewBus(t, chip, func(command []byte, next func([]byte) []byte) []byte {
				if stall.Load() {
					return bad(command)
				}
				return next(command)
			})
			m := must(tpm.OpenWithin(t.Context(), bus.Socket, 500*time.Millisecond, logger(t)))
			defer m.Close()
			secret := hsm.RandomSecret(32)
			blob := must(m.Seal(t.Context(), secret))
			stall.Store(true)
			began := time.Now()
			if _, err := m.Unseal(t.Context(), blob); err == nil {
				t.Error("it opened")
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("it took %v", took)
			}
			stall.Store(false)
			for range 3 { // the first finds the connection gone
				if got, err := m.Unseal(t.Context(), blob); err == nil && got.Equal(secret) {
					return
				}
			}
			t.Error("it does not work any more")
		})
	}
}
