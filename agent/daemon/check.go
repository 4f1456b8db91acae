package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport/control"
)

// A damaged store file can end the process that reads it: it is mapped memory.
// So the daemon has another process read all of it first, which is this same
// program with a verb that people do not see.

const (
	checkVerb = "check-store"
	// checkTime is how long one check may take. The largest file takes a second
	// on a slow board.
	checkTime = 20 * time.Second
	// checkTries is how often a check may die before the file is to blame: the
	// machine may have been out of memory.
	checkTries = 2
	// maxWords is how much of what a check says is listened to.
	maxWords = 4 << 10
)

// CheckStore is store.Config.Check: it has a process of its own look at a file. A
// process that crashes has found damage. One that is killed, finds no memory or no
// time has found nothing: whoever can load the machine must not be able to have a
// sound file declared damaged, which costs what was written since the copy.
func CheckStore(ctx context.Context, path string) error {
	var died, err error
	for range checkTries {
		if died, err = checkOnce(ctx, path); died == nil && !errors.Is(err, errStarved) {
			return err
		}
	}
	if died == nil {
		return err
	}
	return fmt.Errorf("%w (its check %w)", store.ErrDamaged, died)
}

// errStarved is a check that something else than the file has ended.
var errStarved = errors.New("check the store in a process of its own: it was not let")

// starved are what a Go program says that the system gave too little.
var starved = []string{"out of memory", "cannot allocate memory", "failed to create new OS thread", "resource temporarily unavailable"}

// checkOnce says what a check found, or how it died.
func checkOnce(ctx context.Context, path string) (died, err error) {
	limited, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	state, said, err := runCheck(limited, path)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case limited.Err() != nil:
		return nil, fmt.Errorf("%w: it did not end in %v", errStarved, checkTime)
	case err != nil:
		return nil, fmt.Errorf("check the store in a process of its own: %w", err)
	case state.Success():
		return nil, nil
	}
	killed := state.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
	if killed || state.ExitCode() == control.Usage.Exit() && slices.ContainsFunc(starved, func(s string) bool { return strings.Contains(said, s) }) {
		return nil, fmt.Errorf("%w: %v: %s", errStarved, state, said)
	}
	switch state.ExitCode() {
	case control.Storage.Exit():
		return nil, fmt.Errorf("%w (%s)", store.ErrDamaged, said)
	case control.Conflict.Exit():
		return nil, fmt.Errorf("%w: it uses %s", store.ErrLocked, path)
	case -1, control.Usage.Exit(): // a signal, or a crash of the Go runtime
		return fmt.Errorf("died: %v: %s", state, said), nil
	default:
		return nil, fmt.Errorf("check the store in a process of its own: %v: %s", state, said)
	}
}

// runCheck runs one until it ends or is killed with ctx, and gives the first
// line of what it says. os/exec would do it too, in another 20 KiB.
func runCheck(ctx context.Context, path string) (state *os.ProcessState, said string, err error) {
	words, theirs, err := os.Pipe()
	if err != nil {
		return nil, "", err
	}
	defer words.Close()
	// It must not outlive the daemon and hold the file. The kernel looks at the
	// thread that started it, so that has to stay.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// This program, also when an update has put another one in its place.
	p, err := os.StartProcess("/proc/self/exe", []string{os.Args[0], checkVerb, path}, &os.ProcAttr{
		Env:   []string{"GOTRACEBACK=none"}, // and nothing of the service manager's
		Files: []*os.File{nil, nil, theirs},
		Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
	theirs.Close()
	if err != nil {
		return nil, "", err
	}
	defer context.AfterFunc(ctx, func() { _ = p.Kill() })()
	text, _ := io.ReadAll(io.LimitReader(words, maxWords))
	_, _ = io.Copy(io.Discard, words)
	state, err = p.Wait()
	said, _, _ = strings.Cut(string(text), "\n")
	return state, said, err
}

// CheckVerb is the other side. Its exit code says damage apart from all else.
func CheckVerb(program string) *cobra.Command {
	return &cobra.Command{
		Use: checkVerb + " PATH", Hidden: true,
		Short: "Check a store file",
		Long: `Reads all of a store file, as the daemon has another process do before it uses
the file. It needs no key, changes nothing, and waits for no daemon.`,
		Example: "  " + program + " " + checkVerb + " /var/lib/" + program + "/kagimori.db",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			err := store.CheckFile(args[0])
			switch {
			case errors.Is(err, store.ErrDamaged):
				return control.Problemf(control.Storage, "start the daemon, which goes on with the second copy", "%w", err)
			case errors.Is(err, store.ErrLocked):
				return control.Problemf(control.Conflict, "ask the daemon that uses it, by its --socket", "%w", err)
			}
			return err
		},
	}
}
