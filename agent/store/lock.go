package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	lockSuffix = ".lock"
	// lockWait is how long Open waits for another daemon to be gone: one that
	// was just told to stop is about to be.
	lockWait  = time.Second
	lockRetry = 20 * time.Millisecond
)

// acquire takes the lock file beside the store. It covers creation as well,
// when there is no file yet that bbolt could lock, and it names who holds it.
// The file itself stays: removing it would let two daemons lock two files.
func acquire(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: create the directory %s first", err, filepath.Dir(path))
	case errors.Is(err, syscall.EROFS):
		return nil, fmt.Errorf("%w: nothing can be written to %s", err, filepath.Dir(path))
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w: let user id %d write to %s", err, os.Geteuid(), filepath.Dir(path))
	case err != nil:
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	tick := time.NewTicker(lockRetry)
	defer tick.Stop()
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			writeHolder(f)
			return f, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			err := fmt.Errorf("%w%s", ErrLocked, readHolder(f))
			_ = f.Close()
			return nil, err
		case <-tick.C:
		}
	}
}

// writeHolder leaves the process id for readHolder. It is a hint for people:
// on a full disk the daemon starts without it.
func writeHolder(f *os.File) {
	info, err := f.Stat()
	if err != nil || info.Sys().(*syscall.Stat_t).Nlink > 1 { // another file, under our lock's name
		return
	}
	if f.Truncate(0) == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
}

func readHolder(f *os.File) string {
	b := make([]byte, 16)
	n, _ := f.ReadAt(b, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil || pid <= 0 {
		return ""
	}
	return fmt.Sprintf(" (it is process %d)", pid)
}
