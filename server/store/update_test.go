package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/kagimori/kagimori/hsm/file"
)

func counted(t testing.TB, s *Store, action string) (n int) {
	t.Helper()
	if err := s.writer.c.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM audit WHERE action = ?`, action).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

var errWanted = errors.New("wanted")

// hold keeps the writer busy until release is called, so that what is
// submitted meanwhile shares one commit.
func hold(t *testing.T, s *Store) (release func()) {
	t.Helper()
	s.lead <- struct{}{}
	return func() { <-s.lead }
}

// waitQueued returns when n transactions wait.
func waitQueued(s *Store, n int) {
	for queued := 0; queued < n; runtime.Gosched() {
		s.mu.Lock()
		queued = len(s.queue)
		s.mu.Unlock()
	}
}

func TestOneFailureTakesNobodyWithIt(t *testing.T) {
	s := testStore(t)
	release := hold(t, s)
	const n = 20
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			errs[i] = s.Update(t.Context(), by, func(tx *Tx) error {
				if err := tx.Audit("batch", strconv.Itoa(i), ""); err != nil {
					return err
				}
				switch {
				case i%5 == 1:
					return errWanted
				case i%5 == 2:
					_, err := tx.exec(`INSERT INTO groups (name) VALUES (NULL)`)
					return err
				}
				return nil
			})
		})
	}
	waitQueued(s, n)
	release()
	wg.Wait()
	for i, err := range errs {
		if bad := i%5 == 1 || i%5 == 2; bad != (err != nil) {
			t.Errorf("transaction %d: %v", i, err)
		}
		if i%5 == 1 && err != errWanted {
			t.Errorf("transaction %d: %v, want its own error", i, err)
		}
	}
	if got := counted(t, s, "batch"); got != n-8 {
		t.Errorf("%d rows, want %d", got, n-8)
	}
}

func TestPanicReachesItsOwnerOnly(t *testing.T) {
	s := testStore(t)
	func() {
		defer func() {
			if p := recover(); p == nil || !strings.Contains(fmt.Sprint(p), "boom") {
				t.Errorf("recovered %v", p)
			}
		}()
		s.Update(t.Context(), by, func(tx *Tx) error {
			tx.Audit("panic", "", "")
			panic("boom")
		})
	}()
	update(t, s, func(tx *Tx) error { return tx.Audit("after", "", "") })
	if counted(t, s, "panic") != 0 || counted(t, s, "after") != 1 {
		t.Error("the panic left something, or stopped the writer")
	}
}

func TestUpdateHonoursItsContextWhileItWaits(t *testing.T) {
	s := testStore(t)
	release := hold(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- s.Update(ctx, by, func(tx *Tx) error { return tx.Audit("late", "", "") })
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	release()
	update(t, s, func(tx *Tx) error { return tx.Audit("next", "", "") })
	if counted(t, s, "late") != 0 {
		t.Error("a withdrawn transaction was written")
	}
	if err := s.Update(ctx, by, func(*Tx) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("begun after the end: %v", err)
	}
}

func TestCloseRefusesWhatWaits(t *testing.T) {
	s := testStore(t)
	release := hold(t, s)
	done := make(chan error)
	go func() { done <- s.Update(t.Context(), by, func(tx *Tx) error { return nil }) }()
	waitQueued(s, 1)
	closed := make(chan error)
	go func() { closed <- s.Close() }()
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
	release()
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if err := s.Update(t.Context(), by, func(*Tx) error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("after close: %v", err)
	}
}

// A full disk: SQLite gives up the whole transaction, and everybody in the
// batch must hear it.
func TestFullDiskIsSaidAndForgotten(t *testing.T) {
	s := testStore(t)
	var pages int
	if err := s.writer.c.QueryRowContext(t.Context(), `PRAGMA page_count`).Scan(&pages); err != nil {
		t.Fatal(err)
	}
	limit := func(n int) {
		var got int
		if err := s.writer.c.QueryRowContext(t.Context(), fmt.Sprintf(`PRAGMA max_page_count = %d`, n)).Scan(&got); err != nil || got != n {
			t.Fatalf("limit %d, %v", got, err)
		}
	}
	limit(pages + 2)
	release := hold(t, s)
	const n = 10
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			errs[i] = s.Update(t.Context(), by, func(tx *Tx) error {
				return tx.Audit("full", "", strings.Repeat("x", 4000))
			})
		})
	}
	waitQueued(s, n)
	release()
	wg.Wait()
	failed := 0
	for _, err := range errs {
		if err != nil {
			failed++
		}
	}
	if failed == 0 {
		t.Fatal("nobody heard that the disk is full")
	}
	if got := counted(t, s, "full"); got != n-failed {
		t.Errorf("%d said done, %d rows", n-failed, got)
	}
	limit(1 << 20)
	update(t, s, func(tx *Tx) error { return tx.Audit("space", "", "") })
	if counted(t, s, "space") != 1 {
		t.Error("space again, and still nothing is written")
	}
}

const killDir = "KAGIMORI_STORE_KILL_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(killDir); dir != "" {
		writeUntilKilled(dir)
	}
	os.Exit(m.Run())
}

// writeUntilKilled is the child of TestKilledWriterLosesNothing: it says each
// number once it is durable.
func writeUntilKilled(dir string) {
	module, err := file.Open(filepath.Join(dir, "device.secret"))
	if err != nil {
		panic(err)
	}
	s, err := Open(context.Background(), dir, module, quiet())
	if err != nil {
		panic(err)
	}
	from, err := strconv.Atoi(os.Getenv(killDir + "_FROM"))
	if err != nil {
		panic(err)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := from + w; ; i += 8 {
				err := s.Update(context.Background(), by, func(tx *Tx) error { return tx.Audit("killed", strconv.Itoa(i), "") })
				if err != nil {
					panic(err)
				}
				mu.Lock()
				fmt.Printf("done %d\n", i)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// killRound runs the child until it has said so many numbers, and notes them.
func killRound(t *testing.T, dir string, from, many int, said map[string]bool) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), killDir+"="+dir, fmt.Sprintf("%s_FROM=%d", killDir, from))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for n := 0; lines.Scan(); {
		number, ok := strings.CutPrefix(lines.Text(), "done ")
		if !ok {
			continue
		}
		said[number] = true
		if n++; n == many {
			cmd.Process.Kill()
		}
	}
	cmd.Wait()
}

func TestKilledWriterLosesNothing(t *testing.T) {
	dir := t.TempDir()
	module := testModule(t, dir)
	s, err := Create(t.Context(), dir, module, by, quiet())
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	said := map[string]bool{}
	for round := range 8 {
		killRound(t, dir, round*1_000_000, 20+13*round, said)
	}
	if len(said) < 8*20 {
		t.Fatalf("only %d rows were acknowledged", len(said))
	}
	s, err = Open(t.Context(), dir, module, quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	checkWhole(t, s)
	rows, err := s.writer.c.QueryContext(t.Context(), `SELECT object, COUNT(*) FROM audit WHERE action = 'killed' GROUP BY object`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var object string
		var n int
		if err := rows.Scan(&object, &n); err != nil {
			t.Fatal(err)
		}
		if n != 1 {
			t.Errorf("%s is there %d times", object, n)
		}
		delete(said, object)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	if len(said) > 0 {
		t.Errorf("%d acknowledged rows are lost", len(said))
	}
}

func BenchmarkUpdate(b *testing.B) {
	s := testStore(b)
	b.SetParallelism(64)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			update(b, s, func(tx *Tx) error { return tx.Audit("bench", "x", "") })
		}
	})
}
