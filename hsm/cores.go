package hsm

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// NoCores keeps this process's memory out of core dumps and away from debuggers
// of the same user. A daemon calls it before it opens anything.
func NoCores() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("switch off core dumps: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("switch off core dumps: %w", err)
	}
	return nil
}
