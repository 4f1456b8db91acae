package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/kagimori/kagimori/hsm"
)

const newSuffix = ".new"

// create makes a complete store under another name, syncs it and renames it: a
// bbolt file that is torn while it is made never opens again, so it must not
// have the store's name yet. What a crash left under the other name is removed.
func create(ctx context.Context, path string, module hsm.Module, schema int) error {
	temp := path + newSuffix
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove what an earlier start left: %w", err)
	}
	key := hsm.RandomSecret(chacha20poly1305.KeySize)
	defer key.Wipe()
	blob, err := module.Seal(ctx, key)
	if err != nil {
		return fmt.Errorf("seal the store key: %w", err)
	}
	check, err := sealValue(key, string(bucketMeta), keyCheck, nil)
	if err != nil {
		return err
	}
	if err := write(temp, schema, blob, check); err != nil {
		_ = os.Remove(temp)
		if noSpaceText(err) { // a sync may be the one that says it, and bbolt keeps only its text
			err = fmt.Errorf("%w (%w)", ErrFull, err)
		}
		return fmt.Errorf("create: %w", err)
	}
	if err := os.Rename(temp, path); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	return syncPath(filepath.Dir(path))
}

func write(temp string, schema int, blob hsm.Blob, check []byte) (err error) {
	var file *os.File
	db, err := openDB(temp, &file)
	if err != nil {
		return err
	}
	tx, err := db.Begin(true)
	if err == nil {
		t := &Tx{b: tx}
		err = errors.Join(
			t.putRaw(bucketMeta, schemaKey, encodeSchema(schema)),
			t.putRaw(bucketMeta, keyCheck, check),
			t.putRaw(bucketBlobs, storeKeyBlob, blob))
		if err == nil {
			err = tx.Commit()
		} else {
			_ = tx.Rollback()
		}
	}
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	return syncPath(temp)
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
