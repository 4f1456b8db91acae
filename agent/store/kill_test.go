package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/hsm/hsmtest"
)

// kill -9 of a committing daemon at random moments. The kernel outlives the
// daemon, so memory is as good as a disk here: what a disk can lose is in
// replay_test.go.

// killed runs the daemon, kills it, and returns what it acknowledged last, by
// writer, and what it printed as its last words.
func (d crashDaemon) killed(t *testing.T, random *rand.Rand) (acked [maxWriters]int) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = d.env()
	var words strings.Builder
	cmd.Stderr = &words
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
		w, count, err := acknowledgement(line)
		if err != nil {
			t.Fatal(err)
		}
		acked[w] = max(acked[w], count)
		if n == after {
			kill()
		}
	}
	if err := cmd.Wait(); cmd.ProcessState.Exited() {
		t.Fatalf("the daemon ended by itself: %v: %s", err, words.String())
	}
	return acked
}

func acknowledgement(line string) (w, n int, err error) {
	if _, err := fmt.Sscanf(line, "%d %d\n", &w, &n); err != nil || w < 0 || w >= maxWriters {
		return 0, 0, fmt.Errorf("%q is no acknowledgement (%v)", line, err)
	}
	return w, n, nil
}

// survived opens what a dead daemon left, and returns what is wrong with it:
// before is what it held when the daemon started, acked what it acknowledged.
func (d crashDaemon) survived(before, acked [maxWriters]int) (done [maxWriters]int, err error) {
	s, m, err := d.open(context.Background())
	if err != nil {
		return done, err
	}
	defer func() { err = errors.Join(err, s.Close(), m.Close()) }()
	if err := s.Check(context.Background()); err != nil {
		return done, fmt.Errorf("check: %w", err)
	}
	if err := s.State().afterCrash(); err != nil {
		return done, err
	}
	if done, err = judge(s); err != nil {
		return done, err
	}
	for w, n := range done {
		least := max(before[w], acked[w])
		// One command can be under way, and its acknowledgement can get lost.
		// Of the repeated last one nothing is known until it is acknowledged.
		most := least + 1
		if n < least || n > most {
			return done, fmt.Errorf("writer %d: %d commands are in the store, %d were acknowledged", w, n, least)
		}
	}
	return done, nil
}

// afterCrash says what is wrong with a store that was opened after a crash: the
// last key change is finished, and nothing was lost that would need a fall back.
func (st State) afterCrash() error {
	switch {
	case st.Fallback != nil || st.Incarnation != 0:
		return fmt.Errorf("it went on with its second copy: %+v", st.Fallback)
	case st.Counter == nil || *st.Counter != st.Epoch:
		return fmt.Errorf("epoch %d, and the counter says otherwise: %+v", st.Epoch, st)
	case !st.CopyFresh || st.Unfinished != "":
		return fmt.Errorf("the last key change is not finished: %+v", st)
	}
	return nil
}

// killRounds kills a daemon again and again until the judge finds something,
// the time is up, or it was done that often.
func killRounds(t *testing.T, d crashDaemon, rounds int, limit time.Duration, fresh func() crashDaemon) (ran, commands int, err error) {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("%s: seed %d", d.mode, seed)
	random := rand.New(rand.NewPCG(seed, 0))
	began := time.Now()
	var before [maxWriters]int
	for ; ran < rounds && time.Since(began) < limit; ran++ {
		if ran%16 == 0 { // creation is killed as well
			d, before = fresh(), [maxWriters]int{}
		}
		acked := d.killed(t, random)
		done, err := d.survived(before, acked)
		if err != nil {
			return ran, commands, fmt.Errorf("round %d: %w", ran, err)
		}
		for w := range done {
			commands += done[w] - before[w]
		}
		before = done
	}
	return ran, commands, nil
}

func onFile(t *testing.T, mode string) func() crashDaemon {
	return func() crashDaemon { return crashDaemon{dir: quickDir(t), mode: mode} }
}

// onChip takes a new chip for each new store: a chip has room for some counters
// only.
func onChip(t *testing.T, mode string) func() crashDaemon {
	var chip *hsmtest.TPM
	return func() crashDaemon {
		if chip != nil {
			chip.Kill()
		}
		chip = hsmtest.NewTPM(t)
		return crashDaemon{dir: quickDir(t), mode: mode, tpm: chip.Socket}
	}
}

func TestKilledDaemonLosesNothing(t *testing.T) { killAll(t, 70, 4*time.Second) }

// The figure of the design: 10,000 rounds, no unopenable file, no lost
// acknowledged record, no double effect.
func TestSoakKilledDaemon(t *testing.T) {
	if os.Getenv("KAGIMORI_SOAK") == "" {
		t.Skip("takes ten minutes: make soak")
	}
	killAll(t, 4500, 2*time.Hour)
}

// killAll kills daemons on a device secret so often in each mode, and a ninth
// of that on a chip.
func killAll(t *testing.T, rounds int, limit time.Duration) {
	for name, c := range map[string]struct {
		fresh  func() crashDaemon
		rounds int
	}{
		"update":       {onFile(t, "update"), rounds},
		"batch":        {onFile(t, "batch"), rounds},
		"update, chip": {onChip(t, "update"), rounds / 9},
		"batch, chip":  {onChip(t, "batch"), rounds / 9},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			ran, commands, err := killRounds(t, c.fresh(), c.rounds, limit, c.fresh)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d rounds, %d commands, %v", ran, commands, time.Since(began).Round(time.Millisecond))
			if ran > 10 && commands < ran {
				t.Errorf("only %d commands in %d rounds: the test proves little", commands, ran)
			}
		})
	}
}

// The tests above must be able to fail: a daemon that acknowledges too early
// loses changes, one that keeps effect and ledger apart makes them twice.
func TestKilledDaemonControl(t *testing.T) {
	for mode, word := range map[string]string{"early": "were acknowledged", "apart": "should be"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			ran, _, err := killRounds(t, crashDaemon{mode: mode}, 300, time.Minute, onFile(t, mode))
			if err == nil || !strings.Contains(err.Error(), word) {
				t.Errorf("nothing is noticed in %d rounds: %v", ran, err)
			}
			t.Log(err)
		})
	}
}
