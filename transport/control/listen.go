// The socket itself: made, locked, replaced.

package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxSocketPath is what fits into sockaddr_un with its NUL (unix(7)).
const maxSocketPath = 107

// Listen makes the control socket at path with the given mode, and its
// directory when it is missing. A lock beside the socket (path + ".lock",
// held until Close) says whether another daemon lives: then the error is a
// Conflict. A socket that a killed daemon left is replaced, unless something
// else answers on it. The socket has its mode before anybody can see it.
//
// A listener that systemd passed needs none of this and goes to Serve as it is.
func Listen(path string, mode fs.FileMode) (net.Listener, error) {
	if len(path)+len(".new") > maxSocketPath {
		return nil, Problemf(Config, "choose a shorter socket path", "control socket %s: longer than %d characters", path, maxSocketPath-len(".new"))
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, cannotListen(path, err)
	}
	lock, err := lockFile(path)
	if err != nil {
		return nil, err
	}
	l, err := bind(path, mode)
	if err != nil {
		lock.Close()
		return nil, err
	}
	return &listener{UnixListener: l, path: path, lock: lock}, nil
}

type listener struct {
	*net.UnixListener
	path string
	lock *os.File

	closing sync.Mutex // held while it closes: whoever closes it again finds all done
}

// Addr is where callers find it; it was bound under another name.
func (l *listener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// Close takes the socket away while the lock is still held: it cannot be
// another daemon's. The lock file stays, since removing it would race.
func (l *listener) Close() error {
	l.closing.Lock()
	defer l.closing.Unlock()
	err := l.UnixListener.Close()
	if err == nil {
		err = os.Remove(l.path)
		l.lock.Close()
	}
	return err
}

func lockFile(path string) (*os.File, error) {
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, cannotListen(path, err)
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		lock.Close()
		return nil, twoDaemons(path)
	}
	if err != nil {
		lock.Close()
		return nil, cannotListen(path, err)
	}
	return lock, nil
}

func bind(path string, mode fs.FileMode) (*net.UnixListener, error) {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, cannotListen(path, err)
	case fi.Mode().Type() != fs.ModeSocket:
		return nil, Problemf(Conflict, "move it away, or choose another path for the socket",
			"control socket %s: something else is there (%v)", path, fi.Mode())
	default:
		if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
			c.Close()
			return nil, twoDaemons(path)
		}
	}
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, cannotListen(path, err)
	}
	lc := net.ListenConfig{Control: SocketMode(mode)}
	bound, err := lc.Listen(context.Background(), "unix", fresh)
	if err != nil {
		return nil, cannotListen(path, err)
	}
	l := bound.(*net.UnixListener)
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(fresh, mode.Perm()); err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		l.Close()
		os.Remove(fresh)
		return nil, cannotListen(path, err)
	}
	return l, nil
}

// SocketMode gives a unix socket its mode before bind(2) shows it, less the
// umask, for net.ListenConfig.Control. chmod afterwards would leave a moment in
// which anybody may connect.
func SocketMode(mode fs.FileMode) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), uint32(mode.Perm())) }); e != nil {
			return e
		}
		return err
	}
}

func twoDaemons(path string) error {
	return Problemf(Conflict, "stop it first, or give this one a state directory and socket of its own",
		"another daemon is serving %s", path)
}

func cannotListen(path string, err error) error {
	return Problemf(Config, fmt.Sprintf("make %s writable for the daemon's user, or set another socket in [control]", filepath.Dir(path)),
		"control socket %s: %w", path, err)
}
