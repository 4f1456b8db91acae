package control

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// abandon leaves a socket as a killed daemon does.
func abandon(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

func TestListenReplacesStaleSocket(t *testing.T) {
	path := t.TempDir() + "/control.sock"
	abandon(t, path)
	abandon(t, path+".new") // killed before the rename
	l, err := Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestListenRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/file", []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	other, err := net.Listen("unix", dir+"/other")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for path, kind := range map[string]Kind{
		dir + "/file":                     Conflict, // not a socket
		dir + "/other":                    Conflict, // somebody answers, without our lock
		dir + "/file/control.sock":        Config,   // cannot be made
		dir + strings.Repeat("/long", 30): Config,
	} {
		if _, err := Listen(path, 0o600); !errors.Is(err, &Problem{Kind: kind}) || AsProblem(err).Next == "" {
			t.Errorf("%s: %v, want kind %s", path, err, kind)
		}
	}
	if data, err := os.ReadFile(dir + "/file"); err != nil || string(data) != "mine" {
		t.Errorf("the file in the way: %q, %v", data, err)
	}
}

func TestDial(t *testing.T) {
	path := t.TempDir() + "/control.sock"
	start := time.Now()
	_, err := Dial(t.Context(), path)
	if p := AsProblem(err); p.Kind != Unavailable || p.Next == "" || !strings.Contains(p.Message, "no daemon answers at "+path) {
		t.Errorf("nobody there: %+v", p)
	}
	if waited := time.Since(start); waited < dialWait || waited > dialWait+patience {
		t.Errorf("waited %v", waited)
	}

	// One that starts while we wait.
	type result struct {
		c   *Client
		err error
	}
	got := make(chan result, 1)
	go func() {
		c, err := Dial(t.Context(), path)
		got <- result{c, err}
	}()
	time.AfterFunc(2*dialRetry, func() {
		if l, err := net.Listen("unix", path); err == nil {
			t.Cleanup(func() { l.Close() })
		}
	})
	r := receive(t, got, "a daemon that starts")
	if r.err != nil {
		t.Fatal(r.err)
	}
	r.c.Close()
}

// TestFalseDaemon: what answers is no daemon of ours.
func TestFalseDaemon(t *testing.T) {
	path := t.TempDir() + "/control.sock"
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	answers := []string{
		"", "garbage\x00", "{\"parameters\":[]}\x00", strings.Repeat("x", MaxMessage+2),
		"{\"error\":\"com.kagimori.Problem\"}\x00", "{\"error\":\"org.example.Strange\"}\x00",
		"{\"continues\":true,\"parameters\":{}}\x00", "{\"parameters\":{\"text\":\"cut",
	}
	go func() {
		for _, a := range answers {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 1024))
			c.Write([]byte(a))
			c.Close()
		}
	}()
	for _, a := range answers {
		c, err := Dial(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		var out echo
		if err := c.Call(t.Context(), "com.kagimori.test.Echo", nil, &out); err == nil {
			t.Errorf("answer %.40q is taken", a)
		}
		c.Close()
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/run/x/control.sock" // both are made
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	l, err := Listen(path, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode() != fs.ModeSocket|0o640 {
		t.Errorf("socket: %v, %v", fi, err)
	}
	if at := l.Addr().String(); at != path {
		t.Errorf("it says that it listens at %s", at)
	}
	if _, err := Listen(path, 0o640); !errors.Is(err, &Problem{Kind: Conflict}) || AsProblem(err).Next == "" {
		t.Errorf("a second daemon: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("socket after Close: %v", err)
	}
	if l, err = Listen(path, 0o640); err != nil {
		t.Fatalf("again after Close: %v", err)
	}
	l.Close()
}
