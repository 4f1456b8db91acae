package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// A Tx is a transaction in progress: the methods of all nouns hang on it. It
// belongs to the function that it was given to.
type Tx struct {
	ctx   context.Context
	by    By
	store *Store
	conn  *conn
}

// By is who changes, and when. It is empty in a View.
func (t *Tx) By() By { return t.by }

// exec runs a statement and returns how many rows it changed. A key that is
// there already is ErrExists.
func (t *Tx) exec(query string, args ...any) (int64, error) {
	st, err := t.conn.statement(t.ctx, query)
	if err != nil {
		return 0, err
	}
	r, err := st.ExecContext(t.ctx, args...)
	if isUnique(err) {
		return 0, fmt.Errorf("%w: %w", ErrExists, err)
	}
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// row reads one row into dest; none is ErrNotFound.
func (t *Tx) row(query string, args []any, dest ...any) error {
	st, err := t.conn.statement(t.ctx, query)
	if err != nil {
		return err
	}
	err = st.QueryRowContext(t.ctx, args...).Scan(dest...)
	if errors.Is(err, sql.ErrNoRows) {
		return ErrNotFound
	}
	return err
}

// A scanner is a row to read from: *sql.Row and *sql.Rows.
type scanner interface{ Scan(dest ...any) error }

// get reads one row with scan; none is ErrNotFound.
func get[T any](t *Tx, scan func(scanner) (T, error), query string, args ...any) (T, error) {
	var zero T
	st, err := t.conn.statement(t.ctx, query)
	if err != nil {
		return zero, err
	}
	v, err := scan(st.QueryRowContext(t.ctx, args...))
	if errors.Is(err, sql.ErrNoRows) {
		return zero, ErrNotFound
	}
	return v, err
}

// all reads every row with scan.
func all[T any](t *Tx, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	st, err := t.conn.statement(t.ctx, query)
	if err != nil {
		return nil, err
	}
	rows, err := st.QueryContext(t.ctx, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, rows.Err()
}

// mustChange makes of a statement that found no row ErrNotFound.
func mustChange(n int64, err error) error {
	if err == nil && n == 0 {
		return ErrNotFound
	}
	return err
}

// Times are Unix milliseconds in the database; 0 is the zero time.
func toMillis(at time.Time) int64 {
	if at.IsZero() {
		return 0
	}
	return at.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// now is the time of the change, as rows have it.
func (t *Tx) now() int64 { return toMillis(t.by.At) }

// nullable turns an empty name into NULL.
func nullable(n transport.Name) any {
	if n == "" {
		return nil
	}
	return string(n)
}

// deviceOf reads a device column that may be NULL.
func deviceOf(b []byte) (d transport.DeviceID, err error) {
	if b == nil {
		return d, nil
	}
	if len(b) != len(d) {
		return d, fmt.Errorf("device id of %d bytes in the database", len(b))
	}
	return transport.DeviceID(b), nil
}
