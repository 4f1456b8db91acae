package tpm_test

// Answers that a TPM gives on bad days, and none at all.

import (
	"context"
	"crypto"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/tpm"
)

// wait is a command deadline for tests in which it should not matter.
const wait = 10 * time.Second

func count(bus *hsmtest.Bus, cc tpm2.TPMCC) int {
	n := 0
	for _, c := range bus.Commands() {
		if c == uint32(cc) {
			n++
		}
	}
	return n
}

func TestRetryStorm(t *testing.T) {
	for _, rc := range []tpm2.TPMRC{tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate} {
		const storm = 4
		var left atomic.Int64
		bus := hsmtest.NewBus(t, hsmtest.StartTPM(t), func(command []byte, next func([]byte) []byte) []byte {
			if left.Add(-1) >= 0 {
				return hsmtest.Fail(uint32(rc))
			}
			left.Store(storm) // each command is told to wait that often
			return next(command)
		})
		left.Store(storm)
		m := open(t, bus.Socket)
		want := hsm.RandomSecret(32)
		blob, err := m.Seal(t.Context(), want)
		if err != nil {
			t.Fatalf("%v: %v", rc, err)
		}
		if got, err := m.Unseal(t.Context(), blob); err != nil || !got.Equal(want) {
			t.Errorf("%v: %v", rc, err)
		}
		m.Close()
		all := bus.Commands()
		if n := count(bus, tpm2.TPMCCUnseal); n != storm+1 {
			t.Errorf("%v: %d times Unseal in %d commands, want %d", rc, n, len(all), storm+1)
		}
	}
}

