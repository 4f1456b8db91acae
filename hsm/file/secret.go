package file

// The device secret: made once, checked on every Open.

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/kagimori/kagimori/hsm"
)

const secretSize = 32 // bytes; the file holds nothing else

// A source is where the device secret comes from: a file that is made when there
// is none, or a systemd credential, which never is.
type source struct{ path, credential string }

// credentialPrefix starts what is not a path but the name of a credential.
const credentialPrefix = "credential:"

func newSource(spec string) (source, error) {
	if name, ok := strings.CutPrefix(spec, credentialPrefix); ok {
		return source{credential: name}, checkCredential(name)
	}
	if spec == "" {
		return source{}, errors.New("no path: set where the device secret is kept")
	}
	return source{path: spec}, nil
}

// read gives the device secret. A file that is not there is fs.ErrNotExist.
func (s source) read() (*hsm.Secret, error) {
	if s.credential == "" {
		return readSecret(s.path)
	}
	b, err := readCredential(s.credential, secretSize)
	if err != nil {
		return nil, err
	}
	if b.Len() != secretSize {
		defer b.Wipe()
		return nil, fmt.Errorf("%w: credential %q has %d bytes, a device secret has exactly %d, as they are, not in hex; make it anew from the right ones",
			hsm.ErrBlob, s.credential, b.Len(), secretSize)
	}
	return b, nil
}

// make makes the file. Its directory exists.
func (s source) make() (*hsm.Secret, error) {
	if err := checkDir(filepath.Dir(s.path)); err != nil {
		return nil, err
	}
	fresh := hsm.RandomSecret(secretSize)
	defer fresh.Wipe()
	if err := hsm.CreateFile(s.path, fresh.Bytes(), 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return readSecret(s.path)
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

// checkFile is checkOwn for a device secret, which has a size.
func checkFile(f *os.File, path string) error {
	if err := checkOwn(f, path); err != nil {
		return err
	}
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if fi.Size() != secretSize {
		return fmt.Errorf("%w: %s has %d bytes, a device secret has %d; put the right file back, or move it away and enroll anew",
			hsm.ErrBlob, path, fi.Size(), secretSize)
	}
	return nil
}

// checkOwn refuses a secret that is not ours alone. A mode that was wrong for
// a while may mean that the secret is known already: the message says so.
func checkOwn(f *os.File, path string) error {
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
