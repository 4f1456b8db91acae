// Package open picks the key storage that a configuration names. It is apart
// from hsm because the modules need hsm and it needs them.
package open

import (
	"cmp"
	"context"
	"errors"
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

// Config names one key storage.
type Config struct {
	Kind string
	// Path is the device secret for KindFile, a file or "credential:NAME", and the
	// device or socket for KindTPM. Empty, it means DeviceSecret in Dir, or
	// DefaultTPM.
	Path string
	// Dir is the state directory, where KindFile keeps what belongs to a secret
	// that is not there. It is empty only with the path of a file.
	Dir string
	// Passphrase says where the passphrase of KindFile comes from, if one is set:
	// "credential:NAME" or the path of a file of mode 0600. Empty or Ask, from Ask.
	Passphrase string
	// Ask gives the passphrase that somebody has typed; nil, or nothing typed yet,
	// is hsm.ErrPassphrase.
	Ask func(context.Context) (*hsm.Secret, error)
}

// Ask is the Passphrase that a person gives when the program runs.
const Ask = "ask"

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
		return typed(file.OpenWith(ctx, file.Config{Secret: path, Dir: cfg.Dir, Passphrase: cfg.passphrase()}))
	case KindTPM:
		path := cfg.Path
		if path == "" {
			path = DefaultTPM
		}
		return typed(tpm.Open(ctx, path, log))
	}
	return nil, fmt.Errorf("open key storage: unknown kind %q; choose %q or %q", cfg.Kind, KindFile, KindTPM)
}

// Examine asks a key storage how it is that Module does not open, without
// storing anything in it: a TPM. KindFile has nothing to say then, which is
// errors.ErrUnsupported.
func Examine(ctx context.Context, cfg Config, log *slog.Logger) (hsm.Health, error) {
	if cfg.Kind != KindTPM {
		return hsm.Health{}, errors.ErrUnsupported
	}
	return tpm.Examine(ctx, cmp.Or(cfg.Path, DefaultTPM), log)
}

// passphrase is where the passphrase comes from. What a person typed wins over a
// source that may be wrong.
func (cfg Config) passphrase() func(context.Context) (*hsm.Secret, error) {
	return func(ctx context.Context) (*hsm.Secret, error) {
		if cfg.Ask != nil {
			if p, err := cfg.Ask(ctx); err == nil || !errors.Is(err, hsm.ErrPassphrase) {
				return p, err
			}
		}
		if cfg.Passphrase == "" || cfg.Passphrase == Ask {
			return nil, hsm.ErrPassphrase
		}
		p, err := file.ReadPassphrase(cfg.Passphrase)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", hsm.ErrPassphrase, err) // somebody may give it by hand
		}
		return p, nil
	}
}

// typed keeps a nil *T from becoming a Module that is not nil.
func typed[T hsm.Module](m T, err error) (hsm.Module, error) {
	if err != nil {
		return nil, err
	}
	return m, nil
}
