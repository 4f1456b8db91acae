package store

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// The daemon dies between every two system calls of its life: creation, changes,
// key changes with their second copy and counter; and again while it mends what
// that left. A loss of the disk's memory is in replay_test.go; here the chip is
// a real one.

// deadly are the calls before which the daemon is killed. Those of the chip's
// owner, which has a thread of its own, are among "write".
var deadly = []string{"pwrite64", "write", "fdatasync", "fsync", "ftruncate", "renameat", "renameat2", "unlinkat", "linkat", "openat"}

// diesAt runs the daemon and kills it before the nth call of one kind. It says
// whether the daemon lived to make that many.
func (d crashDaemon) diesAt(t *testing.T, call string, nth int) (acked [maxWriters]int, died bool) {
	t.Helper()
	cmd := exec.Command("strace", "-f", "-qq", "-e", "signal=none", "-e", "trace="+call, // with --seccomp-bpf no signal would come
		"-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, nth), "-o", "/dev/null", os.Args[0], "-test.run=^$")
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
	for lines := bufio.NewScanner(out); lines.Scan(); {
		w, n, err := acknowledgement(lines.Text() + "\n")
		if err != nil {
			t.Fatal(err)
		}
		acked[w] = n
	}
	err = cmd.Wait()
	status, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if died = status.Signaled() && status.Signal() == syscall.SIGKILL; err != nil && !died {
		t.Fatalf("%s %d: the daemon ended by itself: %v: %s", call, nth, err, words.String())
	}
	return acked, died
}

// everyDeath kills a daemon at each of its calls, step apart, and the one that
// starts after it at a random one. It returns how many died.
func everyDeath(t *testing.T, fresh func() crashDaemon, commands, step int) (deaths, again int) {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for _, call := range deadly {
		for nth := 1 + random.IntN(step); ; nth += step {
			d := fresh()
			d.last = commands
			acked, died := d.diesAt(t, call, nth)
			if !died {
				break
			}
			deaths++
			what := fmt.Sprintf("killed before %s %d", call, nth)
			next := deadly[random.IntN(len(deadly))]
			n := 1 + random.IntN(12)
			d.last = 1 // it opens, finishes what is left, and repeats a command
			more, died := d.diesAt(t, next, n)
			if died {
				again++
				what += fmt.Sprintf(", then before %s %d", next, n)
			}
			if _, err := d.survived([maxWriters]int{}, [maxWriters]int{max(acked[0], more[0])}); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	return deaths, again
}

func TestDeathAtEveryCall(t *testing.T) {
	deaths, again := everyDeath(t, onFile(t, "single"), 6, 13)
	onChip, more := everyDeath(t, onChip(t, "single"), 6, 17)
	t.Logf("%d deaths, %d of them twice; on chips %d and %d", deaths, again, onChip, more)
	if deaths < 6 || onChip < 3 {
		t.Error("too few: the test proves little")
	}
}

func TestSoakDeathAtEveryCall(t *testing.T) {
	if os.Getenv("KAGIMORI_SOAK") == "" {
		t.Skip("takes minutes: make soak")
	}
	deaths, again := everyDeath(t, onFile(t, "single"), 21, 1)
	onChip, more := everyDeath(t, onChip(t, "single"), 11, 1)
	t.Logf("%d deaths, %d of them twice; on chips %d and %d", deaths, again, onChip, more)
}
