package mqtt

import (
	"math/rand/v2"
	"time"
)

// Backoff says how long to wait before the next Dial: a random time between
// nothing and a bound that doubles with every failure ("full jitter"), so that a
// fleet that lost its server does not come back all at once.
type Backoff struct {
	Base    time.Duration // the first bound, default 1 s
	Cap     time.Duration // the last bound, default 2 min
	Healthy time.Duration // a connection must have lived this long to count as a success, default 30 s

	failures int
}

// Next counts one connection that ended after lived (0 if it never came up) and
// draws the time to wait. A connection that comes up and falls over at once is a
// failure like any other.
func (b *Backoff) Next(lived time.Duration, random *rand.Rand) time.Duration {
	base, most, healthy := b.Base, b.Cap, b.Healthy
	if base <= 0 {
		base = time.Second
	}
	if most <= 0 {
		most = 2 * time.Minute
	}
	if healthy <= 0 {
		healthy = 30 * time.Second
	}
	if lived >= healthy {
		b.failures = 0
	}
	bound := base
	for range b.failures {
		if bound >= most {
			break
		}
		bound *= 2
	}
	b.failures++
	return time.Duration(random.Int64N(int64(min(bound, most)) + 1))
}
