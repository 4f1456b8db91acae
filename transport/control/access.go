// Who a caller is, and what he may do.

package control

import (
	"fmt"
	"net"
	"os"
	"os/user"
	"strconv"

	"golang.org/x/sys/unix"
)

// A Class is what a caller may do. Each includes the ones below it (D13).
type Class int

const (
	// Read may look: every user that the socket's mode lets in.
	Read Class = iota
	// Operate may also arm and fetch key copies and log users in: the users
	// in [control] operators.
	Operate
	// Admin may do everything: root, and the daemon's own user.
	Admin
)

func (c Class) String() string {
	switch c {
	case Admin:
		return "admin"
	case Operate:
		return "operate"
	default:
		return "read"
	}
}

// who says in a refusal which callers have the class.
func (c Class) who() string {
	if c == Admin {
		return "root and the daemon's own user"
	}
	return "root, the daemon's own user and the users in [control] operators"
}

// may says in a refusal what a caller of the class may do.
func (c Class) may() string {
	if c == Read {
		return "look"
	}
	return c.String()
}

// next says in a refusal how to get the class.
func (c Class) next(name string) string {
	if c == Admin {
		return "run it with sudo"
	}
	return fmt.Sprintf("run it with sudo, or add %q to operators in the [control] section of the daemon's configuration", name)
}

// A Peer is the process at the other end, as the kernel vouches for it. Only
// the user counts: the credentials carry no supplementary groups.
type Peer struct {
	UID, GID uint32
	PID      int32
}

// Name is the user's name, or "uid 1234" when there is none.
func (p Peer) Name() string {
	if u, err := user.LookupId(strconv.FormatUint(uint64(p.UID), 10)); err == nil {
		return u.Username
	}
	return fmt.Sprintf("uid %d", p.UID)
}

// peer reads SO_PEERCRED.
func peer(c *net.UnixConn) (Peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Peer{}, fmt.Errorf("read peer credentials: %w", err)
	}
	var cred *unix.Ucred
	var inner error
	err = raw.Control(func(fd uintptr) {
		cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err == nil {
		err = inner
	}
	if err != nil {
		return Peer{}, fmt.Errorf("read peer credentials: %w", err)
	}
	return Peer{UID: cred.Uid, GID: cred.Gid, PID: cred.Pid}, nil
}

// Access maps users to classes.
type Access struct {
	self      uint32
	operators map[uint32]bool
}

// NewAccess takes the operators of the configuration: user names or numbers.
// One that does not exist is refused by name, with kind Config.
func NewAccess(operators []string) (Access, error) {
	a := Access{self: uint32(os.Getuid()), operators: map[uint32]bool{}}
	for _, name := range operators {
		uid, err := lookup(name)
		if err != nil {
			return Access{}, Problemf(Config, "correct operators in the [control] section, or create the user; users outside /etc/passwd go in by number",
				"operator %q: %w", name, err)
		}
		a.operators[uid] = true
	}
	return a, nil
}

func lookup(name string) (uint32, error) {
	number := name
	if _, err := strconv.ParseUint(name, 10, 32); err != nil {
		u, err := user.Lookup(name)
		if err != nil {
			return 0, fmt.Errorf("no such user")
		}
		number = u.Uid
	}
	uid, err := strconv.ParseUint(number, 10, 32)
	// 4294967295 is (uid_t)-1, "no user", for the kernel.
	if err != nil || uid == 1<<32-1 {
		return 0, fmt.Errorf("not a user number")
	}
	return uint32(uid), nil
}

// Class of a user.
func (a Access) Class(uid uint32) Class {
	switch {
	case uid == 0 || uid == a.self:
		return Admin
	case a.operators[uid]:
		return Operate
	}
	return Read
}
