package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"

	"github.com/kagimori/kagimori/hsm"
)

// Open opens the store at cfg.Path, and creates it if there is none. The directory
// must exist. When the file cannot be used, or is older than it should be, and the
// second copy is the current one, it goes on with that: State().Fallback.
//
// It fails with ErrLocked, ErrDamaged, ErrNewer, ErrForeign, ErrOlder, or,
// wrapped, with what the module says: hsm.ErrAbsent, hsm.ErrLockout, ...,
// hsm.ErrBoot when no slot opens under this boot, and hsm.ErrCounter when the
// counter is gone or was turned back.
func Open(ctx context.Context, cfg Config, module hsm.Module, log *slog.Logger) (*Store, error) {
	o := &opener{cfg: cfg, module: module, log: log, steps: migrations}
	return o.open(ctx)
}

// OpenWith opens a store with its store key, which was kept elsewhere, and seals
// it anew under module, in the place of all slots there are. A counter that is
// gone with another chip is replaced; that counts as a loss, since nobody can
// tell then whether the file is the newest. A wrong key is ErrKey. There must be
// a store. key stays the caller's.
func OpenWith(ctx context.Context, cfg Config, module hsm.Module, key *hsm.Secret, log *slog.Logger) (*Store, error) {
	o := &opener{cfg: cfg, module: module, log: log, steps: migrations, key: key}
	return o.open(ctx)
}

// AcceptOlder opens a store that Open refuses with ErrOlder or hsm.ErrCounter: it
// is the administrator's word that this file is the newest there is. Of file and
// second copy it takes the newer one. Everything else is as in Open.
func AcceptOlder(ctx context.Context, cfg Config, module hsm.Module, log *slog.Logger) (*Store, error) {
	cfg.Accept = true
	return Open(ctx, cfg, module, log)
}

// An opener is one attempt to open a store.
type opener struct {
	cfg    Config
	module hsm.Module
	log    *slog.Logger
	steps  []migration
	key    *hsm.Secret // OpenWith's
}

func (o *opener) open(ctx context.Context) (s *Store, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("open store %s: %w", o.cfg.Path, err)
		}
	}()
	lock, err := acquire(ctx, o.cfg.Path+lockSuffix)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	for _, left := range []string{o.cfg.Path + newSuffix, o.cfg.Path + copySuffix + newSuffix} {
		if err := discard(left); err != nil {
			return nil, err
		}
	}
	if s, err = o.choose(ctx); err != nil {
		return nil, err
	}
	if err := s.arrange(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.lock = lock
	return s, nil
}

// choose opens the file to go on with: the store's, the second copy in its place,
// or a new one.
func (o *opener) choose(ctx context.Context) (*Store, error) {
	main, err := o.current(ctx, o.cfg.Path)
	switch {
	case err == nil && !main.copyIsAhead():
		return main, nil
	case err == nil:
		err = fmt.Errorf("%w (the second copy is newer)", ErrOlder)
	case errors.Is(err, fs.ErrNotExist):
		kept := lastBroken(o.cfg.Path)
		if _, e := os.Stat(o.cfg.Path + copySuffix); errors.Is(e, fs.ErrNotExist) && o.key == nil && kept == "" {
			return o.createAndLoad(ctx)
		}
		err = fmt.Errorf("%w (there is no file %s)", ErrDamaged, o.cfg.Path)
		if kept != "" { // there was a store, and nobody decided to begin anew
			err = fmt.Errorf("%w; what was kept of it is %s: put back a backup of the store, or set what is left aside with: recovery start", err, kept)
		}
	case !o.mayFallBack(err):
		return nil, errors.Join(err, main.Close())
	}
	other, otherErr := o.current(ctx, o.cfg.Path+copySuffix)
	defer func() { _ = other.Close() }()
	if otherErr == nil {
		defer func() { _ = main.Close() }()
		return o.fallBack(ctx, other, err)
	}
	if o.cfg.Accept && (stale(err) || stale(otherErr)) {
		return o.accept(ctx, main, other, err)
	}
	if stale(otherErr) && !stale(err) { // a broken file, and a copy that is not the newest
		err = fmt.Errorf("%w; the file: %w", otherErr, err)
	}
	return nil, errors.Join(err, main.Close())
}

