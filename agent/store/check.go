package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/kagimori/kagimori/transport"
)

// Check reads everything: every page, what the head vouches for, every record,
// which must open and be well formed, and the second copy. It joins all that it
// finds; each is ErrDamaged. Writers wait meanwhile.
func (s *Store) Check(ctx context.Context) error {
	s.writer.Lock()
	defer s.writer.Unlock()
	if err := checkPages(s.path); err != nil {
		return err
	}
	bad := []error{s.View(func(tx *Tx) error { return tx.check(ctx) })}
	s.mu.Lock()
	fresh := !s.todo.copy
	s.mu.Unlock()
	if fresh {
		err := checkPages(s.path + copySuffix)
		if err == nil {
			err = s.look(s.path+copySuffix, func(tx *Tx) error { return tx.check(ctx) })
		}
		if err == nil && !s.copyIsCurrent() {
			err = fmt.Errorf("%w (it is not of the last key change)", ErrDamaged)
		}
		if err != nil {
			bad = append(bad, fmt.Errorf("second copy: %w", err))
		}
	}
	return errors.Join(bad...)
}

func (tx *Tx) check(ctx context.Context) error {
	h, err := tx.readHead()
	bad := []error{err}
	if err == nil {
		tx.head = h
	}
	names, err := tx.buckets()
	if err != nil {
		return err
	}
	for _, name := range names {
		if name[0] == '_' {
			continue // the head vouches for those
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

// CheckFile is the other side of Config.Check: what a process of its own does
// with a file before a daemon uses it. It checks the pages, and then lets bbolt
// follow all of them, which may end the process. It needs no key and changes
// nothing. It fails with ErrDamaged, or with what keeps it from looking.
func CheckFile(path string) error {
	if err := checkPages(path); err != nil {
		return err
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: foreignLock, NoStatistics: true})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("%w: it uses %s", ErrLocked, path)
	case err != nil:
		return err
	}
	defer db.Close()
	var bad error
	_ = db.View(func(tx *bbolt.Tx) error {
		for err := range tx.Check() { // all of them: it waits for its reader
			if bad == nil && !strings.HasSuffix(err.Error(), "unreachable unfreed") { // only lost room
				bad = fmt.Errorf("%w (%w)", ErrDamaged, err)
			}
		}
		return nil
	})
	return bad
}
