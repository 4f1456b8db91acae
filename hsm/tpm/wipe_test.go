package tpm

import (
	"log/slog"
	"testing"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/hsmtest"
)

// What authorised a command does not stay in the session, however it went.
func TestAuthValuesDoNotStay(t *testing.T) {
	m, err := Open(t.Context(), hsmtest.StartTPM(t), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	pin, key := hsm.NewSecret([]byte("2580")), hsm.RandomSecret(hsm.CounterKeySize)
	blob, err := m.SealPIN(t.Context(), hsm.RandomSecret(32), pin)
	if err != nil {
		t.Fatal(err)
	}
	for name, use := range map[string]func() error{
		"PIN":     func() error { _, err := m.UnsealPIN(t.Context(), blob, pin); return err },
		"wrong":   func() error { _, _ = m.UnsealPIN(t.Context(), blob, hsm.NewSecret([]byte("2581"))); return nil },
		"counter": func() error { _, err := m.NewCounter(t.Context(), key); return err },
	} {
		if err := use(); err != nil {
			t.Fatal(err)
		}
		_, _ = do(t.Context(), m, nil, func(c *chip) (struct{}, error) {
			if c.session == nil || c.session.keyed != nil {
				t.Errorf("after %s the session has an auth value, or there is none", name)
			}
			return struct{}{}, nil
		})
	}
}
