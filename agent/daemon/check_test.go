package daemon

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/kagimori/kagimori/agent/doctor"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm/file"
	"github.com/kagimori/kagimori/transport/control/verb"
)

// The process that checks is this test binary, started again by CheckStore. A
// path that begins so has it do something else.
const (
	diesPath  = "/dies/"
	hangsPath = "/hangs/"
	killPath  = "/killed/"
	starvPath = "/starves/"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == checkVerb {
		switch path := os.Args[2]; {
		case strings.HasPrefix(path, diesPath):
			_ = syscall.Kill(os.Getpid(), syscall.SIGSEGV)
			select {}
		case strings.HasPrefix(path, hangsPath):
			_ = syscall.Pause() // it is killed
		case strings.HasPrefix(path, killPath): // as the kernel does when memory is short
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		case strings.HasPrefix(path, starvPath): // as the runtime does, which must not be starved here
			_, _ = os.Stderr.WriteString("fatal error: runtime: out of memory\n\nrest\n")
			os.Exit(2)
		}
		f := verb.New("kagimori", "test", "test", "")
		f.Add(CheckVerb("kagimori"))
		os.Exit(f.Execute(context.Background()))
	}
	os.Exit(m.Run())
}

// testStore makes a store file with some records.
func testStore(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	m, err := file.Open(filepath.Join(dir, "device.secret"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	path := filepath.Join(dir, "kagimori.db")
	s, err := store.Open(t.Context(), store.Config{Path: path, Check: CheckStore}, m, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	err = s.Update(func(tx *store.Tx) error {
		for i := range 200 {
			if _, err := tx.Append("many", make([]byte, 100+i)); err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCheckStore(t *testing.T) {
	path := testStore(t)
	if err := CheckStore(t.Context(), path); err != nil {
		t.Errorf("a sound store: %v", err)
	}
	// What cannot be looked at is not damaged for that.
	if err := CheckStore(t.Context(), path+"-none"); err == nil || errors.Is(err, store.ErrDamaged) {
		t.Errorf("no file: %v", err)
	}
	db, err := bbolt.Open(path, 0o600, nil) // as a daemon does
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckStore(t.Context(), path); !errors.Is(err, store.ErrLocked) || doctor.ClassOf(err) != doctor.StoreRefused {
		t.Errorf("in use: %v", err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := CheckStore(ctx, path); !errors.Is(err, context.Canceled) || errors.Is(err, store.ErrDamaged) {
		t.Errorf("cancelled: %v", err)
	}
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{"cut": body[:8192], "text": []byte(strings.Repeat("text", 10_000)), "empty": {}} {
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := CheckStore(t.Context(), path); !errors.Is(err, store.ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCheckThatDies(t *testing.T) {
	if err := CheckStore(t.Context(), diesPath); !errors.Is(err, store.ErrDamaged) || !strings.Contains(err.Error(), "died") {
		t.Errorf("got %v", err)
	}
	// A daemon that stops does not wait for it, and calls nothing damaged.
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := CheckStore(ctx, hangsPath); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, store.ErrDamaged) {
		t.Errorf("hangs: %v", err)
	}
}

// Whoever can take memory or time from the machine cannot have a sound file
// declared damaged.
func TestCheckThatIsStarved(t *testing.T) {
	for _, path := range []string{killPath, starvPath} {
		if err := CheckStore(t.Context(), path); !errors.Is(err, errStarved) || errors.Is(err, store.ErrDamaged) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// A file that another program holds is not damaged either.
func TestCheckOfAHeldStore(t *testing.T) {
	path := testStore(t)
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := CheckStore(t.Context(), path); err == nil || errors.Is(err, store.ErrDamaged) {
		t.Errorf("got %v", err)
	}
}

func BenchmarkCheckStore(b *testing.B) {
	path := testStore(b)
	for b.Loop() {
		if err := CheckStore(b.Context(), path); err != nil {
			b.Fatal(err)
		}
	}
}
