package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/file"
	"github.com/kagimori/kagimori/transport"
)

var by = By{Actor: "tester", At: time.UnixMilli(1_800_000_000_000)}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func testModule(t testing.TB, dir string) hsm.Module {
	t.Helper()
	m, err := file.Open(filepath.Join(dir, "device.secret"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// testStore makes a store with the group "default" and checks the whole
// database at the end.
func testStore(t testing.TB) *Store {
	t.Helper()
	dir := t.TempDir()
	s, err := Create(t.Context(), dir, testModule(t, dir), by, quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		checkWhole(t, s)
		s.Close()
	})
	update(t, s, func(tx *Tx) error { return tx.AddGroup("default", hsm.RandomSecret(transport.SecurityCodeSize)) })
	return s
}

// checkWhole lets SQLite check every page, index and foreign key.
func checkWhole(t testing.TB, s *Store) {
	t.Helper()
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return
	}
	s.lead <- struct{}{}
	defer func() { <-s.lead }()
	var answer string
	if err := s.writer.c.QueryRowContext(context.Background(), "PRAGMA integrity_check").Scan(&answer); err != nil || answer != "ok" {
		t.Errorf("integrity check: %q, %v", answer, err)
	}
	rows, err := s.writer.c.QueryContext(context.Background(), "PRAGMA foreign_key_check")
	if err != nil {
		t.Error(err)
		return
	}
	defer rows.Close()
	if rows.Next() {
		t.Error("a row refers to one that is not there")
	}
}

func update(t testing.TB, s *Store, fn func(*Tx) error) {
	t.Helper()
	if err := s.Update(context.Background(), by, fn); err != nil {
		t.Fatal(err)
	}
}

func view(t testing.TB, s *Store, fn func(*Tx) error) {
	t.Helper()
	if err := s.View(context.Background(), fn); err != nil {
		t.Fatal(err)
	}
}

func TestReopenFindsWhatWasWritten(t *testing.T) {
	dir := t.TempDir()
	module := testModule(t, dir)
	s, err := Create(t.Context(), dir, module, by, quiet())
	if err != nil {
		t.Fatal(err)
	}
	code := hsm.RandomSecret(transport.SecurityCodeSize)
	want := Deployment{Name: "demo", Servers: []string{"localhost:8883"}, HTTP: []string{"localhost:8880"}}
	update(t, s, func(tx *Tx) error {
		return errors.Join(tx.AddGroup("default", code), tx.PutDeployment(want))
	})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, fileName+"-wal")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the log is not folded in: %v", err)
	}
	s, err = Open(t.Context(), dir, module, quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	view(t, s, func(tx *Tx) error {
		g, err := tx.Group("default")
		if err != nil || g.Epoch != 1 {
			t.Errorf("%+v, %v", g, err)
		}
		got, err := tx.SecurityCode(g)
		if err != nil || !got.Equal(code) {
			t.Errorf("another security code: %v", err)
		}
		d, err := tx.Deployment()
		if fmt.Sprint(d) != fmt.Sprint(want) {
			t.Errorf("%+v, want %+v", d, want)
		}
		return err
	})
	for _, name := range []string{fileName, fileName + "-wal", fileName + "-shm", lockName} {
		if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, fi.Mode(), err)
		}
	}
}

