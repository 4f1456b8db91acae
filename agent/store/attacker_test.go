package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// What somebody may put in the place of the files who could write to the
// directory while the daemon was down: things that are no files.

// strange puts one at path.
var strange = map[string]func(path string) error{
	"fifo":      func(path string) error { return syscall.Mkfifo(path, 0o600) },
	"directory": func(path string) error { return os.MkdirAll(filepath.Join(path, "in", "it"), 0o700) },
	"socket":    func(path string) error { return syscall.Mknod(path, syscall.S_IFSOCK|0o600, 0) },
	"zeros":     func(path string) error { return os.Symlink("/dev/zero", path) },
	"nowhere":   func(path string) error { return os.Symlink(path+"-none", path) },
	"huge": func(path string) error {
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		return errors.Join(f.Truncate(1<<40), f.Close())
	},
}

func TestStrangeFilesInPlaceOfOurs(t *testing.T) {
	for _, suffix := range []string{"", copySuffix, newSuffix, copySuffix + newSuffix, brokenSuffix + "1", lockSuffix} {
		for kind, put := range strange {
			t.Run(suffix+" "+kind, func(t *testing.T) {
				t.Parallel()
				d := onFile(t, "single")()
				d.lived(t, 6)
				path := d.path() + suffix
				if err := os.RemoveAll(path); err != nil {
					t.Fatal(err)
				}
				if err := put(path); err != nil {
					t.Fatal(err)
				}
				ended := make(chan error, 1)
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				go func() {
					s, m, err := d.open(ctx)
					if err == nil {
						err = s.Update(func(tx *Tx) error { return tx.Put("credential", "one more", 1) })
						err = errors.Join(err, s.Close(), m.Close())
					}
					ended <- err
				}()
				select {
				case err := <-ended: // a directory is for somebody to look into
					if err != nil && suffix != lockSuffix && kind != "directory" {
						t.Errorf("the store does not open: %v", err)
					}
				case <-time.After(20 * time.Second):
					t.Fatal("it hangs")
				}
			})
		}
	}
}

// A temporary that leads elsewhere is removed, not followed.
func TestLinkedTemporaryIsNotFollowed(t *testing.T) {
	for name, link := range map[string]func(old, new string) error{"symbolic": os.Symlink, "hard": os.Link} {
		for _, suffix := range []string{newSuffix, copySuffix + newSuffix, lockSuffix, copySuffix} {
			t.Run(name+" "+suffix, func(t *testing.T) {
				d := onFile(t, "single")()
				d.lived(t, 3)
				victim := filepath.Join(d.dir, "victim")
				_ = os.Remove(d.path() + suffix)
				if err := errors.Join(os.WriteFile(victim, []byte("precious"), 0o600), link(victim, d.path()+suffix)); err != nil {
					t.Fatal(err)
				}
				s, m, err := d.open(t.Context())
				if err == nil {
					update(t, s, func(tx *Tx) error { return tx.Put("credential", "k", 1) })
					update(t, s, func(tx *Tx) error { return tx.Delete("credential", "k") })
					err = errors.Join(s.Close(), m.Close())
				}
				if err != nil && suffix != lockSuffix {
					t.Fatal(err)
				}
				if got, err := os.ReadFile(victim); err != nil || string(got) != "precious" {
					t.Errorf("%q, %v", got, err)
				}
			})
		}
	}
}
