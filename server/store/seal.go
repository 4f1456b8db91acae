package store

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/kagimori/kagimori/hsm"
)

// Secrets are sealed one by one: AES-256-GCM under the column key, with table,
// column and row as associated data, so that a sealed value copied to another
// row does not open there. The column key itself is sealed by hsm. Layout:
// version byte, nonce, ciphertext and tag.

const (
	columnKeySize = 32
	metaColumnKey = "column_key"
	sealVersion   = 1
)

var errSealed = errors.New("a sealed value does not open: the database was changed from outside, or parts of two backups were mixed")

func (s *Store) createColumnKey(ctx context.Context, module hsm.Sealer, by By) error {
	key := hsm.RandomSecret(columnKeySize)
	defer key.Wipe()
	blob, err := module.Seal(ctx, key)
	if err != nil {
		return fmt.Errorf("seal column key: %w", err)
	}
	if err := s.setColumnKey(key); err != nil {
		return err
	}
	return s.Update(ctx, by, func(tx *Tx) error { return tx.PutMeta(metaColumnKey, blob) })
}

func (s *Store) openColumnKey(ctx context.Context, module hsm.Sealer) error {
	var blob hsm.Blob
	err := s.View(ctx, func(tx *Tx) (err error) {
		blob, err = tx.Meta(metaColumnKey)
		return err
	})
	if err != nil {
		return fmt.Errorf("read column key: %w", err)
	}
	key, err := module.Unseal(ctx, blob)
	if err != nil {
		return fmt.Errorf("unseal column key: %w", err)
	}
	defer key.Wipe()
	return s.setColumnKey(key)
}

func (s *Store) setColumnKey(key *hsm.Secret) error {
	if key.Len() != columnKeySize {
		return fmt.Errorf("column key of %d bytes", key.Len())
	}
	block, err := aes.NewCipher(key.Bytes())
	if err != nil {
		return err
	}
	if s.column, err = cipher.NewGCM(block); err != nil {
		return err
	}
	nobodys := hsm.RandomSecret(columnKeySize)
	defer nobodys.Wipe()
	s.decoy = s.seal("terminals", "common_key", "", nobodys)
	return nil
}

func associated(table, column, row string) []byte {
	return []byte(table + "\x00" + column + "\x00" + row)
}

// seal seals a secret for one place in the database.
func (s *Store) seal(table, column, row string, secret *hsm.Secret) []byte {
	sealed := make([]byte, 1+s.column.NonceSize(), 1+s.column.NonceSize()+secret.Len()+s.column.Overhead())
	sealed[0] = sealVersion
	rand.Read(sealed[1:])
	return s.column.Seal(sealed, sealed[1:], secret.Bytes(), associated(table, column, row))
}

// open opens what seal sealed for the same place.
func (s *Store) open(table, column, row string, sealed []byte) (*hsm.Secret, error) {
	n := 1 + s.column.NonceSize()
	if len(sealed) < n || sealed[0] != sealVersion {
		return nil, fmt.Errorf("%s.%s of %s: %w", table, column, row, errSealed)
	}
	plain, err := s.column.Open(nil, sealed[1:n], sealed[n:], associated(table, column, row))
	if err != nil {
		return nil, fmt.Errorf("%s.%s of %s: %w", table, column, row, errSealed)
	}
	return hsm.NewSecret(plain), nil
}
