package tpm_test

import (
	"context"
	"log/slog"
	"testing"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/tpm"
)

func open(t *testing.T, path string) *tpm.Module {
	t.Helper()
	m, err := tpm.Open(t.Context(), path, logger(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func logger(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func TestModule(t *testing.T) {
	hsmtest.Run(t, func(t *testing.T) hsmtest.Open {
		path := hsmtest.StartTPM(t)
		return func(t *testing.T) hsm.Module { return open(t, path) }
	})
}

func openQuiet(path string) (*tpm.Module, error) {
	return tpm.Open(context.Background(), path, slog.New(slog.DiscardHandler))
}
