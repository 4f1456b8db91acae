package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/kagimori/kagimori/transport"
)

// Check reads everything: every page, and every record, which must open and be
// well formed. It joins all that it finds; each is ErrDamaged. Writers wait
// meanwhile.
func (s *Store) Check(ctx context.Context) error {
	s.writer.Lock()
	defer s.writer.Unlock()
	if err := checkPages(s.path); err != nil {
		return err
	}
	return s.View(func(tx *Tx) error {
		names, err := tx.buckets()
		if err != nil {
			return err
		}
		var bad []error
		for _, name := range names {
			if name[0] == '_' {
				continue // not sealed; Open has looked at what is in there
			}
			err := tx.Each(name, func(key string, decode func(any) error) error {
				var item transport.Raw
				if err := decode(&item); err != nil {
					bad = append(bad, err)
				}
				clear(item)
				return ctx.Err()
			})
			bad = append(bad, err)
		}
		return errors.Join(bad...)
	})
}

func (tx *Tx) buckets() (names []string, err error) {
	defer tx.guard(&err)
	c := tx.b.Cursor()
	for k, _ := c.First(); k != nil; k, _ = c.Next() {
		names = append(names, string(bytes.Clone(k)))
	}
	if len(names) < 2 {
		return nil, fmt.Errorf("%w (buckets are missing)", ErrDamaged)
	}
	return names, nil
}
