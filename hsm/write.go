package hsm

// Durable files: after WriteFile returns nil the new content survives a power
// cut; whenever it does not return nil, or does not return at all, the path
// holds the old content or the new one, whole.
//
// The system calls, in order:
//
//	open(".NAME.tmp", O_WRONLY|O_CREAT|O_NOFOLLOW|O_CLOEXEC, 0600)
//	flock(LOCK_EX)         one writer per path; the name is fixed, so that
//	fstat, stat            killed writers leave one file behind, never many
//	ftruncate(0)
//	fchmod(perm)           whatever the umask is
//	write ...
//	fsync(file)            content first,
//	rename(tmp, path)      then the name (RENAME_NOREPLACE in CreateFile),
//	fsync(directory)       then the name is durable too
//	close
//
// fsync before rename is what ext4, f2fs, xfs and ubifs need to never show an
// empty file under the new name. Where there is no RENAME_NOREPLACE, as on NFS,
// 9p and some of FUSE, CreateFile does link(tmp, path), unlink(tmp) in its place.

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// WriteFile puts data at path, durably and all or nothing, in place of what
// was there. The directory must exist.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	return place(path, data, perm, unix.Rename)
}

// CreateFile is WriteFile for a path that must not exist: of several callers
// one wins, the others get fs.ErrExist.
func CreateFile(path string, data []byte, perm fs.FileMode) error {
	return place(path, data, perm, renameNew)
}

// renameNew renames to a name that must be free.
func renameNew(tmp, path string) error {
	err := unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	if err != unix.EINVAL && err != unix.ENOSYS && err != unix.EOPNOTSUPP {
		return err
	}
	switch err = unix.Link(tmp, path); err {
	case nil:
		return unix.Unlink(tmp) // a power cut before that: see lockTemp
	case unix.EPERM, unix.ENOSYS, unix.EOPNOTSUPP:
	default:
		return err
	}
	// No links either. All writers of ours take turns by the lock on tmp.
	var now unix.Stat_t
	switch err = unix.Lstat(path, &now); err {
	case unix.ENOENT:
		return unix.Rename(tmp, path)
	case nil:
		return unix.EEXIST
	}
	return err
}

// MakeDir makes a directory, and those above it that are missing, durably.
// One that exists keeps its mode.
func MakeDir(path string, perm fs.FileMode) error {
	path = filepath.Clean(path)
	if fi, err := os.Stat(path); err == nil && fi.IsDir() {
		return nil
	}
	parent := filepath.Dir(path)
	if parent != path {
		if err := MakeDir(parent, perm); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, perm); err != nil {
		return err
	}
	return syncDir(parent)
}

// MoveDir gives a directory, whose files are durable already, its final path,
// durably. The path is missing or an empty directory, else the move fails.
func MoveDir(dir, path string) error {
	if err := syncDir(dir); err != nil {
		return fmt.Errorf("move %s: %w", dir, err)
	}
	if err := unix.Rename(dir, path); err != nil {
		return &os.LinkError{Op: "rename", Old: dir, New: path, Err: err}
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("move %s: %w", dir, err)
	}
	return nil
}

func place(path string, data []byte, perm fs.FileMode, rename func(tmp, path string) error) error {
	dir, name := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	if name == "" || name == "." || name == ".." {
		return fmt.Errorf("write %q: not the path of a file", path)
	}
	tmp := filepath.Join(dir, "."+name+".tmp")
	f, err := lockTemp(tmp)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer f.Close() // after rename: it holds the lock until all is done
	if err := fill(f, data, perm); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := rename(tmp, path); err != nil {
		os.Remove(tmp)
		return &os.LinkError{Op: "rename", Old: tmp, New: path, Err: err}
	}
	if err := syncDir(dir); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// lockTemp opens tmp with the lock on it held, and is sure that the name still
// stands for the file that is locked: the writer before may have renamed it. A
// file that has another name as well is left alone: the power went in renameNew.
func lockTemp(tmp string) (*os.File, error) {
	for {
		f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		if err := flock(f); err != nil {
			f.Close()
			return nil, &os.PathError{Op: "lock", Path: tmp, Err: err}
		}
		mine, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		now, err := os.Lstat(tmp)
		same := err == nil && os.SameFile(mine, now)
		if same && mine.Sys().(*syscall.Stat_t).Nlink == 1 {
			return f, nil
		}
		if same {
			err = os.Remove(tmp)
		}
		f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
}

func flock(f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if err != syscall.EINTR {
			return err
		}
	}
}

// fill gives f its content and mode, and waits until the disk has both.
func fill(f *os.File, data []byte, perm fs.FileMode) error {
	if err := f.Truncate(0); err != nil { // a killed writer's
		return err
	}
	if err := f.Chmod(perm); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