func (o *opener) createAndLoad(ctx context.Context) (*Store, error) {
	if err := o.create(ctx); err != nil {
		return nil, err
	}
	o.log.InfoContext(ctx, "store created", "path", o.cfg.Path, "level", o.module.Level())
	return o.current(ctx, o.cfg.Path)
}

// stale says whether a file is sound, but the counter does not vouch for it.
func stale(err error) bool { return errors.Is(err, ErrOlder) || errors.Is(err, hsm.ErrCounter) }

// mayFallBack says whether the second copy can help. It cannot when key storage
// does not work, nor against a newer release.
func (o *opener) mayFallBack(err error) bool {
	return errors.Is(err, ErrDamaged) || errors.Is(err, ErrForeign) || errors.Is(err, ErrKey) || stale(err)
}

// current loads a file and holds it against the counter. With a stale one it
// returns both, the store and the error.
func (o *opener) current(ctx context.Context, path string) (*Store, error) {
	s, err := o.load(ctx, path)
	if err != nil {
		return nil, err
	}
	if s.counter.blob == nil {
		return s, nil
	}
	value, err := s.readCounter(ctx)
	switch gone := errors.Is(err, hsm.ErrCounter) || errors.Is(err, hsm.ErrReplaced) || errors.Is(err, hsm.ErrBlob); {
	case gone && o.key != nil: // arrange makes a new one
		s.counter = counter{}
		s.todo = todo{}
		s.lostCounter = true
		return s, nil
	case gone:
		return s, fmt.Errorf("%w: accept the file as an administrator if it is the newest (%w)", hsm.ErrCounter, err)
	case err != nil:
		return nil, errors.Join(fmt.Errorf("read the counter: %w", err), s.Close())
	}
	switch n := s.head.behind(value); {
	case n > 0:
		return s, fmt.Errorf("%w (it is of epoch %d, the last one was %d)", ErrOlder, s.head.Epoch, s.head.Epoch+uint64(n))
	case n < -1:
		return s, fmt.Errorf("%w: it was turned back, by %d: accept the file as an administrator if it is the newest", hsm.ErrCounter, -n)
	case n == -1:
		s.todo = todo{scrub: true, copy: true, count: true, again: true}
	}
	return s, nil
}

// load checks and opens one file, and gets its key and its head.
func (o *opener) load(ctx context.Context, path string) (_ *Store, err error) {
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	if err := o.check(ctx, path); err != nil {
		return nil, err
	}
	s := emptyStore(o, path)
	defer func() {
		if err != nil {
			_ = s.Close()
		}
	}()
	if s.db, err = openDB(path, &s.file, false); err != nil {
		return nil, err
	}
	var list []*slotRecord
	err = s.View(func(tx *Tx) (err error) {
		if s.schema, err = readSchema(tx, len(o.steps)+1); err == nil && o.key == nil {
			list, err = tx.slots()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if o.key != nil {
		s.key = o.key.Clone()
	} else if s.key, err = o.unseal(ctx, list); err != nil {
		return nil, err
	}
	err = s.View(func(tx *Tx) (err error) {
		if s.schema == schemaFirst {
			return tx.checkFirst()
		}
		if s.head, err = tx.readHead(); err == nil {
			s.counter.blob = tx.Blob(counterBlob)
			if list == nil {
				list, err = tx.slots()
			}
		}
		return err
	})
	if o.key != nil && errors.Is(err, errNoOpen) {
		err = ErrKey
	}
	s.slots = list
	s.setKeyed(s.head.Keys)
	return s, err
}

// check looks at a file in another process, if it can.
func (o *opener) check(ctx context.Context, path string) error {
	if o.cfg.Check != nil {
		err := o.cfg.Check(ctx, path)
		if err == nil || errors.Is(err, ErrDamaged) || ctx.Err() != nil {
			return err
		}
		o.log.WarnContext(ctx, "the store is checked in this process: another one could not", "path", path, "err", err)
	}
	return checkPages(path)
}

func (s *Store) setKeyed(names []string) {
	for _, name := range names {
		s.keyed[name] = true
	}
}
