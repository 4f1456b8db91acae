package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"syscall"

	"github.com/kagimori/kagimori/configs"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/open"
	"github.com/kagimori/kagimori/transport/control"
)

// openModule opens the key storage of a state directory, or says what to do.
func openModule(ctx context.Context, h configs.ServerHSM, dir string, log *slog.Logger) (hsm.Module, error) {
	m, err := open.Module(ctx, open.Config{Kind: h.Kind, Path: secretPath(h, dir), Dir: dir}, log)
	if err == nil {
		return m, nil
	}
	if _, ok := errors.AsType[control.Explained](err); ok || ctx.Err() != nil {
		return nil, err
	}
	next := fmt.Sprintf("check [hsm] in the configuration: kind is %q", h.Kind)
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, hsm.ErrUnsafe):
		next = fmt.Sprintf("run it as the user that owns %s, which nobody else may read", dir)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		next = fmt.Sprintf("free space on the disk of %s, then try again", dir)
	case errors.Is(err, hsm.ErrBlob):
		next = fmt.Sprintf("put the device secret of %s back from a backup", dir)
	}
	return nil, control.Problemf(control.Storage, next, "%w", err)
}
