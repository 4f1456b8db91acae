package file

// Secrets that the service manager hands over (systemd.exec, LoadCredential=
// and LoadCredentialEncrypted=): files in a directory of this service's own.

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

// nameChars may be in the name of a credential; a dot may not begin it.
const (
	nameChars = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"
	maxName   = 100
)

func checkCredential(name string) error {
	if name == "" || len(name) > maxName || name[0] == '.' || strings.Trim(name, nameChars) != "" {
		return fmt.Errorf("%q is not a name of a credential: letters, digits, dots, dashes and underscores", name)
	}
	return nil
}

// readCredential reads a credential of at most size bytes, and one byte more of
// a longer one.
func readCredential(name string, size int) (*hsm.Secret, error) {
	missing := func(why string) error {
		return fmt.Errorf("%w: %s; add to the unit, in [Service], LoadCredentialEncrypted=%s:/etc/credstore.encrypted/%[3]s (systemd/units/hsm-credential.conf) and start it again",
			hsm.ErrAbsent, why, name)
	}
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return nil, missing(fmt.Sprintf("credential %q is wanted, and the service manager passed none", name))
	}
	path := filepath.Join(dir, name)
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, missing(fmt.Sprintf("the service manager passed no credential %q", name))
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	// With access lists systemd leaves the file to root and lets this user read:
	// the list's mask then shows as the group's right.
	uid := int(fi.Sys().(*syscall.Stat_t).Uid)
	if !fi.Mode().IsRegular() || uid != 0 && uid != os.Geteuid() || fi.Mode().Perm()&0o037 != 0 {
		return nil, fmt.Errorf("%w: %s (uid %d, mode %04o) is not as the service manager makes it", hsm.ErrUnsafe, path, uid, fi.Mode().Perm())
	}
	b, err := io.ReadAll(io.LimitReader(f, int64(size)+1))
	if err != nil {
		return nil, err
	}
	return hsm.NewSecret(b), nil
}
