package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/file"
	"github.com/kagimori/kagimori/hsm/tpm"
)

// What the crash tests have in common: a daemon that obeys commands as an agent
// does, and a judge that knows from the commands alone what a store must hold.
// The daemon is this test binary, started again by a test that then kills it,
// traces it or fills its disk. START HERE; then kill_test.go, replay_test.go
// and nospace_test.go.

// A crashDaemon is what the test binary becomes when it is started again.
type crashDaemon struct {
	dir  string
	mode string // a key of crashModes
	tpm  string // socket of a TPM; empty: a device secret in dir
	last int    // stop after so many commands of each writer; 0: never
}

const (
	envCrashDir  = "KAGIMORI_TEST_CRASH_DIR"
	envCrashMode = "KAGIMORI_TEST_CRASH_MODE"
	envCrashTPM  = "KAGIMORI_TEST_CRASH_TPM"
	envCrashLast = "KAGIMORI_TEST_CRASH_LAST"
)

// crashModes are the ways in which a daemon obeys.
var crashModes = map[string]struct {
	writers int
	batch   bool
	// What is wrong with it, so that the judge must find something:
	early  bool // acknowledges before the change is made
	apart  bool // the effect and its ledger row are two changes
	noSync bool // the store does not wait for the disk
	deaf   bool // acknowledges what did not fit
}{
	"update": {writers: 3},
	"single": {writers: 1}, // the order of its system calls is always the same
	"batch":  {writers: 3, batch: true},
	"early":  {writers: 3, early: true},
	"apart":  {writers: 3, apart: true},
	"nosync": {writers: 1, noSync: true},
	"deaf":   {writers: 1, deaf: true},
}

// maxWriters is the most that any of crashModes has.
const maxWriters = 3

