package store

import (
	"context"
	"encoding/binary"
	"fmt"
)

// The schema version says what shape the records have. Version 1 is the first;
// migrations[i] takes version i+1 to i+2. Migrations only go forward, all that
// are due run in one transaction, and the list only grows: a terminal may skip
// releases.
var migrations []migration

type migration func(*Tx) error

const schemaKey = "schema"

func encodeSchema(n int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(n)) }

// schema reads the version, which is not sealed: an older program must be able
// to say that it is too old.
func (s *Store) schema(ours int) (version int, err error) {
	var raw []byte
	err = s.View(func(tx *Tx) error {
		raw = tx.raw(bucketMeta, schemaKey)
		return nil
	})
	if err != nil {
		return 0, err
	}
	if len(raw) != 4 || binary.BigEndian.Uint32(raw) == 0 {
		return 0, fmt.Errorf("%w (it has no schema version)", ErrDamaged)
	}
	if theirs := binary.BigEndian.Uint32(raw); theirs > uint32(ours) {
		return 0, fmt.Errorf("%w (schema %d, this program knows up to %d)", ErrNewer, theirs, ours)
	}
	return int(binary.BigEndian.Uint32(raw)), nil
}

func (s *Store) migrate(ctx context.Context, from int, steps []migration) error {
	if from > len(steps) {
		return nil
	}
	err := s.Update(func(tx *Tx) error {
		for i, step := range steps[from-1:] {
			if err := step(tx); err != nil {
				return fmt.Errorf("migrate from schema %d: %w", from+i, err)
			}
		}
		return tx.putRaw(bucketMeta, schemaKey, encodeSchema(len(steps)+1))
	})
	if err != nil {
		return err
	}
	s.log.InfoContext(ctx, "store migrated", "path", s.path, "from", from, "to", len(steps)+1)
	return nil
}
