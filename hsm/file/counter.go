package file

// Counters are files, one each, that say of themselves whose they are:
//
//	magic 8 | id 8 | value 8 | HMAC-SHA256 of all before 32
//
// The MAC's key comes from the root key and the caller's. Whoever can write the
// disk can put an older file back, and nothing here notices: RollbackProof says
// so.

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/kagimori/kagimori/hsm"
)

const (
	counterMagic  = "KGCOUNT1"
	counterIDSize = 8
	counterSize   = len(counterMagic) + counterIDSize + 8 + sha256.Size
)

// RollbackProof is false: a counter here is a file like any other.
func (m *Module) RollbackProof() bool { return false }

// NewCounter makes a counter that stands at zero.
func (m *Module) NewCounter(ctx context.Context, key *hsm.Secret) (hsm.Blob, error) {
	id := make([]byte, counterIDSize)
	rand.Read(id)
	c, err := m.counter(ctx, id, key)
	if err != nil {
		return nil, fmt.Errorf("make counter: %w", err)
	}
	defer c.key.Wipe()
	if err := hsm.CreateFile(c.path, c.encode(0), 0o600); err != nil {
		return nil, fmt.Errorf("make counter: %w", err)
	}
	blob, err := m.wrap(ctx, hsm.PurposeCounter, nil, id)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make counter: %w", err), os.Remove(c.path))
	}
	return blob, nil
}

// Count reads a counter.
func (m *Module) Count(ctx context.Context, blob hsm.Blob, key *hsm.Secret) (uint64, error) {
	c, err := m.findCounter(ctx, blob, key)
	if err != nil {
		return 0, fmt.Errorf("read counter: %w", err)
	}
	defer c.key.Wipe()
	n, err := c.read()
	if err != nil {
		return 0, fmt.Errorf("read counter: %w", err)
	}
	return n, nil
}

// Increment adds one, durably: two that run at the same time add two.
func (m *Module) Increment(ctx context.Context, blob hsm.Blob, key *hsm.Secret) (n uint64, err error) {
	c, err := m.findCounter(ctx, blob, key)
	if err != nil {
		return 0, fmt.Errorf("increment counter: %w", err)
	}
	defer c.key.Wipe()
	err = m.place.locked(func() error {
		if n, err = c.read(); err != nil {
			return err
		}
		n++
		return hsm.WriteFile(c.path, c.encode(n), 0o600)
	})
	if err != nil {
		return 0, fmt.Errorf("increment counter: %w", err)
	}
	return n, nil
}

// DropCounter removes a counter; the key must be its owner's.
func (m *Module) DropCounter(ctx context.Context, blob hsm.Blob, key *hsm.Secret) error {
	c, err := m.findCounter(ctx, blob, key)
	if err != nil {
		return fmt.Errorf("drop counter: %w", err)
	}
	defer c.key.Wipe()
	err = m.place.locked(func() error {
		if _, err := c.read(); err != nil {
			return err
		}
		return os.Remove(c.path)
	})
	if err != nil {
		return fmt.Errorf("drop counter: %w", err)
	}
	return nil
}

// A counter is one counter's file and the key of its MAC.
type counter struct {
	path string
	id   []byte
	key  *hsm.Secret
}

func (m *Module) findCounter(ctx context.Context, blob hsm.Blob, key *hsm.Secret) (*counter, error) {
	id, _, err := m.unwrap(ctx, hsm.PurposeCounter, blob)
	if err != nil {
		return nil, err
	}
	if id.Len() != counterIDSize {
		return nil, fmt.Errorf("%w: a counter's id of %d bytes", hsm.ErrBlob, id.Len())
	}
	return m.counter(ctx, id.Bytes(), key)
}

func (m *Module) counter(ctx context.Context, id []byte, key *hsm.Secret) (*counter, error) {
	if err := hsm.CheckCounterKey(key); err != nil {
		return nil, err
	}
	mine, err := m.mac(ctx, hsm.PurposeCounter, "owner", key.Bytes())
	if err != nil {
		return nil, err
	}
	return &counter{path: m.place.path("counter-" + hex.EncodeToString(id)), id: id, key: mine}, nil
}

func (c *counter) encode(n uint64) []byte {
	b := make([]byte, 0, counterSize)
	b = append(append(b, counterMagic...), c.id...)
	b = binary.BigEndian.AppendUint64(b, n)
	h := hmac.New(sha256.New, c.key.Bytes())
	h.Write(b)
	return h.Sum(b)
}

// read gives the value. A file that is gone, damaged, or another key's is
// hsm.ErrCounter: it is not the counter that was made.
func (c *counter) read() (uint64, error) {
	b, err := readSmall(c.path, counterSize)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0, fmt.Errorf("%w: no file %s; put it back if it was moved", hsm.ErrCounter, c.path)
	case err != nil:
		return 0, err
	case len(b) != counterSize:
		return 0, fmt.Errorf("%w: %s has %d bytes, a counter has %d", hsm.ErrCounter, c.path, len(b), counterSize)
	}
	n := binary.BigEndian.Uint64(b[len(counterMagic)+counterIDSize:])
	if !hmac.Equal(b, c.encode(n)) {
		return 0, fmt.Errorf("%w: %s is damaged, or was made with another key", hsm.ErrCounter, c.path)
	}
	return n, nil
}

// readSmall reads a file of at most size bytes, and one byte more of a longer one.
func readSmall(path string, size int) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, int64(size)+1))
}
