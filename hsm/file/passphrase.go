package file

// The passphrase, and where an unattended machine finds it.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/kagimori/kagimori/hsm"
)

// HasPassphrase says whether a passphrase is needed to open this device secret.
func (m *Module) HasPassphrase() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.guarded
}

// SetPassphrase puts another keyring around the root key, durably and all or
// nothing; nil takes the passphrase away. Copies of the directory that were made
// before open as they did then.
func (m *Module) SetPassphrase(ctx context.Context, passphrase *hsm.Secret) error {
	if passphrase != nil {
		if err := hsm.CheckPassphrase(passphrase); err != nil {
			return fmt.Errorf("set passphrase: %w", err)
		}
	}
	var root *hsm.Secret
	if err := m.use(ctx, func() error { root = m.root.Clone(); return nil }); err != nil {
		return fmt.Errorf("set passphrase: %w", err)
	}
	defer root.Wipe()
	if err := m.place.locked(func() error { return m.rewrap(root, passphrase) }); err != nil {
		return fmt.Errorf("set passphrase: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.guarded = passphrase != nil
	return nil
}

// rewrap is SetPassphrase under the lock of the place.
func (m *Module) rewrap(root, passphrase *hsm.Secret) error {
	if err := m.source.settle(m.place); err != nil { // what an earlier call left when the disk was full
		return err
	}
	old, err := m.place.keyring()
	if err != nil {
		return err
	}
	secret, err := m.source.read()
	if err != nil {
		return err
	}
	defer secret.Wipe()
	if old != nil {
		if id, err := secretID(secret); err != nil || id != old.secret {
			return errors.Join(err, fmt.Errorf("%w: the device secret is not the one that is in use; restart the program", hsm.ErrReplaced))
		}
		return m.writeKeyring(root, secret, passphrase)
	}
	switch {
	case passphrase == nil:
		return nil // none is set
	case !secret.Equal(root):
		return fmt.Errorf("%w: the device secret is not the one that is in use; restart the program", hsm.ErrReplaced)
	case m.source.credential != "":
		return fmt.Errorf("credential %q is itself the root key of this state, so a passphrase would guard nothing; put its 32 bytes back into a file, set the passphrase, then make the credential of the new file", m.source.credential)
	}
	next := hsm.RandomSecret(secretSize)
	defer next.Wipe()
	if err := hsm.WriteFile(m.source.next(), next.Bytes(), 0o600); err != nil {
		return err
	}
	if err := m.writeKeyring(root, next, passphrase); err != nil {
		return err
	}
	return m.source.settle(m.place)
}

func (m *Module) writeKeyring(root, secret, passphrase *hsm.Secret) error {
	ring, err := newKeyring(root, secret, passphrase)
	if err != nil {
		return err
	}
	return hsm.WriteFile(m.place.path("keyring"), ring.encode(), 0o600)
}

// ReadPassphrase reads a passphrase from "credential:NAME" or from a file of
// mode 0600, without the line end.
func ReadPassphrase(spec string) (*hsm.Secret, error) {
	p, err := readPassphrase(spec)
	if err != nil {
		return nil, fmt.Errorf("read passphrase: %w", err)
	}
	defer p.Wipe()
	b := bytes.TrimSuffix(bytes.TrimSuffix(p.Bytes(), []byte("\n")), []byte("\r"))
	trimmed := hsm.NewSecret(bytes.Clone(b))
	if err := hsm.CheckPassphrase(trimmed); err != nil {
		trimmed.Wipe()
		return nil, fmt.Errorf("read passphrase: %w", err)
	}
	return trimmed, nil
}

func readPassphrase(spec string) (*hsm.Secret, error) {
	const most = hsm.MaxPassphrase + 2 // and a line end
	if name, ok := strings.CutPrefix(spec, credentialPrefix); ok {
		if err := checkCredential(name); err != nil {
			return nil, err
		}
		return readCredential(name, most)
	}
	f, err := os.OpenFile(spec, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := checkOwn(f, spec); err != nil {
		return nil, err
	}
	if err := checkDir(filepath.Dir(spec)); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, err
	}
	return hsm.NewSecret(b), nil
}
