// Package open picks the key storage that a configuration names. It is apart
// from hsm because the modules need hsm and it needs them.
package open

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/file"
	"github.com/kagimori/kagimori/hsm/tpm"
)

// The kinds of key storage.
const (
	KindFile = "file" // a device secret in a file
	KindTPM  = "tpm"  // a TPM 2.0 device, or an emulator's socket
)

// DefaultTPM is the device of a TPM behind the kernel's resource manager.
const DefaultTPM = tpm.DefaultPath

// DeviceSecret is the name of the device secret in a state directory.
const DeviceSecret = "device.secret"

// Config names one key storage. Path is the device secret for KindFile, and the
// device or socket for KindTPM. Empty, it means DeviceSecret in the state
// directory Dir, or DefaultTPM.
type Config struct{ Kind, Path, Dir string }

// Module opens it. The errors are hsm's; see hsm.Module.
func Module(ctx context.Context, cfg Config, log *slog.Logger) (hsm.Module, error) {
	switch cfg.Kind {
	case KindFile:
		path := cfg.Path
		switch {
		case path == "" && cfg.Dir == "":
			return nil, fmt.Errorf("open key storage: kind %q needs the path of its device secret; set it in the configuration", KindFile)
		case path == "":
			path = filepath.Join(cfg.Dir, DeviceSecret)
		}
		return typed(file.Open(path))
	case KindTPM:
		path := cfg.Path
		if path == "" {
			path = DefaultTPM
		}
		return typed(tpm.Open(ctx, path, log))
	}
	return nil, fmt.Errorf("open key storage: unknown kind %q; choose %q or %q", cfg.Kind, KindFile, KindTPM)
}

// typed keeps a nil *T from becoming a Module that is not nil.
func typed[T hsm.Module](m T, err error) (hsm.Module, error) {
	if err != nil {
		return nil, err
	}
	return m, nil
}
