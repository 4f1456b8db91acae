package file_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/file"
)

// counterFile is the one counter file beside a device secret.
func counterFile(t *testing.T, path string) string {
	t.Helper()
	found, err := filepath.Glob(path + ".counter-*")
	if err != nil || len(found) != 1 {
		t.Fatalf("counter files: %v, %v", found, err)
	}
	return found[0]
}

func newCounter(t *testing.T, m *file.Module, key *hsm.Secret) hsm.Blob {
	t.Helper()
	b, err := m.NewCounter(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCounterCounts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "device.secret")
	key := hsm.RandomSecret(hsm.CounterKeySize)
	m := open(t, path)
	b := newCounter(t, m, key)
	for want := range uint64(5) {
		if n, err := m.Count(t.Context(), b, key); n != want || err != nil {
			t.Fatalf("count %d, %v; want %d", n, err, want)
		}
		if n, err := m.Increment(t.Context(), b, key); n != want+1 || err != nil {
			t.Fatalf("increment to %d, %v; want %d", n, err, want+1)
		}
		m.Close()
		m = open(t, path)
	}
	if m.RollbackProof() {
		t.Error("a file calls itself rollback-proof")
	}
	if err := m.DropCounter(t.Context(), b, key); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Count(t.Context(), b, key); !errors.Is(err, hsm.ErrCounter) {
		t.Errorf("a dropped counter: %v", err)
	}
	if err := m.DropCounter(t.Context(), b, key); !errors.Is(err, hsm.ErrCounter) {
		t.Errorf("dropped twice: %v", err)
	}
}

// Two modules on one secret stand for two processes.
func TestCounterConcurrent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "device.secret")
	key := hsm.RandomSecret(hsm.CounterKeySize)
	one, two := open(t, path), open(t, path)
	b := newCounter(t, one, key)
	var wg sync.WaitGroup
	const each = 10
	for _, m := range []*file.Module{one, two, one, two} {
		wg.Go(func() {
			for range each {
				if _, err := m.Increment(t.Context(), b, key); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n, err := one.Count(t.Context(), b, key); n != 4*each || err != nil {
		t.Errorf("%d, %v; want %d", n, err, 4*each)
	}
}

func TestCounterGone(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, path string, other []byte){
		"removed": func(t *testing.T, path string, _ []byte) { os.Remove(path) },
		"empty":   func(t *testing.T, path string, _ []byte) { resize(t, path, 0) },
		"short":   func(t *testing.T, path string, _ []byte) { resize(t, path, 55) },
		"long":    func(t *testing.T, path string, _ []byte) { resize(t, path, 57) },
		"another counter's": func(t *testing.T, path string, other []byte) {
			if err := os.WriteFile(path, other, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"higher value": func(t *testing.T, path string, _ []byte) {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			b[23]++
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "device.secret")
			key := hsm.RandomSecret(hsm.CounterKeySize)
			m := open(t, path)
			defer m.Close()
			newCounter(t, m, key)
			at := counterFile(t, path)
			other, err := os.ReadFile(at)
			if err != nil {
				t.Fatal(err)
			}
			os.Remove(at)
			b := newCounter(t, m, key)
			at = counterFile(t, path)
			spoil(t, at, other)
			for what, err := range map[string]error{
				"count":     second(m.Count(t.Context(), b, key)),
				"increment": second(m.Increment(t.Context(), b, key)),
				"drop":      m.DropCounter(t.Context(), b, key),
			} {
				if !errors.Is(err, hsm.ErrCounter) || !strings.Contains(err.Error(), at) {
					t.Errorf("%s: %v; want hsm.ErrCounter that names the file", what, err)
				}
			}
		})
	}
}

func TestCounterOtherKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "device.secret")
	key, other := hsm.RandomSecret(hsm.CounterKeySize), hsm.RandomSecret(hsm.CounterKeySize)
	m := open(t, path)
	defer m.Close()
	b := newCounter(t, m, key)
	for what, err := range map[string]error{
		"count":     second(m.Count(t.Context(), b, other)),
		"increment": second(m.Increment(t.Context(), b, other)),
		"drop":      m.DropCounter(t.Context(), b, other),
	} {
		if !errors.Is(err, hsm.ErrCounter) {
			t.Errorf("%s with another key: %v", what, err)
		}
	}
	if _, err := m.Increment(t.Context(), b, hsm.RandomSecret(31)); err == nil {
		t.Error("a short key was taken")
	}
	if n, err := m.Count(t.Context(), b, key); n != 0 || err != nil {
		t.Errorf("afterwards: %d, %v", n, err)
	}
}

// The disk is full, or read-only: the counter stays as it was.
func TestCounterNotWritable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "device.secret")
	key := hsm.RandomSecret(hsm.CounterKeySize)
	m := open(t, path)
	defer m.Close()
	b := newCounter(t, m, key)
	at := counterFile(t, path)
	blocked := filepath.Join(filepath.Dir(at), "."+filepath.Base(at)+".tmp") // hsm.WriteFile's
	if err := os.Mkdir(blocked, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Increment(t.Context(), b, key); err == nil || errors.Is(err, hsm.ErrCounter) {
		t.Errorf("not writable: %v", err)
	}
	if n, err := m.Count(t.Context(), b, key); n != 0 || err != nil {
		t.Errorf("afterwards: %d, %v", n, err)
	}
}

func second[T any](_ T, err error) error { return err }