func TestRetryForever(t *testing.T) {
	var on atomic.Bool
	bus := hsmtest.NewBus(t, hsmtest.StartTPM(t), func(command []byte, next func([]byte) []byte) []byte {
		if on.Load() {
			return hsmtest.Fail(uint32(tpm2.TPMRCRetry))
		}
		return next(command)
	})
	m := must(tpm.OpenWithin(t.Context(), bus.Socket, 200*time.Millisecond, logger(t)))
	defer m.Close()
	on.Store(true)
	if _, err := m.NewKey(t.Context()); !errors.Is(err, hsm.ErrTimeout) {
		t.Errorf("%v, want %v", err, hsm.ErrTimeout)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := m.NewKey(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want %v", err, context.DeadlineExceeded)
	}
	on.Store(false)
	if _, err := m.NewKey(t.Context()); err != nil {
		t.Errorf("after the storm: %v", err)
	}
}

func TestHungTPM(t *testing.T) {
	var hang atomic.Bool
	end := make(chan struct{})
	bus := hsmtest.NewBus(t, hsmtest.StartTPM(t), func(command []byte, next func([]byte) []byte) []byte {
		if hang.Load() {
			<-end
			return nil
		}
		return next(command)
	})
	release := sync.OnceFunc(func() { close(end) })
	t.Cleanup(release)
	m := must(tpm.OpenWithin(t.Context(), bus.Socket, 300*time.Millisecond, logger(t)))
	defer m.Close()
	blob := must(m.Seal(t.Context(), hsm.NewSecret([]byte("x"))))

	hang.Store(true)
	start := time.Now()
	sent := len(bus.Commands())
	if _, err := m.Unseal(t.Context(), blob); !errors.Is(err, hsm.ErrTimeout) {
		t.Errorf("%v, want %v", err, hsm.ErrTimeout)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	if n := len(bus.Commands()) - sent; n != 1 {
		t.Errorf("%d commands were sent, want 1: nothing is sent again after an I/O error", n)
	}
	_, err := m.Unseal(t.Context(), blob) // on a new connection, which hangs as well
	if !errors.Is(err, hsm.ErrTimeout) || !errors.Is(err, hsm.ErrBusy) {
		t.Errorf("%v, want %v and the hint %v", err, hsm.ErrTimeout, hsm.ErrBusy)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	start = time.Now()
	if _, err := m.Unseal(ctx, blob); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 250*time.Millisecond {
		t.Errorf("%v after %v, want %v at once", err, time.Since(start), context.DeadlineExceeded)
	}
	hang.Store(false)
	release()
	if _, err := m.Unseal(t.Context(), blob); err != nil { // may find the last connection gone
		_, err = m.Unseal(t.Context(), blob)
		if err != nil {
			t.Errorf("no longer hung: %v", err)
		}
	}
}

func TestHungAtOpen(t *testing.T) {
	end := make(chan struct{})
	bus := hsmtest.NewBus(t, hsmtest.StartTPM(t), func([]byte, func([]byte) []byte) []byte {
		<-end
		return nil
	})
	t.Cleanup(func() { close(end) })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := tpm.OpenWithin(ctx, bus.Socket, 300*time.Millisecond, logger(t)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want %v", err, context.DeadlineExceeded)
	}
	if _, err := tpm.OpenWithin(t.Context(), bus.Socket, 300*time.Millisecond, logger(t)); !errors.Is(err, hsm.ErrTimeout) {
		t.Errorf("%v, want %v", err, hsm.ErrTimeout)
	}
}

// A second client of an emulator waits for the first to leave.
func TestBusyEmulator(t *testing.T) {
	path := hsmtest.StartTPM(t)
	open(t, path)
	if _, err := tpm.OpenWithin(t.Context(), path, 100*time.Millisecond, logger(t)); !errors.Is(err, hsm.ErrBusy) {
		t.Errorf("%v, want %v", err, hsm.ErrBusy)
	}
}

func TestLockoutIsNotRetried(t *testing.T) {
	var on atomic.Bool
	bus := hsmtest.NewBus(t, hsmtest.StartTPM(t), func(command []byte, next func([]byte) []byte) []byte {
		if on.Load() && tpm2.TPMCC(hsmtest.Code(command)) == tpm2.TPMCCUnseal {
			return hsmtest.Fail(uint32(tpm2.TPMRCLockout))
		}
		return next(command)
	})
	m := open(t, bus.Socket)
	blob := must(m.Seal(t.Context(), hsm.NewSecret([]byte("x"))))
	on.Store(true)
	_, err := m.Unseal(t.Context(), blob)
	if !errors.Is(err, hsm.ErrLockout) || !strings.Contains(err.Error(), "tpm2_dictionarylockout") {
		t.Errorf("%v, want %v with the next step", err, hsm.ErrLockout)
	}
	if n := count(bus, tpm2.TPMCCUnseal); n != 1 {
		t.Errorf("Unseal was sent %d times", n)
	}
	on.Store(false)
	if _, err := m.Unseal(t.Context(), blob); err != nil {
		t.Errorf("after the lockout: %v", err)
	}
}

func TestNoEncryptionFailsClosed(t *testing.T) {
	bus := hsmtest.NewBus(t, hsmtest.StartTPM(t), func(command []byte, next func([]byte) []byte) []byte {
		if tpm2.TPMCC(hsmtest.Code(command)) == tpm2.TPMCCStartAuthSession {
			return hsmtest.Fail(0x096 | 0x040 | 4<<8) // TPM_RC_SYMMETRIC, parameter 4
		}
		return next(command)
	})
	m := open(t, bus.Socket)
	if _, err := m.Seal(t.Context(), hsm.NewSecret([]byte("x"))); !errors.Is(err, tpm.ErrNoEncryption) {
		t.Errorf("%v, want %v", err, tpm.ErrNoEncryption)
	}
	if slices.Contains(bus.Commands(), uint32(tpm2.TPMCCCreate)) {
		t.Error("the secret was sent all the same")
	}
}

// A TPM that lost our session or object (a reset that the connection outlived)
// is used again after one new start.
func TestLostStateIsLoadedAgain(t *testing.T) {
	var fail atomic.Uint32
	bus := hsmtest.NewBus(t, hsmtest.StartTPM(t), func(command []byte, next func([]byte) []byte) []byte {
		if tpm2.TPMCC(hsmtest.Code(command)) == tpm2.TPMCCSign {
			if rc := fail.Swap(0); rc != 0 {
				return hsmtest.Fail(rc)
			}
		}
		return next(command)
	})
	m := open(t, bus.Socket)
	s := must(m.Signer(t.Context(), must(m.NewKey(t.Context()))))
	defer s.Close()
	for _, rc := range []tpm2.TPMRC{tpm2.TPMRCReferenceH0, tpm2.TPMRCReferenceS0, 0x18b, 0x9a2, 0x98e,
		tpm2.TPMRCObjectMemory, tpm2.TPMRCSessionMemory} {
		before := count(bus, tpm2.TPMCCSign)
		fail.Store(uint32(rc))
		if _, err := s.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err != nil {
			t.Errorf("%#x: %v", uint32(rc), err)
		}
		if n := count(bus, tpm2.TPMCCSign) - before; n != 2 {
			t.Errorf("%#x: Sign was sent %d times, want 2", uint32(rc), n)
		}
	}
}

// Garbage, short and oversize responses end in an error, never in a panic, and
// the next use starts anew.
func TestGarbledResponses(t *testing.T) {
	chip := hsmtest.StartTPM(t)
	m := open(t, chip)
	blob := must(m.Seal(t.Context(), hsm.NewSecret([]byte("x"))))
	m.Close()
	frame := func(size int, rc uint32, body []byte) []byte {
		b := []byte{0x80, 0x02, 0, 0, byte(size >> 8), byte(size), 0, 0, byte(rc >> 8), byte(rc)}
		return append(b, body...)
	}
	for name, garbage := range map[string][]byte{
		"empty success":      frame(10, 0, nil),
		"one byte":           frame(11, 0, []byte{1}),
		"zeros":              frame(100, 0, make([]byte, 90)),
		"long parameter":     frame(14, 0, []byte{0xff, 0xff, 0xff, 0xff}),
		"size too small":     frame(3, 0, nil),
		"size too large":     frame(65000, 0, nil),
		"cut off":            frame(100, 0, make([]byte, 20)),
		"unknown code":       frame(10, 0x7fff, nil),
		"no TPM at all":      []byte("HTTP/1.1 200 OK\r\n\r\n"),
		"ones":               frame(60, 0, slices.Repeat([]byte{0xff}, 50)),
		"nothing but a head": {0x80},
	} {
		var after atomic.Int64
		bus := hsmtest.NewBus(t, chip, func(command []byte, next func([]byte) []byte) []byte {
			if after.Add(-1) == 0 {
				return garbage
			}
			return next(command)
		})
		m := must(tpm.OpenWithin(t.Context(), bus.Socket, 100*time.Millisecond, logger(t)))
		for nth := range int64(6) { // which command of a new start is answered so
			bus.Drop()
			m.Unseal(t.Context(), blob) // finds the connection gone
			bus.Drop()
			after.Store(nth + 1)
			m.Unseal(t.Context(), blob)
			m.Unseal(t.Context(), blob)
		}
		after.Store(0)
		m.Unseal(t.Context(), blob)
		if got, err := m.Unseal(t.Context(), blob); err != nil || string(got.Bytes()) != "x" {
			t.Errorf("%s: afterwards %v", name, err)
		}
		m.Close()
	}
}
