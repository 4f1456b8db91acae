package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kagimori/kagimori/hsm"
)

const newSuffix = ".new"

// create makes a complete store under another name, syncs it and renames it: a
// bbolt file that is torn while it is made never opens again, so it must not
// have the store's name yet.
func (o *opener) create(ctx context.Context) (err error) {
	path := o.cfg.Path
	s := emptyStore(o, path+newSuffix)
	if err := discard(s.path); err != nil {
		return err
	}
	s.key = hsm.RandomSecret(keySize)
	key := s.key.Clone() // closing wipes it, and without it no counter is given back
	defer key.Wipe()
	defer s.Close()
	slot, _, err := o.firstSlot(ctx, s.key)
	if err != nil {
		return err
	}
	c, _, err := s.makeCounter(ctx) // why there is none is found out again when it opens
	if err != nil {
		return err
	}
	s.setKeyed(o.cfg.Keys)
	if s.db, err = openDB(s.path, &s.file, false); err == nil {
		_, err = s.change(func(tx *Tx) error {
			if c != nil {
				tx.head.Delta = c.value - 1 // nothing is unfinished in epoch 1
				if err := tx.putRaw(bucketBlobs, counterBlob, c.blob); err != nil {
					return err
				}
			}
			return errors.Join(tx.addSlot(slot), tx.putRaw(bucketMeta, schemaKey, encodeSchema(len(o.steps)+1)))
		}, nil)
		err = errors.Join(err, s.Close(), syncPath(s.path))
	}
	if err == nil {
		s.step("written")
		if err = os.Rename(s.path, path); err == nil {
			s.step("created")
			return syncPath(filepath.Dir(path))
		}
	}
	_ = os.Remove(s.path)
	s.key = key
	s.dropCounter(ctx, c)
	if noSpaceText(err) && !errors.Is(err, ErrFull) { // a sync may be the one that says it, and bbolt keeps only its text
		err = fmt.Errorf("%w (%w)", ErrFull, err)
	}
	return fmt.Errorf("create: %w", err)
}

// dropCounter gives back a counter that came to no use.
func (s *Store) dropCounter(ctx context.Context, c *counter) {
	if c == nil || c.blob == nil {
		return
	}
	err := s.useCounter(ctx, func(ctx context.Context, m hsm.Counters, key *hsm.Secret) error {
		return m.DropCounter(ctx, c.blob, key)
	})
	if err != nil {
		s.log.WarnContext(ctx, "a counter that is of no use stays in key storage", "err", err)
	}
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