func TestOpenSaysWhatToDo(t *testing.T) {
	dir := t.TempDir()
	module := testModule(t, dir)
	refused := func(what, kind, next string, err error) {
		t.Helper()
		var p *Problem
		if !errors.As(err, &p) || p.Kind != kind || !strings.Contains(p.Next, next) {
			t.Errorf("%s: %#v", what, err)
		}
	}
	_, err := Open(t.Context(), dir, module, quiet())
	refused("nothing there", "storage", "init", err)

	s, err := Create(t.Context(), dir, module, by, quiet())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Create(t.Context(), dir, module, by, quiet()); !errors.Is(err, os.ErrExist) {
		t.Errorf("created twice: %v", err)
	}
	_, err = Open(t.Context(), dir, module, quiet())
	refused("open twice", "conflict", "stop the other", err)
	if !errors.Is(err, ErrInUse) {
		t.Error(err)
	}
	if _, err := s.writer.c.ExecContext(t.Context(), `INSERT INTO migrations VALUES (99, 'x', 0)`); err != nil {
		t.Fatal(err)
	}
	s.Close()
	_, err = Open(t.Context(), dir, module, quiet())
	refused("newer schema", "storage", "newer", err)

	if err := os.WriteFile(filepath.Join(dir, fileName), []byte(strings.Repeat("rubbish ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(dir, fileName+"-wal"))
	if _, err = Open(t.Context(), dir, module, quiet()); err == nil {
		t.Error("rubbish opened")
	}
}

func TestOpenUnderAnotherModule(t *testing.T) {
	dir := t.TempDir()
	s, err := Create(t.Context(), dir, testModule(t, dir), by, quiet())
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := Open(t.Context(), dir, testModule(t, t.TempDir()), quiet()); !errors.Is(err, hsm.ErrReplaced) {
		t.Errorf("%v, want ErrReplaced", err)
	}
}

func TestMigrationsRunInOneTransactionAndInOrder(t *testing.T) {
	s := testStore(t)
	texts, err := migrations(migrationFiles)
	if err != nil {
		t.Fatal(err)
	}
	broken := append(texts, `CREATE TABLE more (x INTEGER); INSERT INTO nowhere VALUES (1);`)
	if err := s.migrateTo(t.Context(), broken); err == nil {
		t.Fatal("a broken migration passed")
	}
	good := append(texts, `CREATE TABLE more (x INTEGER);`, `INSERT INTO more VALUES (7);`)
	if err := s.migrateTo(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	if err := s.migrateTo(t.Context(), good); err != nil {
		t.Fatalf("again: %v", err)
	}
	n := 0
	if err := s.writer.c.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM more`).Scan(&n); err != nil || n != 1 {
		t.Errorf("%d rows, %v", n, err)
	}
}

func TestSealedColumnsOpenOnlyInTheirPlace(t *testing.T) {
	s := testStore(t)
	key := hsm.RandomSecret(transport.CommonKeySize)
	update(t, s, func(tx *Tx) error {
		return errors.Join(tx.AddTerminal(Terminal{Name: "nav-001", Kind: KindTerminal, Group: "default"}, key),
			tx.AddTerminal(Terminal{Name: "nav-002", Kind: KindTerminal, Group: "default"}, hsm.RandomSecret(transport.CommonKeySize)))
	})
	view(t, s, func(tx *Tx) error {
		got, err := tx.CommonKey("nav-001")
		if err != nil || !got.Equal(key) {
			t.Errorf("another key: %v", err)
		}
		if _, err := tx.CommonKey("nav-003"); !errors.Is(err, ErrNotFound) {
			t.Errorf("unknown terminal: %v", err)
		}
		return nil
	})
	for _, spoil := range []string{
		`UPDATE terminals SET common_key = (SELECT common_key FROM terminals WHERE name = 'nav-002') WHERE name = 'nav-001'`,
		`UPDATE terminals SET common_key = x'01' WHERE name = 'nav-001'`,
	} {
		update(t, s, func(tx *Tx) error { _, err := tx.exec(spoil); return err })
		view(t, s, func(tx *Tx) error {
			if _, err := tx.CommonKey("nav-001"); !errors.Is(err, errSealed) {
				t.Errorf("%s: %v", spoil, err)
			}
			return nil
		})
	}
	update(t, s, func(tx *Tx) error { return tx.RemoveTerminal("nav-001") })
	view(t, s, func(tx *Tx) error {
		if _, err := tx.CommonKey("nav-001"); !errors.Is(err, ErrNotFound) {
			t.Errorf("a removed terminal's key is still there: %v", err)
		}
		return nil
	})
}

func TestSecretsAreNotInTheFiles(t *testing.T) {
	s := testStore(t)
	needle := hsm.NewSecret([]byte(strings.Repeat("needle! ", transport.CommonKeySize/8)))
	update(t, s, func(tx *Tx) error {
		return tx.AddTerminal(Terminal{Name: "nav-001", Kind: KindTerminal, Group: "default"}, needle)
	})
	dir := filepath.Dir(s.lock.Name())
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(data), "needle! needle!") {
			t.Errorf("common key in clear in %s", f.Name())
		}
		found = found || strings.Contains(string(data), "nav-001")
	}
	if !found {
		t.Error("the row is not in the files at all: this test sees nothing")
	}
}

func TestAuditIsAppendOnly(t *testing.T) {
	s := testStore(t)
	update(t, s, func(tx *Tx) error { return tx.Audit("terminal.add", "nav-001", "") })
	for _, q := range []string{`UPDATE audit SET actor = 'nobody'`, `DELETE FROM audit`} {
		if err := s.Update(t.Context(), by, func(tx *Tx) error { _, err := tx.exec(q); return err }); err == nil {
			t.Errorf("%s: allowed", q)
		}
	}
	view(t, s, func(tx *Tx) error {
		list, err := tx.AuditAfter(0, 10)
		if len(list) != 1 || list[0].Actor != "tester" || !list[0].Time.Equal(by.At) {
			t.Errorf("%+v", list)
		}
		return err
	})
}

func TestEveryRowHasActorAndTime(t *testing.T) {
	s := testStore(t)
	tables, err := s.writer.c.QueryContext(t.Context(), `SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'`)
	if err != nil {
		t.Fatal(err)
	}
	defer tables.Close()
	count := 0
	for tables.Next() {
		var name string
		if err := tables.Scan(&name); err != nil {
			t.Fatal(err)
		}
		count++
		var n int
		if err := s.writer.c.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM pragma_table_info(?) WHERE name IN ('actor', 'time') AND "notnull" = 1`, name).Scan(&n); err != nil || n != 2 {
			t.Errorf("table %s: %d of actor and time, %v", name, n, err)
		}
	}
	if count < 14 {
		t.Errorf("only %d tables seen", count)
	}
}

func TestConcurrentUse(t *testing.T) {
	s := testStore(t)
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			for j := range 8 {
				name := transport.Name(fmt.Sprintf("nav-%d-%d", i, j))
				update(t, s, func(tx *Tx) error {
					return tx.AddTerminal(Terminal{Name: name, Kind: KindTerminal, Group: "default"}, hsm.RandomSecret(transport.CommonKeySize))
				})
				view(t, s, func(tx *Tx) error { _, err := tx.Terminal(name); return err })
			}
		})
	}
	wg.Wait()
	view(t, s, func(tx *Tx) error {
		list, next, err := tx.Terminals(Query{Limit: MaxPage})
		if len(list) != MaxPage || next == "" {
			t.Errorf("%d terminals, next %q", len(list), next)
		}
		return err
	})
}
