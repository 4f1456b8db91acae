// Package hsmtest is test support, never linked into what ships: one suite that
// every module passes, a TPM emulator to start, and a bus between the two that
// records what crosses it, counts it or gets in its way.
package hsmtest

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/kagimori/kagimori/hsm"
)

// Open opens a module on a place that may have been open before.
type Open func(t *testing.T) hsm.Module

// Run holds a module to the contract of package hsm. place makes a new place
// for keys (a TPM, a device secret) and gives back how to open it; Run opens it
// again after Close, as after a restart.
func Run(t *testing.T, place func(t *testing.T) Open) {
	open := place(t)
	with := func(name string, check func(t *testing.T, m hsm.Module)) {
		t.Run(name, func(t *testing.T) {
			m := open(t)
			defer closeModule(t, m)
			check(t, m)
		})
	}
	with("Level", func(t *testing.T, m hsm.Module) {
		switch m.Level() {
		case hsm.LevelFile, hsm.LevelTPMSocket, hsm.LevelTPM:
		default:
			t.Errorf("level %q", m.Level())
		}
	})
	with("Seal", checkSeal)
	with("SealTampered", func(t *testing.T, m hsm.Module) {
		b := seal(t, m, []byte("tampered with"))
		checkTampered(t, b, func(b hsm.Blob) error { _, err := m.Unseal(t.Context(), b); return err })
	})
	with("Signer", checkSigner)
	with("SignerTampered", func(t *testing.T, m hsm.Module) {
		b := newKey(t, m)
		checkTampered(t, b, func(b hsm.Blob) error { _, err := m.Signer(t.Context(), b); return err })
	})
	with("CertificateRequest", checkRequest)
	with("TLS", checkTLS)
	with("MAC", checkMAC)
	with("MACTampered", func(t *testing.T, m hsm.Module) {
		b := importMAC(t, m, make([]byte, hsm.MACKeySize))
		checkTampered(t, b, func(b hsm.Blob) error { _, err := m.MAC(t.Context(), b, nil); return err })
	})
	with("Counters", checkCounters)
	with("CountersTampered", checkCountersTampered)
	with("CountersAtOnce", checkCountersAtOnce)
	with("PINs", checkPINs)
	with("PINsTampered", func(t *testing.T, m hsm.Module) {
		b := sealPIN(t, m, hsm.RandomSecret(32), "1234")
		checkTampered(t, b, func(b hsm.Blob) error { return second(m.UnsealPIN(t.Context(), b, pin("1234"))) })
	})
	with("Examiner", checkExaminer)
	with("Purposes", checkPurposes)
	with("Concurrent", checkConcurrent)
	with("Cancelled", checkCancelled)
	t.Run("CountersReopen", func(t *testing.T) { checkCountersReopen(t, open) })
	t.Run("Reopen", func(t *testing.T) { checkReopen(t, open) })
	t.Run("Closed", func(t *testing.T) { checkClosed(t, open(t)) })
	t.Run("Foreign", func(t *testing.T) { checkForeign(t, open, place(t)) })
}

