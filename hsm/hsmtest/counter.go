package hsmtest

import (
	"bytes"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/kagimori/kagimori/hsm"
)

func newCounter(t *testing.T, m hsm.Counters, key *hsm.Secret) hsm.Blob {
	t.Helper()
	k := key.Clone()
	b, err := m.NewCounter(t.Context(), k)
	k.Wipe() // the module must not need it any more
	if err != nil {
		t.Fatalf("new counter: %v", err)
	}
	return b
}

func count(t *testing.T, m hsm.Counters, b hsm.Blob, key *hsm.Secret) uint64 {
	t.Helper()
	n, err := m.Count(t.Context(), b, key)
	if err != nil {
		t.Fatalf("count: %v", err)
	}
	return n
}

func checkCounters(t *testing.T, m hsm.Module) {
	key, other := hsm.RandomSecret(hsm.CounterKeySize), hsm.RandomSecret(hsm.CounterKeySize)
	key.Bytes()[hsm.CounterKeySize-1] = 0 // a TPM drops zeros at the end of what it keeps
	a, b := newCounter(t, m, key), newCounter(t, m, other)
	defer m.DropCounter(t.Context(), b, other)
	if bytes.Contains(a, key.Bytes()[:8]) || len(a) > hsm.MaxBlob {
		t.Error("a blob that shows its key, or is too long")
	}
	start, still := count(t, m, a, key), count(t, m, b, other)
	for n := range uint64(5) {
		if got, err := m.Increment(t.Context(), a, key); err != nil || got != start+n+1 {
			t.Fatalf("increment to %d, %v; want %d", got, err, start+n+1)
		}
		if got := count(t, m, a, key); got != start+n+1 {
			t.Errorf("counts %d, want %d", got, start+n+1)
		}
	}
	if got := count(t, m, b, other); got != still {
		t.Errorf("the other counter went from %d to %d", still, got)
	}
	for name, err := range map[string]error{
		"counted":     second(m.Count(t.Context(), a, other)),
		"incremented": second(m.Increment(t.Context(), a, other)),
		"dropped":     m.DropCounter(t.Context(), a, other),
	} {
		if !errors.Is(err, hsm.ErrCounter) {
			t.Errorf("%s with another key: %v", name, err)
		}
	}
	if got := count(t, m, a, key); got != start+5 {
		t.Errorf("counts %d, want %d: another key pushed it", got, start+5)
	}
	for _, n := range []int{0, hsm.CounterKeySize - 1, hsm.CounterKeySize + 1} {
		if _, err := m.NewCounter(t.Context(), hsm.RandomSecret(n)); err == nil {
			t.Errorf("a key of %d bytes was taken", n)
		}
		if _, err := m.Count(t.Context(), a, hsm.RandomSecret(n)); err == nil {
			t.Errorf("a key of %d bytes reads", n)
		}
	}
	dropCounter(t, m, a, key)
}

// dropCounter drops a counter and sees that it is gone for good.
func dropCounter(t *testing.T, m hsm.Counters, b hsm.Blob, key *hsm.Secret) {
	t.Helper()
	if err := m.DropCounter(t.Context(), b, key); err != nil {
		t.Fatalf("drop: %v", err)
	}
	for name, err := range map[string]error{
		"counts": second(m.Count(t.Context(), b, key)), "increments": second(m.Increment(t.Context(), b, key)),
		"drops": m.DropCounter(t.Context(), b, key),
	} {
		if !errors.Is(err, hsm.ErrCounter) {
			t.Errorf("a dropped counter %s: %v", name, err)
		}
	}
}

// checkCountersTampered flips each byte of a counter's blob: it counts no more.
func checkCountersTampered(t *testing.T, m hsm.Module) {
	key := hsm.RandomSecret(hsm.CounterKeySize)
	b := newCounter(t, m, key)
	defer m.DropCounter(t.Context(), b, key)
	before := count(t, m, b, key)
	for n := range b {
		bad := bytes.Clone(b)
		bad[n] ^= 1 << (n % 8)
		for _, err := range []error{second(m.Count(t.Context(), bad, key)), second(m.Increment(t.Context(), bad, key))} {
			if !errors.Is(err, hsm.ErrBlob) && !errors.Is(err, hsm.ErrReplaced) && !errors.Is(err, hsm.ErrCounter) {
				t.Fatalf("byte %d of %d flipped: %v", n, len(b), err)
			}
		}
	}
	if got := count(t, m, b, key); got != before {
		t.Errorf("counts %d after all that, want %d", got, before)
	}
}

// checkCountersAtOnce has several goroutines push one counter: each push counts.
func checkCountersAtOnce(t *testing.T, m hsm.Module) {
	const workers, rounds = 4, 5
	key := hsm.RandomSecret(hsm.CounterKeySize)
	b := newCounter(t, m, key)
	defer m.DropCounter(t.Context(), b, key)
	before := count(t, m, b, key)
	var mu sync.Mutex
	var seen []uint64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range rounds {
				n, err := m.Increment(t.Context(), b, key)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				seen = append(seen, n)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	slices.Sort(seen)
	if len(slices.Compact(seen)) != workers*rounds {
		t.Errorf("two increments gave the same value: %v", seen)
	}
	if got := count(t, m, b, key); got != before+workers*rounds {
		t.Errorf("counts %d, want %d", got, before+workers*rounds)
	}
}

func checkCountersReopen(t *testing.T, open Open) {
	m := open(t)
	key := hsm.RandomSecret(hsm.CounterKeySize)
	b := newCounter(t, m, key)
	for range 3 {
		want, err := m.Increment(t.Context(), b, key)
		if err != nil {
			t.Fatal(err)
		}
		closeModule(t, m)
		m = open(t)
		if got := count(t, m, b, key); got != want {
			t.Errorf("counts %d after a new start, want %d", got, want)
		}
	}
	dropCounter(t, m, b, key)
	closeModule(t, m)
}
