package file

// From the device secret to the root key. Rules, in this order:
//
//  1. A change of the device secret that was cut short is finished or forgotten.
//  2. With a keyring, the root key is what the keyring keeps.
//  3. Without one the device secret is the root key, as it was before there were
//     keyrings; so what was made then opens for ever.
//  4. A credential in a directory that holds nothing yet gets a keyring, so that
//     a passphrase can be set later: a credential cannot be changed from here.
//
// SetPassphrase makes the keyring of a device secret in a file: the old secret
// stays the root key, the file gets a new one.

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kagimori/kagimori/hsm"
)

// Config says where the device secret is.
type Config struct {
	// Secret is the path of its file, or "credential:NAME".
	Secret string
	// Dir is the directory, which exists, of the files that the module keeps:
	// keyring and counters. Empty, they lie beside the device secret.
	Dir string
	// Passphrase gives the passphrase, when one is set; the module wipes it. Nil
	// fails with hsm.ErrPassphrase.
	Passphrase func(context.Context) (*hsm.Secret, error)
}

// defaultName starts the names of the files that belong to a credential.
const defaultName = "device.secret"

// Open takes the device secret at path into use. The first Open makes it,
// durably, and its directory (0700) as well. A file that others can read, that
// another user owns or that has another size is refused: hsm.ErrUnsafe for the
// first two, hsm.ErrBlob for the last.
func Open(path string) (*Module, error) {
	return OpenWith(context.Background(), Config{Secret: path})
}

// OpenWith is Open for what a configuration says. A credential that is not
// there is hsm.ErrAbsent. One passphrase that does not fit is hsm.ErrPassphrase
// and hsm.ErrWrongPassphrase.
func OpenWith(ctx context.Context, cfg Config) (m *Module, err error) {
	from, at, err := cfg.places()
	if err != nil {
		return nil, fmt.Errorf("open device secret: %w", err)
	}
	do := func() error {
		m, err = open(ctx, from, at, cfg.Passphrase)
		return err
	}
	if plain(from, at) {
		err = do()
	} else {
		err = at.locked(func() error {
			if err := from.settle(at); err != nil {
				return err
			}
			return do()
		})
	}
	if err != nil {
		return nil, fmt.Errorf("open device secret: %w", err)
	}
	return m, nil
}

// plain says that there is a file and nothing else: then whoever makes it first
// wins, and nothing needs a lock.
func plain(from source, at place) bool {
	if from.path == "" {
		return false
	}
	for _, path := range []string{from.next(), at.path("keyring")} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	return true
}

// places says where the secret comes from and where files go; it makes the
// directory of a device secret that is to be made.
func (cfg Config) places() (source, place, error) {
	from, err := newSource(cfg.Secret)
	if err != nil {
		return from, place{}, err
	}
	at := place{dir: cfg.Dir, name: defaultName}
	if from.path == "" {
		if at.dir == "" {
			return from, at, errors.New("a credential needs a directory for what belongs to it")
		}
		return from, at, nil
	}
	dir := filepath.Dir(from.path)
	at.name = filepath.Base(from.path)
	if at.dir == "" {
		at.dir = dir
	}
	if err := hsm.MakeDir(dir, 0o700); err != nil {
		return from, at, fmt.Errorf("%w; make %s for the user that runs this program", err, dir)
	}
	return from, at, nil
}

// open follows the rules above from the second on. The place is locked, unless it
// is plain.
func open(ctx context.Context, from source, at place, passphrase func(context.Context) (*hsm.Secret, error)) (*Module, error) {
	ring, err := at.keyring()
	if err != nil {
		return nil, err
	}
	secret, err := from.read()
	switch {
	case errors.Is(err, fs.ErrNotExist) && ring != nil:
		return nil, fmt.Errorf("%w: %s is gone, and %s opens with nothing else; put it back", hsm.ErrReplaced, from.path, at.path("keyring"))
	case errors.Is(err, fs.ErrNotExist):
		secret, err = from.make()
	}
	if err != nil {
		return nil, err
	}
	if ring == nil {
		if from.credential != "" && at.unused() {
			defer secret.Wipe()
			return first(secret, from, at)
		}
		return newModule(secret, from, at)
	}
	defer secret.Wipe()
	root, err := ring.open(secret, func() (*hsm.Secret, error) {
		if passphrase == nil {
			return nil, hsm.ErrPassphrase
		}
		return passphrase(ctx)
	})
	if err != nil {
		return nil, err
	}
	m, err := newModule(root, from, at)
	if err == nil {
		m.guarded = ring.guarded
	}
	return m, err
}

// first makes the keyring of a credential.
func first(secret *hsm.Secret, from source, at place) (*Module, error) {
	root := hsm.RandomSecret(secretSize)
	ring, err := newKeyring(root, secret, nil)
	if err != nil {
		return nil, err
	}
	if err := hsm.WriteFile(at.path("keyring"), ring.encode(), 0o600); err != nil {
		return nil, err
	}
	return newModule(root, from, at)
}

// unused says whether nothing was ever kept in the directory: only our lock lies there.
func (p place) unused() bool {
	entries, err := os.ReadDir(p.dir)
	return err == nil && len(entries) <= 1
}

// next is where a device secret lies that is to replace the one in use.
func (s source) next() string { return s.path + ".new" }

// settle is rule 1: the keyring says which device secret it was made with.
func (s source) settle(at place) error {
	if s.path == "" {
		return nil
	}
	next, err := readSecret(s.next())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer next.Wipe()
	ring, err := at.keyring()
	if err != nil {
		return err
	}
	if id, err := secretID(next); err != nil {
		return err
	} else if ring != nil && ring.secret == id {
		if err := hsm.WriteFile(s.path, next.Bytes(), 0o600); err != nil {
			return err
		}
	}
	return os.Remove(s.next())
}
