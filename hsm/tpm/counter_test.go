package tpm_test

// Counters, as the chip and its other users see them.

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/tpm"
)

func counterAt(n int) string { return fmt.Sprintf("0x%x", uint32(tpm.FirstCounter)+uint32(n)) }

// With one session for all, counting costs two commands, and reading one: an
// anti-rollback check must not cost a start its speed.
func TestCounterCommands(t *testing.T) {
	p := hsmtest.NewTPM(t)
	bus := hsmtest.NewBus(t, p.Socket, nil)
	m := open(t, bus.Socket)
	key := hsm.RandomSecret(hsm.CounterKeySize)
	b := must(m.NewCounter(t.Context(), key))
	before := len(bus.Commands())
	must(m.Count(t.Context(), b, key))
	if n := len(bus.Commands()) - before; n != 1 {
		t.Errorf("Count takes %d commands, want 1", n)
	}
	must(m.Increment(t.Context(), b, key))
	if n := len(bus.Commands()) - before; n != 3 {
		t.Errorf("Count and Increment take %d commands, want 3", n)
	}
}

// tpm2-tools see the index that the documentation promises.
func TestCounterAttributes(t *testing.T) {
	p := hsmtest.NewTPM(t)
	m := open(t, p.Socket)
	key := hsm.RandomSecret(hsm.CounterKeySize)
	b := must(m.NewCounter(t.Context(), key))
	want := must(m.Increment(t.Context(), b, key))
	m.Close()
	out := p.Tool("tpm2_nvreadpublic", counterAt(0))
	if !strings.Contains(out, "friendly: authwrite|nt=0x1|authread|no_da|written") || !strings.Contains(out, "size: 8") {
		t.Errorf("the index is %s", out)
	}
	raw := string(key.Bytes())
	got, err := p.TryTool("tpm2_nvread", counterAt(0), "-C", counterAt(0), "-P", fmt.Sprintf("hex:%x", raw))
	if err != nil || fmt.Sprintf("%016x", want) != fmt.Sprintf("%x", got) {
		t.Errorf("tpm2_nvread gives %x, %v; want %016x", got, err, want)
	}
	if _, err := p.TryTool("tpm2_nvread", counterAt(0), "-C", counterAt(0), "-P", "wrong"); err == nil {
		t.Error("it is read with a wrong key")
	}
	if _, err := p.TryTool("tpm2_nvincrement", counterAt(0), "-C", "o"); err == nil {
		t.Error("the owner pushes it without its key")
	}
	if got := lockouts(t, p); got != 0 {
		t.Errorf("the TPM counts %d wrong guesses: the index is guarded by DA", got)
	}
	if left := handles(t, p, "handles-loaded-session"); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

// A counter that somebody removed, or put another one in place of, is told
// apart from one that counts; it never starts over.
func TestCounterReplaced(t *testing.T) {
	p := hsmtest.NewTPM(t)
	m := open(t, p.Socket)
	key := hsm.RandomSecret(hsm.CounterKeySize)
	b := must(m.NewCounter(t.Context(), key))
	last := must(m.Increment(t.Context(), b, key))
	m.Close()
	refused := func(why string) {
		t.Helper()
		m := open(t, p.Socket)
		defer m.Close()
		if _, err := m.Count(t.Context(), b, key); !errors.Is(err, hsm.ErrCounter) || !strings.Contains(err.Error(), why) {
			t.Errorf("%v, want %v: %s", err, hsm.ErrCounter, why)
		}
		if _, err := m.Increment(t.Context(), b, key); !errors.Is(err, hsm.ErrCounter) {
			t.Errorf("%v, want %v", err, hsm.ErrCounter)
		}
	}
	p.Tool("tpm2_nvundefine", "-C", "o", counterAt(0))
	refused("nothing stands at handle")
	p.Tool("tpm2_nvdefine", "-Q", "-C", "o", "-s", "8", "-p", fmt.Sprintf("hex:%x", key.Bytes()),
		"-a", "authwrite|nt=1|authread|no_da", counterAt(0))
	p.Tool("tpm2_nvincrement", "-Q", counterAt(0), "-C", counterAt(0), "-P", fmt.Sprintf("hex:%x", key.Bytes()))
	refused("another one stands")
	p.Tool("tpm2_nvundefine", "-C", "o", counterAt(0))
	// The chip itself starts a new counter above all that it ever had.
	m = open(t, p.Socket)
	defer m.Close()
	again := must(m.NewCounter(t.Context(), key))
	if got := must(m.Count(t.Context(), again, key)); got <= last {
		t.Errorf("a new counter starts at %d, the one before stood at %d", got, last)
	}
}

// A full range says so, and only what is ours and unused makes room.
func TestCounterRange(t *testing.T) {
	p := hsmtest.NewTPM(t)
	foreign := counterAt(3)
	p.Tool("tpm2_nvdefine", "-Q", "-C", "o", "-s", "8", "-a", "ownerwrite|ownerread|authwrite|authread", foreign)
	bus := hsmtest.NewBus(t, p.Socket, nil)
	m := open(t, bus.Socket)
	key := hsm.RandomSecret(hsm.CounterKeySize)
	var all []hsm.Blob
	for range tpm.MaxCounters - 1 {
		all = append(all, must(m.NewCounter(t.Context(), key)))
	}
	if _, err := m.NewCounter(t.Context(), key); !errors.Is(err, hsm.ErrNoCounter) {
		t.Errorf("%v, want %v", err, hsm.ErrNoCounter)
	}
	if h := must(m.Health(t.Context())); h.Chip.Counters != tpm.MaxCounters-1 {
		t.Errorf("%d counters of ours, want %d", h.Chip.Counters, tpm.MaxCounters-1)
	}
	if n := count(bus, tpm2.TPMCCNVUndefineSpace); n != 0 {
		t.Errorf("%d indices were removed, though all are in use", n)
	}
	if err := m.DropCounter(t.Context(), all[5], key); err != nil {
		t.Fatal(err)
	}
	all[5] = must(m.NewCounter(t.Context(), key))
	for _, b := range all {
		must(m.Count(t.Context(), b, key))
	}
	m.Close()
	if out := p.Tool("tpm2_nvreadpublic", foreign); !strings.Contains(out, "ownerwrite") {
		t.Errorf("the foreign index is %s", out)
	}
}

// Power fails between the two commands that make a counter: the half of one
// that is left is used again once the range is full.
func TestCounterHalfMade(t *testing.T) {
	p := hsmtest.NewTPM(t)
	works(t, p.Socket)
	bus := hsmtest.NewBus(t, p.Socket, func(command []byte, next func([]byte) []byte) []byte {
		if tpm2.TPMCC(hsmtest.Code(command)) == tpm2.TPMCCNVIncrement {
			return nil
		}
		return next(command)
	})
	m := open(t, bus.Socket)
	key := hsm.RandomSecret(hsm.CounterKeySize)
	for range 2 {
		if _, err := m.NewCounter(t.Context(), key); err == nil {
			t.Fatal("a counter, though it was cut off")
		}
	}
	m.Close()
	m = open(t, p.Socket)
	defer m.Close()
	for range tpm.MaxCounters {
		b := must(m.NewCounter(t.Context(), key))
		must(m.Count(t.Context(), b, key))
	}
	if _, err := m.NewCounter(t.Context(), key); !errors.Is(err, hsm.ErrNoCounter) {
		t.Errorf("%v, want %v", err, hsm.ErrNoCounter)
	}
}

func TestCounterMemoryFull(t *testing.T) {
	bus := hsmtest.NewBus(t, hsmtest.StartTPM(t), func(command []byte, next func([]byte) []byte) []byte {
		if tpm2.TPMCC(hsmtest.Code(command)) == tpm2.TPMCCNVDefineSpace {
			return hsmtest.Fail(uint32(tpm2.TPMRCNVSpace))
		}
		return next(command)
	})
	m := open(t, bus.Socket)
	if _, err := m.NewCounter(t.Context(), hsm.RandomSecret(32)); !errors.Is(err, hsm.ErrNoCounter) {
		t.Errorf("%v, want %v", err, hsm.ErrNoCounter)
	}
}

// The owner sets a password later: counting goes on, making and removing a
// counter say whose word they need.
func TestCounterOwnerPassword(t *testing.T) {
	p := hsmtest.NewTPM(t)
	m := open(t, p.Socket)
	key := hsm.RandomSecret(hsm.CounterKeySize)
	b := must(m.NewCounter(t.Context(), key))
	m.Close()
	p.Tool("tpm2_changeauth", "-Q", "-c", "o", "owner")
	m = open(t, p.Socket)
	n := must(m.Count(t.Context(), b, key))
	if got, err := m.Increment(t.Context(), b, key); err != nil || got != n+1 {
		t.Errorf("%d, %v; want %d", got, err, n+1)
	}
	if _, err := m.NewCounter(t.Context(), key); !errors.Is(err, hsm.ErrOwnerAuth) {
		t.Errorf("make: %v, want %v", err, hsm.ErrOwnerAuth)
	}
	if err := m.DropCounter(t.Context(), b, key); !errors.Is(err, hsm.ErrOwnerAuth) {
		t.Errorf("drop: %v, want %v", err, hsm.ErrOwnerAuth)
	}
	must(m.Count(t.Context(), b, key))
	m.Close()
	if got := lockouts(t, p); got != 0 {
		t.Errorf("the TPM counts %d wrong guesses", got)
	}
}

// The session is lost in the middle: the increment is sent again only when the
// chip said that it did not run.
func TestCounterLostSession(t *testing.T) {
	var fail atomic.Uint32
	bus := hsmtest.NewBus(t, hsmtest.StartTPM(t), func(command []byte, next func([]byte) []byte) []byte {
		if tpm2.TPMCC(hsmtest.Code(command)) == tpm2.TPMCCNVIncrement {
			if rc := fail.Swap(0); rc != 0 {
				return hsmtest.Fail(rc)
			}
		}
		return next(command)
	})
	m := open(t, bus.Socket)
	key := hsm.RandomSecret(hsm.CounterKeySize)
	b := must(m.NewCounter(t.Context(), key))
	n := must(m.Count(t.Context(), b, key))
	for _, rc := range []tpm2.TPMRC{tpm2.TPMRCReferenceS0, 0x9a2, 0x98e, tpm2.TPMRCSessionMemory, tpm2.TPMRCNVRate} {
		fail.Store(uint32(rc))
		n++
		if got, err := m.Increment(t.Context(), b, key); err != nil || got != n {
			t.Errorf("%#x: %d, %v; want %d", uint32(rc), got, err, n)
		}
	}
}

// req: C1 (what keeps a store from being turned back is never seen on the bus)
func TestBusShowsNoCounterKey(t *testing.T) {
	path, recorded := hsmtest.Record(t, hsmtest.StartTPM(t))
	m := open(t, path)
	key := hsm.RandomSecret(hsm.CounterKeySize)
	b := must(m.NewCounter(t.Context(), key))
	must(m.Increment(t.Context(), b, key))
	must(m.Count(t.Context(), b, key))
	if err := m.DropCounter(t.Context(), b, key); err != nil {
		t.Fatal(err)
	}
	if shows(recorded(), key.Bytes()) {
		t.Error("the counter's key crosses the bus in clear")
	}
	if !shows(recorded(), []byte(b[40:])) {
		t.Error("the recorder does not even see the public part of the counter")
	}
}

// An interposer that answers with a number of its own is found out.
func TestCounterAnswerIsAuthentic(t *testing.T) {
	var alter atomic.Bool
	bus := hsmtest.NewBus(t, hsmtest.StartTPM(t), func(command []byte, next func([]byte) []byte) []byte {
		response := next(command)
		if alter.Load() && tpm2.TPMCC(hsmtest.Code(command)) == tpm2.TPMCCNVRead && len(response) > 24 {
			response[23]++ // the last byte of the value
		}
		return response
	})
	m := open(t, bus.Socket)
	key := hsm.RandomSecret(hsm.CounterKeySize)
	b := must(m.NewCounter(t.Context(), key))
	alter.Store(true)
	if n, err := m.Count(t.Context(), b, key); err == nil {
		t.Errorf("an altered count of %d was believed", n)
	}
}

func TestHealth(t *testing.T) {
	p := hsmtest.NewTPM(t)
	m := open(t, p.Socket)
	h := must(m.Health(t.Context()))
	m.Close()
	c := h.Chip
	if h.Level != hsm.LevelTPMSocket || !h.RollbackProof || len(h.Notes) == 0 || !strings.Contains(h.Notes[0], "emulator") {
		t.Errorf("health %+v", h)
	}
	if c.Maker != "IBM" || !regexp.MustCompile(`^\d+\.\d+\.\d+\.\d+$`).MatchString(c.Firmware) {
		t.Errorf("maker %q, firmware %q", c.Maker, c.Firmware)
	}
	if c.Root != rootName(p) || !c.Stored || c.OwnerPassword || c.LockoutPassword {
		t.Errorf("chip %+v, root %s", c, rootName(p))
	}
	if c.Lockout.Limit != 3 || c.Lockout.Recovery.Seconds() != 1000 || c.Lockout.Reset.Seconds() != 1000 || c.Lockout.Locked || c.Lockout.Count != 0 {
		t.Errorf("lockout %+v", c.Lockout)
	}
	p.Tool("tpm2_changeauth", "-Q", "-c", "o", "owner")
	p.Tool("tpm2_changeauth", "-Q", "-c", "l", "lockout")
	p.Tool("tpm2_dictionarylockout", "-Q", "-s", "-n", "7", "-t", "50", "-l", "60", "-p", "lockout")
	m = open(t, p.Socket)
	defer m.Close()
	c = must(m.Health(t.Context())).Chip
	if !c.OwnerPassword || !c.LockoutPassword || c.Lockout.Limit != 7 || c.Lockout.Recovery.Seconds() != 50 || c.Lockout.Reset.Seconds() != 60 {
		t.Errorf("chip %+v", c)
	}
}

// A chip that Open refuses is examined all the same.
func TestExamineOwned(t *testing.T) {
	p := hsmtest.NewTPM(t)
	p.Tool("tpm2_changeauth", "-Q", "-c", "o", "owner")
	if _, err := tpm.Open(t.Context(), p.Socket, logger(t)); !errors.Is(err, hsm.ErrOwnerAuth) {
		t.Fatal(err)
	}
	h, err := tpm.Examine(t.Context(), p.Socket, logger(t))
	if err != nil || !h.Chip.OwnerPassword || h.Chip.Root != "" || h.Chip.Stored {
		t.Errorf("%+v, %v", h.Chip, err)
	}
	if _, err := tpm.Examine(t.Context(), p.Socket+".none", logger(t)); !errors.Is(err, hsm.ErrAbsent) {
		t.Errorf("%v, want %v", err, hsm.ErrAbsent)
	}
}
