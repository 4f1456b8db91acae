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

// locked runs do while no other user of these files, in this process or another
// one, does. The lock is a file of its own that stays: the directory may be
// locked by whoever owns it.
func (p place) locked(do func() error) error {
	path := filepath.Join(p.dir, "."+p.name+".lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer f.Close() // gives the lock back
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if err != syscall.EINTR {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	return do()
}