func TestMain(m *testing.M) {
	if dir := os.Getenv(envCrashDir); dir != "" {
		d := crashDaemon{dir: dir, mode: os.Getenv(envCrashMode), tpm: os.Getenv(envCrashTPM)}
		_, _ = fmt.Sscan(os.Getenv(envCrashLast), &d.last)
		if err := d.run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(exitCode(err))
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// How a daemon ended that could not go on.
const (
	exitOther  = 1
	exitFull   = 3
	exitFailed = 4
)

func exitCode(err error) int {
	switch {
	case errors.Is(err, ErrFailed), strings.Contains(err.Error(), syscall.EIO.Error()):
		return exitFailed
	case errors.Is(err, ErrFull), noSpace(err):
		return exitFull
	}
	return exitOther
}

// env is the environment in which the test binary becomes d.
func (d crashDaemon) env() []string {
	return append(os.Environ(), "GORACE=atexit_sleep_ms=0",
		envCrashDir+"="+d.dir, envCrashMode+"="+d.mode, envCrashTPM+"="+d.tpm, fmt.Sprint(envCrashLast, "=", d.last))
}

// open opens the daemon's key storage and its store. Everything is below dir,
// and all is made anew when there is nothing.
func (d crashDaemon) open(ctx context.Context) (*Store, hsm.Module, error) {
	m, err := d.module(ctx)
	if err != nil {
		return nil, nil, err
	}
	s, err := Open(ctx, crashConfig(d.dir), m, quiet())
	if err != nil {
		return nil, nil, errors.Join(err, m.Close())
	}
	return s, m, nil
}

func (d crashDaemon) module(ctx context.Context) (hsm.Module, error) {
	if d.tpm != "" {
		return tpm.Open(ctx, d.tpm, quiet())
	}
	return file.Open(filepath.Join(d.dir, "device-secret"))
}

// crashConfig is the store of all daemons here.
func crashConfig(dir string) Config {
	return Config{Path: filepath.Join(dir, "store"), Keys: []string{"credential"}}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// run obeys commands until it is killed. After each it prints which of the
// writers it was and its how manieth: the acknowledgement.
func (d crashDaemon) run() error {
	mode := crashModes[d.mode]
	if mode.writers == 1 {
		// strace counts the calls of each thread by itself.
		runtime.LockOSThread()
	}
	s, m, err := d.open(context.Background())
	if err != nil {
		return err
	}
	s.db.NoSync = mode.noSync
	errs := make([]error, mode.writers)
	if mode.writers == 1 {
		errs[0] = d.obey(s, 0)
	} else {
		var wg sync.WaitGroup
		for w := range mode.writers {
			wg.Go(func() { errs[w] = d.obey(s, w) })
		}
		wg.Wait()
	}
	return errors.Join(errors.Join(errs...), s.Close(), m.Close())
}

// obey begins with the last command once more: whoever sent it cannot know
// whether its acknowledgement was lost with the daemon.
func (d crashDaemon) obey(s *Store, w int) error {
	mode := crashModes[d.mode]
	n := 0
	if err := s.View(func(tx *Tx) error { _, err := tx.Get("effects", fmt.Sprint(w), &n); return err }); err != nil {
		return err
	}
	change := s.Update
	if mode.batch {
		change = s.Batch
	}
	for n = max(n, 1); d.last == 0 || n <= d.last; n++ {
		ack := fmt.Sprintf("%d %d\n", w, n)
		if mode.early {
			os.Stdout.WriteString(ack)
		}
		var err error
		if mode.apart {
			err = errors.Join(
				change(func(tx *Tx) error { return effect(tx, w, n) }),
				change(func(tx *Tx) error { return enter(tx, w, n) }))
		} else {
			err = change(func(tx *Tx) error { return command(tx, w, n) })
		}
		for range 3 { // that there is no room may pass
			if errors.Is(err, ErrFull) {
				err = change(func(tx *Tx) error { return command(tx, w, n) })
			}
		}
		if err != nil && !mode.deaf {
			return err
		}
		if !mode.early {
			if _, err := os.Stdout.WriteString(ack); err != nil {
				return err
			}
		}
	}
	return nil
}

// command is one idempotent command: its effect and its ledger row at once, and
// nothing if the ledger has it already.
func command(tx *Tx, w, n int) error {
	if found, err := tx.Get("ledger", commandID(w, n), &record{}); found || err != nil {
		return err
	}
	return errors.Join(effect(tx, w, n), enter(tx, w, n))
}

const ledgerRows = 40 // that are kept of each writer

func commandID(w, n int) string { return fmt.Sprintf("%d-%06d", w, n) }

func enter(tx *Tx, w, n int) error {
	return errors.Join(
		tx.Put("ledger", commandID(w, n), payload(w, n)),
		tx.Delete("ledger", commandID(w, n-ledgerRows)))
}

// effect counts, and by the number changes a key, queues a message, or empties
// the queue of what the writer queued.
func effect(tx *Tx, w, n int) error {
	done := 0
	_, err := tx.Get("effects", fmt.Sprint(w), &done)
	err = errors.Join(err, tx.Put("effects", fmt.Sprint(w), done+1))
	switch {
	case n%5 == 0 && keyGone(n):
		err = errors.Join(err, tx.Delete("credential", keySlot(w, n)))
	case n%5 == 0:
		err = errors.Join(err, tx.Put("credential", keySlot(w, n), payload(w, n)))
	}
	if n%12 == 0 {
		err = errors.Join(err, tx.Each("outbox", func(key string, decode func(any) error) error {
			var r record
			if err := decode(&r); err != nil || r.N/1_000_000 != w {
				return err
			}
			return tx.Delete("outbox", key)
		}))
	} else if n%3 == 0 {
		_, e := tx.Append("outbox", payload(w, n))
		err = errors.Join(err, e)
	}
	return err
}

func keySlot(w, n int) string { return fmt.Sprintf("%d-%d", w, n/5%4) }
func keyGone(n int) bool      { return n%35 == 0 }

// payload is what command n leaves behind: 30 to 4,000 bytes.
func payload(w, n int) record {
	return record{N: w*1_000_000 + n, Name: strings.Repeat(string(rune('a'+n%26)), 30+n*37%4000)}
}

// judge returns how many commands of each writer a store holds the effects of.
// It fails when anything in there is not exactly what those commands leave.
func judge(s *Store) (done [maxWriters]int, err error) {
	want, got := map[string]record{}, map[string]record{}
	err = s.View(func(tx *Tx) error {
		for w := range maxWriters {
			if _, err := tx.Get("effects", fmt.Sprint(w), &done[w]); err != nil {
				return err
			}
			expect(want, w, done[w])
		}
		for _, bucket := range []string{"ledger", "credential", "outbox"} {
			err := tx.Each(bucket, func(key string, decode func(any) error) error {
				var r record
				err := decode(&r)
				if bucket == "outbox" {
					key = fmt.Sprint(r.N) // what Append chose is of no interest
				}
				got[bucket+" "+key] = r
				return err
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return done, err
	}
	var wrong []string
	for name, r := range want {
		if got[name] != r {
			wrong = append(wrong, fmt.Sprintf("%s should be %d and is %d", name, r.N, got[name].N))
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			wrong = append(wrong, name+" should not be there")
		}
	}
	if wrong != nil {
		slices.Sort(wrong)
		return done, fmt.Errorf("after %v commands: %s", done, strings.Join(wrong[:min(len(wrong), 5)], "; "))
	}
	return done, nil
}

// expect adds what a writer's first n commands leave.
func expect(want map[string]record, w, n int) {
	for i := max(1, n-ledgerRows+1); i <= n; i++ {
		want["ledger "+commandID(w, i)] = payload(w, i)
	}
	for i := 5; i <= n; i += 5 {
		if name := "credential " + keySlot(w, i); keyGone(i) {
			delete(want, name)
		} else {
			want[name] = payload(w, i)
		}
	}
	for i := n - n%12; i <= n; i++ {
		if i%3 == 0 && i%12 != 0 {
			want[fmt.Sprint("outbox ", w*1_000_000+i)] = payload(w, i)
		}
	}
}
