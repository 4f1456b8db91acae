package mqtt

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestBackoff(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	b := Backoff{Base: time.Second, Cap: 10 * time.Second, Healthy: time.Minute}
	for round, step := range []struct {
		lived, bound time.Duration
	}{
		{0, time.Second}, {0, 2 * time.Second}, {0, 4 * time.Second},
		{59 * time.Second, 8 * time.Second}, // came up, but not for long enough
		{0, 10 * time.Second}, {0, 10 * time.Second},
		{time.Minute, time.Second}, {0, 2 * time.Second},
	} {
		fresh := b
		longest, shortest := time.Duration(0), step.bound
		for range 1000 {
			b = fresh
			d := b.Next(step.lived, random)
			if d < 0 || d > step.bound {
				t.Fatalf("round %d: %v, the bound is %v", round, d, step.bound)
			}
			longest, shortest = max(longest, d), min(shortest, d)
		}
		if longest < step.bound*9/10 || shortest > step.bound/10 {
			t.Errorf("round %d: between %v and %v, want all of 0 to %v", round, shortest, longest, step.bound)
		}
	}
}

func TestBackoffDefaults(t *testing.T) {
	var b Backoff
	random := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		if d := b.Next(0, random); d > 2*time.Minute {
			t.Fatal(d)
		}
	}
	if d := b.Next(30*time.Second, random); d > time.Second {
		t.Errorf("after a healthy connection: %v", d)
	}
}
