package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
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
	var words head
	// This program, also when an update has put another one in its place.
	cmd := exec.CommandContext(limited, "/proc/self/exe", checkVerb, path)
	cmd.Args[0] = os.Args[0]
	cmd.Env = []string{"GOTRACEBACK=none"} // and nothing of the service manager's
	cmd.Stderr = &words
	// It must not outlive the daemon and hold the file. The kernel looks at the
	// thread that started it, so that has to stay.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case limited.Err() != nil:
		return nil, fmt.Errorf("%w: it did not end in %v", errStarved, checkTime)
	case !errors.As(err, &exit):
		return nil, fmt.Errorf("check the store in a process of its own: %w", err)
	}
	said := firstLine(words.text)
	killed := exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
	if killed || exit.ExitCode() == control.Usage.Exit() && slices.ContainsFunc(starved, func(s string) bool { return strings.Contains(said, s) }) {
		return nil, fmt.Errorf("%w: %v: %s", errStarved, exit, said)
	}
	switch exit.ExitCode() {
	case control.Storage.Exit():
		return nil, fmt.Errorf("%w (%s)", store.ErrDamaged, said)
	case control.Conflict.Exit():
		return nil, fmt.Errorf("%w: it uses %s", store.ErrLocked, path)
	case -1, control.Usage.Exit(): // a signal, or a crash of the Go runtime
		return fmt.Errorf("died: %v: %s", exit, said), nil
	default:
		return nil, fmt.Errorf("check the store in a process of its own: %v: %s", exit, said)
	}
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

// head keeps the beginning of what is written to it.
type head struct{ text []byte }

func (h *head) Write(p []byte) (int, error) {
	h.text = append(h.text, p[:min(len(p), maxWords-len(h.text))]...)
	return len(p), nil
}

func firstLine(text []byte) string {
	line, _, _ := strings.Cut(string(text), "\n")
	return line
}
