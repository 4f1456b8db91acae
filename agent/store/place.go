package store

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// What stands under the store's names need not be what the store put there:
// somebody who had the disk may have left a pipe, which nobody ever writes to, or
// a link to a file of somebody else's.

// errNoFile is something else than a regular file.
var errNoFile = errors.New("no regular file")

// openFile opens a regular file, and never waits for one.
func openFile(path string, flag int) (*os.File, error) {
	f, err := os.OpenFile(path, flag|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ENXIO) || errors.Is(err, syscall.EISDIR) || errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("%w (%w)", errNoFile, err)
	}
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(errNoFile, err, f.Close())
	}
	return f, nil
}

// openOwn opens a file to be overwritten, and follows no link.
func openOwn(path string) (*os.File, error) { return openFile(path, os.O_RDWR|syscall.O_NOFOLLOW) }
