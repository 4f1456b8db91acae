package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// maxPrepared bounds the statements that a connection keeps. The nouns have
// about a hundred; lists make one of each way to ask.
const maxPrepared = 512

// conn is one connection with its prepared statements. One goroutine at a time
// has it. Statements are made on the connection itself: one that had to come
// out of a pool would wait for connections whose holders wait for statements.
type conn struct {
	db       *sql.DB // of this connection alone
	c        *sql.Conn
	prepared map[string]*sql.Stmt
}

func newConn(ctx context.Context, source string) (*conn, error) {
	db, err := sql.Open("sqlite", source)
	if err != nil {
		return nil, err
	}
	c, err := db.Conn(ctx)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &conn{db, c, map[string]*sql.Stmt{}}, nil
}

// statement prepares a query once.
func (c *conn) statement(ctx context.Context, query string) (*sql.Stmt, error) {
	if st, ok := c.prepared[query]; ok {
		return st, nil
	}
	if len(c.prepared) >= maxPrepared {
		c.forget()
	}
	st, err := c.c.PrepareContext(ctx, query)
	if err == nil {
		c.prepared[query] = st
	}
	return st, err
}

// exec runs a statement without arguments, whatever becomes of its caller.
func (c *conn) exec(query string) error {
	st, err := c.statement(context.Background(), query)
	if err != nil {
		return err
	}
	_, err = st.Exec()
	return err
}

func (c *conn) forget() error {
	var errs []error
	for _, st := range c.prepared {
		errs = append(errs, st.Close())
	}
	clear(c.prepared)
	return errors.Join(errs...)
}

// close closes the statements first: open ones would keep the last connection
// from folding the log into the database.
func (c *conn) close() error { return errors.Join(c.forget(), c.c.Close(), c.db.Close()) }

// View runs fn in a read transaction: it sees one state of the database, the
// latest at its first statement. As many run at once as there are readers.
func (s *Store) View(ctx context.Context, fn func(*Tx) error) error {
	c, err := s.reader(ctx)
	if err != nil {
		return err
	}
	defer func() { s.readers <- c }()
	if err := c.exec("BEGIN"); err != nil {
		return fmt.Errorf("read database: %w", err)
	}
	defer c.exec("ROLLBACK") // fails when an interrupted statement has ended the transaction
	return fn(&Tx{ctx: ctx, store: s, conn: c})
}

// reader takes a connection that is free, or makes one, up to maxReaders.
func (s *Store) reader(ctx context.Context) (*conn, error) {
	select {
	case c := <-s.readers:
		return c, nil
	default:
	}
	if c, err := s.newReader(ctx); c != nil || err != nil {
		return c, err
	}
	select {
	case c := <-s.readers:
		return c, nil
	case <-s.ended:
		return nil, ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// newReader makes a connection, or none when there are enough. It keeps mu:
// that happens a few times in a store's life, and Close must know of each.
func (s *Store) newReader(ctx context.Context) (*conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.opened == maxReaders {
		return nil, nil
	}
	c, err := newConn(context.WithoutCancel(ctx), s.readSource)
	if err != nil {
		return nil, fmt.Errorf("read database: %w", err)
	}
	s.opened++
	return c, nil
}
