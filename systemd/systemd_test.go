package systemd

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// manager is what systemd is to a service: the socket that it listens on.
func manager(t *testing.T) *net.UnixConn {
	t.Helper()
	path := t.TempDir() + "/notify"
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	t.Setenv("NOTIFY_SOCKET", path)
	return c
}

func heard(t *testing.T, c *net.UnixConn) string {
	t.Helper()
	b := make([]byte, 1024)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func TestNotify(t *testing.T) {
	m := manager(t)
	n := NewNotifier(slog.New(slog.DiscardHandler))
	for _, c := range []struct {
		say  func()
		want string
	}{
		{func() { n.Ready("enrolled") }, "READY=1\nSTATUS=enrolled"},
		{func() { n.Ready("") }, "READY=1"},
		{func() { n.Status("waiting for %s", "a\nMAINPID=1") }, "STATUS=waiting for a MAINPID=1"},
		{n.Stopping, "STOPPING=1"},
	} {
		c.say()
		if got := heard(t, m); got != c.want {
			t.Errorf("heard %q, want %q", got, c.want)
		}
	}
	n.Reloading()
	if got := heard(t, m); !strings.HasPrefix(got, "RELOADING=1\nMONOTONIC_USEC=") {
		t.Errorf("heard %q", got)
	}
}

func TestNotifyWithoutManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	var log bytes.Buffer
	n := NewNotifier(slog.New(slog.NewTextHandler(&log, nil)))
	n.Ready("x")
	if log.Len() > 0 {
		t.Errorf("outside systemd: %s", &log)
	}
	t.Setenv("NOTIFY_SOCKET", t.TempDir()+"/gone")
	n.Ready("x")
	n.Stopping()
	if got := strings.Count(log.String(), "cannot notify systemd"); got != 1 {
		t.Errorf("a broken socket is logged %d times", got)
	}
}

func TestInterval(t *testing.T) {
	pid := strconv.Itoa(os.Getpid())
	for _, c := range []struct {
		usec, pid string
		want      time.Duration
		bad       bool
	}{
		{"", "", 0, false},
		{"30000000", "", 30 * time.Second, false},
		{"30000000", pid, 30 * time.Second, false},
		{"30000000", "1", 0, false},                 // for another process
		{"86400000000", pid, 24 * time.Hour, false}, // more than 31 bits
		{"0", pid, 0, true},
		{"-1", pid, 0, true},
		{"x", pid, 0, true},
		{"18446744073709551615", pid, 0, true},
	} {
		t.Setenv("WATCHDOG_USEC", c.usec)
		t.Setenv("WATCHDOG_PID", c.pid)
		if got, err := Interval(); got != c.want || (err != nil) != c.bad {
			t.Errorf("%+v: %v, %v", c, got, err)
		}
	}
}

// kennel is a watchdog in virtual time; fed counts since the last look.
type kennel struct {
	*Watchdog
	log  bytes.Buffer
	fed  atomic.Int64
	stop func()
}

func newKennel(t *testing.T, interval time.Duration) *kennel {
	k := &kennel{}
	log := slog.New(slog.NewTextHandler(&k.log, nil))
	n := &Notifier{log: log, send: func(state string) error {
		if state != "WATCHDOG=1" {
			return errors.New(state)
		}
		k.fed.Add(1)
		return nil
	}}
	k.Watchdog = NewWatchdog(n, interval, log)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); k.Run(ctx) }()
	k.stop = func() { cancel(); <-done }
	return k
}

// pass lets time go by and returns how often the watchdog was fed.
func (k *kennel) pass(d time.Duration) int {
	synctest.Wait()
	k.fed.Store(0)
	<-time.After(d) // virtual
	synctest.Wait()
	return int(k.fed.Load())
}

func TestWatchdogWantsEveryLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKennel(t, 30*time.Second)
		defer k.stop()
		if n := k.pass(time.Minute); n != 6 {
			t.Errorf("without loops fed %d times in a minute, want 6", n)
		}
		tpm, store := k.Loop("tpm"), k.Loop("store")
		beat := func(l *Loop) (stop func()) {
			ctx, cancel := context.WithCancel(t.Context())
			tick, free := k.Tick()
			go func() {
				defer free()
				for {
					select {
					case <-tick:
						l.Beat()
					case <-ctx.Done():
						return
					}
				}
			}()
			return cancel
		}
		stopTPM, stopStore := beat(tpm), beat(store)
		if n := k.pass(time.Minute); n != 6 {
			t.Errorf("with two living loops fed %d times, want 6", n)
		}
		stopTPM()
		if n := k.pass(30 * time.Second); n < 1 {
			t.Error("not fed within the interval of the last beat")
		}
		if n := k.pass(5 * time.Minute); n != 0 {
			t.Errorf("fed %d times although a loop is silent", n)
		}
		if got := k.log.String(); strings.Count(got, "loop is silent") != 1 || !strings.Contains(got, "loop=tpm") {
			t.Errorf("log: %s", got)
		}
		stopTPM = beat(tpm)
		if n := k.pass(time.Minute); n < 5 || !strings.Contains(k.log.String(), "loop turns again") {
			t.Errorf("turning again, fed %d times", n)
		}
		stopTPM()
		tpm.End()
		if n := k.pass(5 * time.Minute); n != 30 {
			t.Errorf("after the loop's end fed %d times, want 30", n)
		}
		stopStore()
		store.End()
	})
}

func TestWatchdogOverTheSocket(t *testing.T) {
	m := manager(t)
	log := slog.New(slog.DiscardHandler)
	w := NewWatchdog(NewNotifier(log), 30*time.Millisecond, log)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); w.Run(ctx) }()
	for range 3 {
		if got := heard(t, m); got != "WATCHDOG=1" {
			t.Errorf("heard %q", got)
		}
	}
	cancel()
	<-done
	if w := NewWatchdog(nil, 0, log); w.Every() != DefaultInterval/3 {
		t.Errorf("without an interval: %v", w.Every())
	}
}

// TestActivation runs this test binary again with sockets as systemd passes
// them.
func TestActivation(t *testing.T) {
	if os.Getenv("LISTEN_FDS") != "" {
		child(t)
		return
	}
	var files []*os.File
	for _, name := range []string{"control", "other"} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: t.TempDir() + "/" + name, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	// LISTEN_PID must be the child's own: a shell sets it and becomes the child.
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0" -test.run '^TestActivation$' -test.v`, os.Args[0])
	cmd.Env = append(os.Environ(), "LISTEN_FDS=2", "LISTEN_FDNAMES=control:other")
	cmd.ExtraFiles = files
	if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("took control")) {
		t.Errorf("%v\n%s", err, out)
	}
	s, err := Activated()
	if err != nil || s.Take("control") != nil || s.Close() != nil {
		t.Errorf("not activated: %v, %v", s, err)
	}
}

func child(t *testing.T) {
	s, err := Activated()
	if err != nil {
		t.Fatal(err)
	}
	l := s.Take("control")
	if l == nil || !strings.HasSuffix(l.Addr().String(), "/control") {
		t.Fatalf("control: %v", l)
	}
	t.Log("took control")
	l.Close()
	if s.Take("control") != nil || s.Take("nothing") != nil {
		t.Error("a socket out of nowhere")
	}
	if err := s.Close(); err == nil || !strings.Contains(err.Error(), `"other"`) {
		t.Errorf("leftover: %v", err)
	}
	if os.Getenv("LISTEN_FDS") != "" {
		t.Error("children would take the sockets for theirs")
	}
}
