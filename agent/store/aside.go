package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"

	"github.com/kagimori/kagimori/hsm"
)

// Stores that are set aside: nobody writes to them any more, and no module opens
// them. What is in clear can be seen, and with the store key all the rest.

// Peek gives the blobs of the store at path, or, when that file is damaged, of
// its second copy. It needs no key, and writes nothing but a lock file.
func Peek(ctx context.Context, path string) (map[string]hsm.Blob, error) {
	lock, err := acquire(ctx, path+lockSuffix)
	if err != nil {
		return nil, fmt.Errorf("look into store %s: %w", path, err)
	}
	defer lock.Close()
	var failed []error
	for _, file := range []string{path, path + copySuffix} {
		blobs, err := peek(file)
		if err == nil {
			return blobs, nil
		}
		failed = append(failed, err)
	}
	return nil, fmt.Errorf("look into store %s: %w", path, errors.Join(failed...))
}

func peek(path string) (blobs map[string]hsm.Blob, err error) {
	if err := checkPages(path); err != nil {
		return nil, err
	}
	s := emptyStore(&opener{log: slog.New(slog.DiscardHandler)}, path)
	defer s.Close()
	if s.db, err = openDB(path, &s.file, true); err != nil {
		return nil, err
	}
	blobs = map[string]hsm.Blob{}
	err = s.View(func(tx *Tx) (err error) {
		defer tx.guard(&err)
		b := tx.b.Bucket(bucketBlobs)
		if b == nil {
			return fmt.Errorf("%w (it has no blobs)", ErrDamaged)
		}
		return b.ForEach(func(k, v []byte) error {
			blobs[string(bytes.Clone(k))] = bytes.Clone(v)
			return nil
		})
	})
	return blobs, err
}

// An Aside is a store that is only read.
type Aside struct {
	s    *Store
	used string
}

// OpenAside opens the store at path, or its second copy, with its store key and
// without a module: so no counter says whether it is the newest. It takes the
// newer one of the two that are sound, and fails with ErrKey when the key is not
// theirs. One of schema 1 is read as it is. key stays the caller's.
func OpenAside(ctx context.Context, path string, key *hsm.Secret, log *slog.Logger) (*Aside, error) {
	lock, err := acquire(ctx, path+lockSuffix)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	o := &opener{cfg: Config{Path: path}, log: log, steps: migrations, key: key}
	var best *Store
	var failed []error
	for _, file := range []string{path, path + copySuffix} {
		s, err := o.load(ctx, file)
		switch {
		case err == nil && (best == nil || newer(&s.head, &best.head)):
			failed = append(failed, best.Close())
			best = s
		case err == nil:
			failed = append(failed, s.Close())
		case !errors.Is(err, fs.ErrNotExist):
			failed = append(failed, err)
		}
	}
	if best == nil {
		if err = errors.Join(failed...); err == nil {
			err = fmt.Errorf("%w (there is no file)", ErrDamaged)
		}
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	best.lock, best.asFirst = lock, best.schema == schemaFirst
	return &Aside{s: best, used: best.path}, nil
}

// Path is the file that is read: the store's, or its second copy.
func (a *Aside) Path() string { return a.used }

// View runs fn in a read transaction.
func (a *Aside) View(fn func(*Tx) error) error { return a.s.View(fn) }

// Close closes it and wipes its key.
func (a *Aside) Close() error { return a.s.Close() }

// DropCounter frees the place in module that the store's counter has, if it has
// one there.
func (a *Aside) DropCounter(ctx context.Context, module hsm.Module) error {
	if a.s.counter.blob == nil {
		return nil
	}
	a.s.o.module = module
	err := a.s.useCounter(ctx, func(ctx context.Context, c hsm.Counters, key *hsm.Secret) error {
		return c.DropCounter(ctx, a.s.counter.blob, key)
	})
	if errors.Is(err, hsm.ErrCounter) || errors.Is(err, hsm.ErrReplaced) || errors.Is(err, hsm.ErrBlob) {
		return nil // it went with the chip that it was in
	}
	return err
}

// newer says whether x is of a later life than y, or of a later key change.
func newer(x, y *head) bool {
	return x.Incarnation > y.Incarnation || x.Incarnation == y.Incarnation && x.Epoch > y.Epoch
}
