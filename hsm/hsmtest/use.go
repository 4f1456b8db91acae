package hsmtest

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/kagimori/kagimori/hsm"
)

// checkConcurrent has eight goroutines use everything at the same time, each
// with keys of its own: more than a TPM has room for.
func checkConcurrent(t *testing.T, m hsm.Module) {
	const workers, rounds = 8, 6
	macKey := bytes.Repeat([]byte{7}, hsm.MACKeySize)
	shared := importMAC(t, m, macKey)
	want, err := m.MAC(t.Context(), shared, []byte("m"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for w := range workers {
		key, mac := newKey(t, m), importMAC(t, m, macKey)
		s := signer(t, m, key)
		wg.Go(func() {
			defer s.Close()
			for r := range rounds {
				if err := mixed(t, m, s, mac, want, byte(w*rounds+r)); err != nil {
					t.Errorf("worker %d, round %d: %v", w, r, err)
				}
			}
		})
	}
	wg.Wait()
}

func mixed(t *testing.T, m hsm.Module, s hsm.Signer, mac hsm.Blob, want *hsm.Secret, n byte) error {
	if err := sign(s, fmt.Sprint("message ", n)); err != nil {
		return fmt.Errorf("sign: %w", err)
	}
	plain := hsm.NewSecret(bytes.Repeat([]byte{n + 1}, 32))
	b, err := m.Seal(t.Context(), plain)
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	got, err := m.MAC(t.Context(), mac, []byte("m"))
	if err != nil || !got.Equal(want) {
		return fmt.Errorf("wrong MAC: %w", err)
	}
	if got, err = m.Unseal(t.Context(), b); err != nil || !got.Equal(plain) {
		return fmt.Errorf("wrong secret: %w", err)
	}
	return nil
}

// checkClosed uses a module and its signer after Close, and closes it while it
// is in use.
func checkClosed(t *testing.T, m hsm.Module) {
	use := uses(t, m)
	s := signer(t, m, newKey(t, m))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				err := sign(s, "until closed")
				if errors.Is(err, hsm.ErrClosed) {
					return
				}
				if err != nil {
					t.Errorf("sign: %v", err)
					return
				}
			}
		})
	}
	if err := sign(s, "before"); err != nil {
		t.Error(err)
	}
	closeModule(t, m)
	wg.Wait()
	for name, err := range use(t.Context()) {
		if !errors.Is(err, hsm.ErrClosed) {
			t.Errorf("%s, closed: %v", name, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Errorf("close a signer of a closed module: %v", err)
	}
}
