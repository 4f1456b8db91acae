package file

// The device secret on disk: made once, checked on every Open.

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/kagimori/kagimori/hsm"
)

const secretSize = 32 // bytes; the file holds nothing else

// deviceSecret reads the secret at path, after making it if there is none. Of
// two processes that make it at the same time both get the same one.
func deviceSecret(path string) (*hsm.Secret, error) {
	if path == "" {
		return nil, errors.New("no path: set where the device secret is kept")
	}
	secret, err := readSecret(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return secret, err
	}
	dir := filepath.Dir(path)
	if err := hsm.MakeDir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("%w; make %s for the user that runs this program", err, dir)
	}
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	fresh := hsm.RandomSecret(secretSize)
	defer fresh.Wipe()
	if err := hsm.CreateFile(path, fresh.Bytes(), 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return readSecret(path)
}

func readSecret(path string) (*hsm.Secret, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("%w: %s is a symbolic link; name the file itself", hsm.ErrUnsafe, path)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := checkFile(f, path); err != nil {
		return nil, err
	}
	if err := checkDir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	b := make([]byte, secretSize)
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, err
	}
	return hsm.NewSecret(b), nil
}

// checkFile refuses a secret that is not ours alone. A mode that was wrong for
// a while may mean that the secret is known already: the message says so.
func checkFile(f *os.File, path string) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("%w: %s is no regular file", hsm.ErrBlob, path)
	}
	if uid := fi.Sys().(*syscall.Stat_t).Uid; int(uid) != os.Geteuid() {
		return fmt.Errorf("%w: %s belongs to uid %d, this program runs as %d; give it the owner with chown, if nobody else knew it",
			hsm.ErrUnsafe, path, uid, os.Geteuid())
	}
	if perm := fi.Mode().Perm(); perm&0o077 != 0 {
		return fmt.Errorf("%w: %s has mode %04o, others can reach it; run chmod 600 %[2]s, and enroll anew if somebody may have copied it",
			hsm.ErrUnsafe, path, perm)
	}
	if fi.Size() != secretSize {
		return fmt.Errorf("%w: %s has %d bytes, a device secret has %d; put the right file back, or move it away and enroll anew",
			hsm.ErrBlob, path, fi.Size(), secretSize)
	}
	return nil
}

// checkDir refuses a directory in which others could put a secret of theirs.
func checkDir(dir string) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if uid := fi.Sys().(*syscall.Stat_t).Uid; int(uid) != os.Geteuid() && uid != 0 {
		return fmt.Errorf("%w: %s belongs to uid %d, this program runs as %d; use a directory of its own",
			hsm.ErrUnsafe, dir, uid, os.Geteuid())
	}
	if perm := fi.Mode().Perm(); perm&0o022 != 0 && fi.Mode()&fs.ModeSticky == 0 {
		return fmt.Errorf("%w: %s has mode %04o, others can replace files in it; run chmod go-w %[2]s",
			hsm.ErrUnsafe, dir, perm)
	}
	return nil
}
