package hsmtest

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/kagimori/kagimori/hsm"
)

func pin(s string) *hsm.Secret { return hsm.NewSecret([]byte(s)) }

func sealPIN(t *testing.T, m hsm.PINs, secret *hsm.Secret, text string) hsm.Blob {
	t.Helper()
	s, p := secret.Clone(), pin(text)
	b, err := m.SealPIN(t.Context(), s, p)
	s.Wipe() // the module must not need them any more
	p.Wipe()
	if err != nil {
		t.Fatalf("seal behind a PIN: %v", err)
	}
	return b
}

// checkPINs gives one wrong PIN only: a TPM emulator locks after three.
func checkPINs(t *testing.T, m hsm.Module) {
	secret := hsm.RandomSecret(hsm.MaxSealed)
	b := sealPIN(t, m, secret, "correct horse")
	if len(b) > hsm.MaxBlob || bytes.Contains(b, secret.Bytes()[:16]) || bytes.Contains(b, []byte("correct")) {
		t.Error("a blob that shows its secret or PIN, or is too long")
	}
	opens := func() {
		t.Helper()
		if got, err := m.UnsealPIN(t.Context(), b, pin("correct horse")); err != nil || !got.Equal(secret) {
			t.Errorf("the right PIN: %v", err)
		}
	}
	opens()
	if _, err := m.UnsealPIN(t.Context(), b, pin("correct Horse")); !errors.Is(err, hsm.ErrPIN) {
		t.Errorf("a wrong PIN: %v, want %v", err, hsm.ErrPIN)
	}
	opens()
	for _, bad := range []*hsm.Secret{nil, pin(""), pin("123"), hsm.RandomSecret(hsm.MaxPIN + 1)} {
		if _, err := m.UnsealPIN(t.Context(), b, bad); err == nil || errors.Is(err, hsm.ErrPIN) {
			t.Errorf("%d bytes that cannot be a PIN: %v", bad.Len(), err)
		}
		if _, err := m.SealPIN(t.Context(), secret, bad); err == nil {
			t.Errorf("a PIN of %d bytes was taken", bad.Len())
		}
	}
	for _, n := range []int{0, hsm.MaxSealed + 1} {
		if _, err := m.SealPIN(t.Context(), hsm.RandomSecret(n), pin("1234")); err == nil {
			t.Errorf("a secret of %d bytes was taken", n)
		}
	}
	if bytes.Equal(sealPIN(t, m, secret, "1234"), sealPIN(t, m, secret, "1234")) {
		t.Error("equal secrets and PINs make equal blobs")
	}
	if _, err := m.Unseal(t.Context(), b); !errors.Is(err, hsm.ErrBlob) {
		t.Errorf("unsealed without the PIN: %v", err)
	}
	if _, err := m.UnsealPIN(t.Context(), seal(t, m, []byte("x")), pin("1234")); !errors.Is(err, hsm.ErrBlob) {
		t.Errorf("a secret without a PIN: %v", err)
	}
	opens()
}

func checkExaminer(t *testing.T, m hsm.Module) {
	h, err := m.Health(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if h.Level != m.Level() || h.RollbackProof != m.RollbackProof() {
		t.Errorf("health %+v does not agree with the module", h)
	}
	if len(h.Notes) == 0 {
		t.Error("health does not say what the level does not protect against")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Health(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("health, cancelled: %v", err)
	}
}