func closeModule(t *testing.T, m hsm.Module) {
	t.Helper()
	for range 2 {
		if err := m.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
}

func seal(t *testing.T, m hsm.Module, plain []byte) hsm.Blob {
	t.Helper()
	s := hsm.NewSecret(bytes.Clone(plain))
	b, err := m.Seal(t.Context(), s)
	s.Wipe() // the module must not need it any more
	if err != nil {
		t.Fatalf("seal %d bytes: %v", len(plain), err)
	}
	return b
}

func newKey(t *testing.T, m hsm.Module) hsm.Blob {
	t.Helper()
	b, err := m.NewKey(t.Context())
	if err != nil {
		t.Fatalf("new key: %v", err)
	}
	return b
}

func importMAC(t *testing.T, m hsm.Module, key []byte) hsm.Blob {
	t.Helper()
	s := hsm.NewSecret(bytes.Clone(key))
	b, err := m.ImportMAC(t.Context(), s)
	s.Wipe()
	if err != nil {
		t.Fatalf("import MAC key: %v", err)
	}
	return b
}

func checkSeal(t *testing.T, m hsm.Module) {
	for _, n := range []int{1, 2, 32, hsm.MaxSealed - 1, hsm.MaxSealed} {
		want := hsm.RandomSecret(n)
		b := seal(t, m, want.Bytes())
		if len(b) > hsm.MaxBlob || bytes.Contains(b, want.Bytes()) && n > 2 {
			t.Errorf("a blob of %d bytes, or one that shows its secret", len(b))
		}
		for range 2 {
			got, err := m.Unseal(t.Context(), b)
			if err != nil || !got.Equal(want) {
				t.Errorf("%d bytes do not come back: %v", n, err)
			}
			got.Wipe()
		}
	}
	if bytes.Equal(seal(t, m, []byte("same")), seal(t, m, []byte("same"))) {
		t.Error("equal secrets make equal blobs")
	}
	if _, err := m.Seal(t.Context(), hsm.RandomSecret(hsm.MaxSealed+1)); !errors.Is(err, hsm.ErrTooLong) {
		t.Errorf("%d bytes: %v", hsm.MaxSealed+1, err)
	}
	wiped := hsm.RandomSecret(32)
	wiped.Wipe()
	for name, s := range map[string]*hsm.Secret{"empty": hsm.NewSecret(nil), "nil": nil, "wiped": wiped} {
		if _, err := m.Seal(t.Context(), s); err == nil {
			t.Errorf("an %s secret was sealed", name)
		}
	}
	for _, b := range []hsm.Blob{nil, {}, hsm.Blob("garbage"), make(hsm.Blob, 200), make(hsm.Blob, 1<<20)} {
		if _, err := m.Unseal(t.Context(), b); !errors.Is(err, hsm.ErrBlob) {
			t.Errorf("garbage of %d bytes: %v", len(b), err)
		}
	}
}

// checkTampered flips each byte of a blob, and cuts it short.
func checkTampered(t *testing.T, b hsm.Blob, use func(hsm.Blob) error) {
	refused := func(err error) bool { return errors.Is(err, hsm.ErrBlob) || errors.Is(err, hsm.ErrReplaced) }
	if err := use(b); err != nil {
		t.Fatalf("untouched: %v", err)
	}
	for n := range b {
		bad := bytes.Clone(b)
		bad[n] ^= 1 << (n % 8)
		if err := use(bad); !refused(err) {
			t.Fatalf("byte %d of %d flipped: %v", n, len(b), err)
		}
		if n%7 == 0 {
			if err := use(b[:n]); !refused(err) {
				t.Fatalf("cut to %d of %d bytes: %v", n, len(b), err)
			}
		}
	}
	if err := use(b); err != nil {
		t.Fatalf("untouched, after all that: %v", err)
	}
}

// checkPurposes gives each kind of blob to the methods for the others.
func checkPurposes(t *testing.T, m hsm.Module) {
	sealed, key, mac := seal(t, m, []byte("x")), newKey(t, m), importMAC(t, m, make([]byte, hsm.MACKeySize))
	counterKey := hsm.RandomSecret(hsm.CounterKeySize)
	counter := newCounter(t, m, counterKey)
	defer m.DropCounter(t.Context(), counter, counterKey)
	for name, err := range map[string]error{
		"counter unsealed": second(m.Unseal(t.Context(), counter)),
		"secret counts":    second(m.Count(t.Context(), sealed, counterKey)),
		"key unsealed":     second(m.Unseal(t.Context(), key)),
		"MAC key unsealed": second(m.Unseal(t.Context(), mac)),
		"secret signs":     second(m.Signer(t.Context(), sealed)),
		"MAC key signs":    second(m.Signer(t.Context(), mac)),
		"secret MACs":      second(m.MAC(t.Context(), sealed, nil)),
		"key MACs":         second(m.MAC(t.Context(), key, nil)),
	} {
		if !errors.Is(err, hsm.ErrBlob) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func checkReopen(t *testing.T, open Open) {
	m := open(t)
	macKey := hsm.RandomSecret(hsm.MACKeySize)
	sealed, key, mac := seal(t, m, []byte("kept")), newKey(t, m), importMAC(t, m, macKey.Bytes())
	point := publicKey(t, m, key)
	tag, err := m.MAC(t.Context(), mac, []byte("m"))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		closeModule(t, m)
		m = open(t)
		got, err := m.Unseal(t.Context(), sealed)
		if err != nil || string(got.Bytes()) != "kept" {
			t.Fatalf("the sealed secret is gone: %v", err)
		}
		if !publicKey(t, m, key).Equal(point) {
			t.Error("the key is another one")
		}
		again, err := m.MAC(t.Context(), mac, []byte("m"))
		if err != nil || !again.Equal(tag) {
			t.Errorf("the MAC is another one: %v", err)
		}
	}
	closeModule(t, m)
}

func checkForeign(t *testing.T, ours, theirs Open) {
	m := ours(t)
	sealed, key, mac := seal(t, m, []byte("ours")), newKey(t, m), importMAC(t, m, make([]byte, hsm.MACKeySize))
	counterKey := hsm.RandomSecret(hsm.CounterKeySize)
	counter := newCounter(t, m, counterKey)
	behind := sealPIN(t, m, counterKey, "1234")
	closeModule(t, m)
	m = theirs(t)
	defer closeModule(t, m)
	own := seal(t, m, []byte("theirs"))
	for name, err := range map[string]error{
		"PIN":     second(m.UnsealPIN(t.Context(), behind, pin("1234"))),
		"counter": second(m.Count(t.Context(), counter, counterKey)),
		"secret":  second(m.Unseal(t.Context(), sealed)),
		"key":     second(m.Signer(t.Context(), key)),
		"MAC key": second(m.MAC(t.Context(), mac, nil)),
	} {
		if !errors.Is(err, hsm.ErrReplaced) {
			t.Errorf("foreign %s: %v", name, err)
		}
	}
	if got, err := m.Unseal(t.Context(), own); err != nil || string(got.Bytes()) != "theirs" {
		t.Errorf("its own secret, after foreign blobs: %v", err)
	}
}

// uses calls every method that takes a context, with blobs that are good.
func uses(t *testing.T, m hsm.Module) func(ctx context.Context) map[string]error {
	sealed, key, mac := seal(t, m, []byte("x")), newKey(t, m), importMAC(t, m, make([]byte, hsm.MACKeySize))
	counterKey := hsm.RandomSecret(hsm.CounterKeySize)
	counter := newCounter(t, m, counterKey)
	behind := sealPIN(t, m, hsm.RandomSecret(32), "1234")
	return func(ctx context.Context) map[string]error {
		return map[string]error{
			"SealPIN":   second(m.SealPIN(ctx, hsm.RandomSecret(32), pin("1234"))),
			"UnsealPIN": second(m.UnsealPIN(ctx, behind, pin("1234"))),
			"Health":    second(m.Health(ctx)),
			"Count":     second(m.Count(ctx, counter, counterKey)),
			"Increment": second(m.Increment(ctx, counter, counterKey)),
			"Seal":      second(m.Seal(ctx, hsm.RandomSecret(32))),
			"Unseal":    second(m.Unseal(ctx, sealed)),
			"NewKey":    second(m.NewKey(ctx)),
			"Signer":    second(m.Signer(ctx, key)),
			"ImportMAC": second(m.ImportMAC(ctx, hsm.RandomSecret(hsm.MACKeySize))),
			"MAC":       second(m.MAC(ctx, mac, nil)),
		}
	}
}

func checkCancelled(t *testing.T, m hsm.Module) {
	use := uses(t, m)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, err := range use(ctx) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s, cancelled: %v", name, err)
		}
	}
	for name, err := range use(t.Context()) {
		if err != nil {
			t.Errorf("%s, afterwards: %v", name, err)
		}
	}
}
