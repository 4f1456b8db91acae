package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kagimori/kagimori/hsm/file"
)

// The writer that is killed is this test binary, started again. The kernel
// outlives it, so memory is as good as a disk here.
const (
	envCrashDir  = "KAGIMORI_TEST_CRASH_DIR"
	envCrashMode = "KAGIMORI_TEST_CRASH_MODE"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(envCrashDir); dir != "" {
		if err := crashWriter(dir, os.Getenv(envCrashMode)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

const crashWriters = 3

// crashWriter writes until it is killed and prints a line for every change
// that the store acknowledged: which of the writers, and its how manieth.
func crashWriter(dir, mode string) error {
	m, err := file.Open(filepath.Join(dir, "device-secret"))
	if err != nil {
		return err
	}
	s, err := Open(context.Background(), filepath.Join(dir, "store"), m, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	commit := s.Update
	if mode == "batch" {
		commit = s.Batch
	}
	var wg sync.WaitGroup
	var failed error
	for w := range crashWriters {
		wg.Go(func() {
			for {
				var n int
				if err := s.View(func(tx *Tx) error { return crashCount(tx, w, &n) }); err != nil {
					failed = err
					return
				}
				ack := fmt.Sprintf("%d %d\n", w, n+1)
				if mode == "early" { // what a store that does not sync amounts to
					os.Stdout.WriteString(ack)
				}
				if err := commit(func(tx *Tx) error { return crashChange(tx, w, n+1) }); err != nil {
					failed = err
					return
				}
				if mode != "early" {
					os.Stdout.WriteString(ack)
				}
			}
		})
	}
	wg.Wait()
	return failed
}

// crashChange is one change: a record in a queue and the writer's count, which
// must never be seen apart.
func crashChange(tx *Tx, w, n int) error {
	_, err := tx.Append("queue", record{N: w*1_000_000 + n, Name: strings.Repeat("x", 50)})
	return errors.Join(err, tx.Put("count", fmt.Sprint(w), n))
}

func crashCount(tx *Tx, w int, n *int) error {
	_, err := tx.Get("count", fmt.Sprint(w), n)
	return err
}

// crashRound starts a writer, kills it, and returns what it acknowledged last,
// by writer.
func crashRound(t *testing.T, dir, mode string, random *rand.Rand) (acked [crashWriters]int) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), envCrashDir+"="+dir, envCrashMode+"="+mode)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := func() { _ = cmd.Process.Kill() }
	after := random.IntN(20)
	if after == 0 || random.IntN(4) == 0 { // while it opens, or at any other moment
		after = -1
		defer time.AfterFunc(time.Duration(random.IntN(60_000))*time.Microsecond, kill).Stop()
	}
	lines := bufio.NewReader(out)
	for n := 1; ; n++ {
		line, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		var w, count int
		if _, err := fmt.Sscanf(line, "%d %d\n", &w, &count); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		acked[w] = max(acked[w], count)
		if n == after {
			kill()
		}
	}
	if err := cmd.Wait(); cmd.ProcessState.Exited() {
		t.Fatalf("the writer ended by itself: %v", err)
	}
	return acked
}

// crashVerify reads the store and returns how many acknowledged changes it lost.
func crashVerify(t *testing.T, dir string, acked [crashWriters]int) (lost int) {
	t.Helper()
	m, err := file.Open(filepath.Join(dir, "device-secret"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	checkInvariants(t, filepath.Join(dir, "store"), m)
	s := mustOpen(t, filepath.Join(dir, "store"), m)
	defer s.Close()
	view(t, s, func(tx *Tx) error {
		var queued [crashWriters]int
		err := tx.Each("queue", func(_ string, decode func(any) error) error {
			var r record
			if err := decode(&r); err != nil {
				return err
			}
			w, n := r.N/1_000_000, r.N%1_000_000
			if queued[w]++; n != queued[w] {
				t.Errorf("writer %d: %d stands where %d should", w, n, queued[w])
			}
			return nil
		})
		if err != nil {
			return err
		}
		for w := range crashWriters {
			var n int
			if err := crashCount(tx, w, &n); err != nil {
				return err
			}
			if n != queued[w] {
				t.Errorf("writer %d: count %d, queue %d: half a transaction", w, n, queued[w])
			}
			if n > acked[w]+1 && acked[w] > 0 {
				t.Errorf("writer %d: %d changes, only %d were acknowledged and one can be under way", w, n, acked[w])
			}
			lost += max(0, acked[w]-n)
		}
		return nil
	})
	return lost
}

func TestKilledWriterLosesNothing(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	rounds, total := 100, 0
	var dir string
	for round := range rounds {
		if round%8 == 0 { // creation is killed as well
			dir = quickDir(t)
		}
		acked := crashRound(t, dir, []string{"update", "batch"}[round%2], random)
		if lost := crashVerify(t, dir, acked); lost > 0 {
			t.Fatalf("round %d: %d acknowledged changes are lost (acknowledged %v)", round, lost, acked)
		}
		for _, n := range acked {
			total += n
		}
	}
	t.Logf("%d rounds, %d acknowledged changes", rounds, total)
}

// The test above must be able to fail: a writer that acknowledges before the
// change is durable loses some of them.
func TestKilledWriterControl(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for round := range 200 {
		dir := quickDir(t)
		if crashVerify(t, dir, crashRound(t, dir, "early", random)) > 0 {
			t.Logf("lost in round %d", round)
			return
		}
	}
	t.Error("no loss is noticed in 200 rounds")
}
