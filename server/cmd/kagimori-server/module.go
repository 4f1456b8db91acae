package main

import (
	"context"
	"log/slog"

	"github.com/kagimori/kagimori/configs"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/open"
)

// openModule opens the key storage of a state directory.
func openModule(ctx context.Context, h configs.HSM, dir string, log *slog.Logger) (hsm.Module, error) {
	return open.Module(ctx, open.Config{Kind: h.Kind, Path: secretPath(h, dir)}, log)
}
