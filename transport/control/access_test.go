package control

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const nobody = 65534

// asNobody runs f on a thread of its own that is user and group nobody.
func asNobody(t *testing.T, f func() error) error {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to become another user")
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		for _, call := range []struct{ number, a, b, c uintptr }{
			{unix.SYS_SETGROUPS, 0, 0, 0},
			{unix.SYS_SETRESGID, nobody, nobody, nobody},
			{unix.SYS_SETRESUID, nobody, nobody, nobody},
		} {
			if _, _, errno := unix.RawSyscall(call.number, call.a, call.b, call.c); errno != 0 {
				done <- fmt.Errorf("become nobody: %w", errno)
				return
			}
		}
		done <- f()
	}()
	return <-done
}

// TestClasses: who may do what is decided by the kernel's word. [CTL-4]
func TestClasses(t *testing.T) {
	root := serve(t, nil, nil)
	c := root.dial(t)
	for _, m := range []string{"Look", "Operate", "Rule"} {
		var out echo
		if err := c.Call(t.Context(), "com.kagimori.test."+m, nil, &out); err != nil || out.Text != "admin" {
			t.Errorf("root, %s: %v, %v", m, out, err)
		}
	}
	for _, operators := range [][]string{nil, {"nobody"}, {"65534"}} {
		ts := serve(t, operators, nil)
		err := asNobody(t, func() error {
			c, err := Dial(t.Context(), ts.path)
			if err != nil {
				return err
			}
			defer c.Close()
			look := c.Call(t.Context(), "com.kagimori.test.Look", nil, nil)
			operate := c.Call(t.Context(), "com.kagimori.test.Operate", nil, nil)
			rule := c.Call(t.Context(), "com.kagimori.test.Rule", nil, nil)
			if look != nil || (operate == nil) != (operators != nil) {
				t.Errorf("operators %q: Look %v, Operate %v", operators, look, operate)
			}
			want := `only root and the daemon's own user may do this; user "nobody" may only look`
			if operators != nil {
				want = strings.Replace(want, "look", "operate", 1)
			}
			p := AsProblem(rule)
			if p == nil || p.Kind != Refused || p.Message != want || p.Next != "run it with sudo" {
				t.Errorf("operators %q: Rule: %+v", operators, p)
			}
			if p := AsProblem(operate); p != nil && (p.Kind != Refused || !strings.Contains(p.Next, `add "nobody" to operators`)) {
				t.Errorf("operators %q: Operate: %+v", operators, p)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestForeignUser: another program as another user is told in its own terms.
func TestForeignUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to become another user")
	}
	ts := serve(t, nil, nil)
	cmd := exec.Command("sh", "-c", needs(t, "socat", `printf '{"method":"com.kagimori.test.Rule"}\0' | socat -t 5 - "UNIX-CONNECT:$1"`), "sh", ts.path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	want := `{"parameters":{"kind":"refused","message":"only root and the daemon's own user may do this; user \"nobody\" may only look","next":"run it with sudo"},"error":"com.kagimori.Problem"}` + "\x00"
	if err != nil || string(out) != want {
		t.Fatalf("heard %q, %v", out, err)
	}
}

func TestSocketModeKeepsOut(t *testing.T) {
	ts := serve(t, nil, nil)
	if err := os.Chmod(ts.path, 0o660); err != nil {
		t.Fatal(err)
	}
	err := asNobody(t, func() error {
		_, err := Dial(t.Context(), ts.path)
		return err
	})
	if p := AsProblem(err); p == nil || p.Kind != Refused || p.Next == "" {
		t.Errorf("%+v", p)
	}
}

func TestUnknownOperators(t *testing.T) {
	for _, name := range []string{"no-such-user", "", "-1", "4294967295", "99999999999"} {
		_, err := NewAccess([]string{"root", name})
		if !errors.Is(err, &Problem{Kind: Config}) || !strings.Contains(err.Error(), fmt.Sprintf("%q", name)) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestConnectionLimits: one user cannot take all places, and the one after
// the last is told why.
func TestConnectionLimits(t *testing.T) {
	ts := serve(t, nil, nil)
	call := func(c *Client) error { return c.Call(t.Context(), "com.kagimori.test.Look", nil, nil) }
	dial := func() (*Client, error) {
		c, err := Dial(t.Context(), ts.path)
		if err == nil {
			t.Cleanup(func() { c.Close() })
			err = call(c)
		}
		return c, err
	}
	fill := func(n int, full string) error {
		for range n {
			if _, err := dial(); err != nil {
				return err
			}
		}
		if _, err := dial(); !errors.Is(err, &Problem{Kind: Unavailable}) || !strings.Contains(err.Error(), full) {
			return fmt.Errorf("one too many: %w", err)
		}
		return nil
	}
	others := 0
	if os.Getuid() == 0 {
		others = MaxConnectionsPerUser
		if err := asNobody(t, func() error { return fill(others, "16 callers of nobody") }); err != nil {
			t.Fatal(err)
		}
	}
	if err := fill(MaxConnections-others, "64 callers already"); err != nil {
		t.Fatal(err)
	}
}

// Many users together do not lock the administrator out either.
func TestLesserCallersLeaveRoomForTheAdministrator(t *testing.T) {
	s := &Server{users: map[uint32]int{}}
	admitted := 0
	for uid := range uint32(8) {
		for range MaxConnectionsPerUser {
			if s.admit(Peer{UID: 20000 + uid}, Read) == nil {
				admitted++
			}
		}
	}
	if admitted != MaxLesser {
		t.Errorf("%d admitted, want %d", admitted, MaxLesser)
	}
	for range MaxConnections - MaxLesser {
		if err := s.admit(Peer{}, Admin); err != nil {
			t.Fatal(err)
		}
	}
	s.release(Peer{UID: 20000}, Read)
	if err := s.admit(Peer{UID: 20001}, Operate); err == nil {
		t.Error("a user had more than a user may")
	}
	if err := s.admit(Peer{UID: 20000}, Read); err != nil {
		t.Errorf("a place that was given back: %v", err)
	}
}

// Whatever the umask, a socket never shows a wider mode than it is to have.
func TestSocketModeIsThereFromTheStart(t *testing.T) {
	before := syscall.Umask(0)
	defer syscall.Umask(before)
	path := filepath.Join(t.TempDir(), "s")
	lc := net.ListenConfig{Control: SocketMode(0o640)}
	l, err := lc.Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fi, err := os.Stat(path)
	if err != nil || fi.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
}
