package file

// The files that a module keeps: counters and the like. They carry the name of
// the device secret, so that several secrets may share a directory.

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// A place is a directory, and the name that starts those of all files.
type place struct{ dir, name string }

// path is where the file of that kind lies.
func (p place) path(kind string) string { return filepath.Join(p.dir, p.name+"."+kind) }

// locked runs do while no other user of the directory that locks it as well,
// in this process or another one, runs.
func (p place) locked(do func() error) error {
	d, err := os.Open(p.dir)
	if err != nil {
		return err
	}
	defer d.Close() // gives the lock back
	for {
		err = syscall.Flock(int(d.Fd()), syscall.LOCK_EX)
		if err != syscall.EINTR {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", p.dir, err)
	}
	return do()
}
