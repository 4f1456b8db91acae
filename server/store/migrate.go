package store

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Migrations are numbered without gaps, one-way, and never changed once they
// have shipped. All that are missing run in one transaction.

//go:embed migrations/*.sql
var migrationFiles embed.FS

// migrations returns the texts in order: element 0 is number 1.
func migrations(files fs.FS) ([]string, error) {
	names, err := fs.Glob(files, "migrations/*.sql")
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var texts []string
	for i, name := range names {
		digits := strings.TrimSuffix(strings.TrimPrefix(name, "migrations/"), ".sql")
		if n, err := strconv.Atoi(digits); err != nil || n != i+1 {
			return nil, fmt.Errorf("migration %s stands at place %d", name, i+1)
		}
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, err
		}
		texts = append(texts, string(text))
	}
	return texts, nil
}

func (s *Store) migrate(ctx context.Context) error {
	texts, err := migrations(migrationFiles)
	if err != nil {
		return err
	}
	return s.migrateTo(ctx, texts)
}

func (s *Store) migrateTo(ctx context.Context, texts []string) (err error) {
	const create = `CREATE TABLE IF NOT EXISTS migrations (number INTEGER PRIMARY KEY, actor TEXT NOT NULL, time INTEGER NOT NULL)`
	if _, err := s.writer.c.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
		return fmt.Errorf("begin migration: %w", err)
	}
	defer func() {
		if err != nil {
			s.writer.c.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
		}
	}()
	if _, err := s.writer.c.ExecContext(ctx, create); err != nil {
		return fmt.Errorf("begin migration: %w", err)
	}
	have := 0
	if err := s.writer.c.QueryRowContext(ctx, `SELECT COALESCE(MAX(number), 0) FROM migrations`).Scan(&have); err != nil {
		return fmt.Errorf("read schema version: %w", err)
	}
	if have > len(texts) {
		return &Problem{Kind: "storage", Next: "run the newer kagimori-server, or restore a backup from before the upgrade",
			Err: fmt.Errorf("the database has schema %d, this program knows up to %d: a newer kagimori-server wrote it", have, len(texts))}
	}
	for n := have + 1; n <= len(texts); n++ {
		if _, err := s.writer.c.ExecContext(ctx, texts[n-1]); err != nil {
			return fmt.Errorf("migrate to schema %d: %w", n, err)
		}
		if _, err := s.writer.c.ExecContext(ctx, `INSERT INTO migrations (number, actor, time) VALUES (?, ?, ?)`, n, "server", time.Now().UnixMilli()); err != nil {
			return fmt.Errorf("migrate to schema %d: %w", n, err)
		}
		s.log.Info("database migrated", "schema", n)
	}
	if _, err := s.writer.c.ExecContext(ctx, "COMMIT"); err != nil {
		return fmt.Errorf("commit migration: %w", err)
	}
	return nil
}
