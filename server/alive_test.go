package server

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/systemd"
)

// logBook is a log that can be read while it is written.
type logBook struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// says waits for a line with all of these words.
func (l *logBook) says(t *testing.T, words ...string) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(patience); ; {
		l.mu.Lock()
		text := l.buf.String()
		l.mu.Unlock()
		for line := range strings.Lines(text) {
			all := true
			for _, w := range words {
				all = all && strings.Contains(line, w)
			}
			if all {
				return
			}
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("the log does not say %q:\n%s", words, text)
		}
	}
}

// A writer that hangs starves the watchdog, although all else lives; and when
// it goes on, so does the watchdog.
func TestHangingWriterStarvesTheWatchdog(t *testing.T) {
	r := newRig(t)
	book := new(logBook)
	log := slog.New(slog.NewTextHandler(book, nil))
	dog := systemd.NewWatchdog(systemd.NewNotifier(log), time.Second, log)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { dog.Run(ctx) })
	r.again(func(c *Config) { c.Watchdog = dog })
	hang := make(chan struct{})
	wg.Go(func() {
		r.s.store.Update(context.Background(), r.s.by("tester"), func(*store.Tx) error { <-hang; return nil })
	})
	book.says(t, "loop is silent", "loop=store")
	close(hang)
	book.says(t, "loop turns again", "loop=store")
	r.again(func(*Config) {})
}

// Every part is asked for work, and its silence is found out: the kernel takes
// connections also for a program that hangs.
func TestEveryPartIsAsked(t *testing.T) {
	r := newRig(t)
	deadTCP, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer deadTCP.Close()
	deadUnix, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer deadUnix.Close()
	short := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	if err := errors.Join(r.s.broker.Probe(t.Context(), r.mqtt), askHTTP(t.Context(), r.http), askControl(t.Context(), r.socket),
		r.s.askStore(t.Context()), r.s.askMaintenance(t.Context())); err != nil {
		t.Errorf("all of it lives: %v", err)
	}
	if err := askHTTP(short(), deadTCP.Addr().String()); err == nil {
		t.Error("http that accepts nobody is alive")
	}
	if err := askControl(short(), deadUnix.Addr().String()); err == nil {
		t.Error("a control socket that accepts nobody is alive")
	}
	release := r.blockDisk()
	if err := r.s.askStore(t.Context()); err != nil {
		t.Errorf("a writer that says that it cannot is alive: %v", err)
	}
	release()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	for part, ask := range map[string]func(context.Context) error{
		"mqtt":        func(ctx context.Context) error { return r.s.broker.Probe(ctx, r.mqtt) },
		"http":        func(ctx context.Context) error { return askHTTP(ctx, r.http) },
		"control":     func(ctx context.Context) error { return askControl(ctx, r.socket) },
		"store":       r.s.askStore,
		"maintenance": r.s.askMaintenance,
	} {
		if err := ask(short()); err == nil {
			t.Errorf("%s is alive after the end", part)
		}
	}
	r.again(r.tweak)
}
