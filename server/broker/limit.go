package broker

// How often clients without certificate may come (DESIGN D8), and how often the
// log may speak of strangers.

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

// A Rate allows Burst events at once and one more in each Every.
type Rate struct {
	Burst int
	Every time.Duration
}

func (r Rate) or(other Rate) Rate {
	if r.Burst <= 0 || r.Every <= 0 {
		return other
	}
	return r
}

// maxAddresses bounds the table of addresses that are being counted.
const maxAddresses = 4096

// A bucket is a token bucket; full says when it is full again.
type bucket struct{ full time.Time }

func (b *bucket) take(r Rate, now time.Time) bool {
	full := b.full
	if full.Before(now) {
		full = now
	}
	full = full.Add(r.Every)
	if full.Sub(now) > time.Duration(r.Burst)*r.Every {
		return false
	}
	b.full = full
	return true
}

// A limiter counts events by address and in all.
type limiter struct {
	address, total Rate

	mu    sync.Mutex // guards all below
	all   bucket
	by    map[netip.Prefix]*bucket
	sweep time.Time // not before
}

func newLimiter(address, total Rate) *limiter {
	return &limiter{address: address, total: total, by: make(map[netip.Prefix]*bucket)}
}

// allow takes one event of an address at the time now, or refuses it.
func (l *limiter) allow(a netip.Addr, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := network(a)
	mine := l.by[key]
	if mine == nil {
		if len(l.by) >= maxAddresses {
			l.forget(now)
		}
		mine = &bucket{}
		l.by[key] = mine
	}
	return mine.take(l.address, now) && l.all.take(l.total, now)
}

// forget makes room for one address: it drops those that have their whole burst
// back, but looks for them only once a second, and if there is none any other.
// The total still bounds who comes with thousands of addresses.
func (l *limiter) forget(now time.Time) {
	if !now.Before(l.sweep) {
		l.sweep = now.Add(time.Second)
		for key, b := range l.by {
			if !b.full.After(now) {
				delete(l.by, key)
			}
		}
	}
	for key := range l.by {
		if len(l.by) < maxAddresses {
			return
		}
		delete(l.by, key)
	}
}

// network is what one party is likely to own: an IPv4 address or an IPv6 /64.
func network(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // no error: bits fit, and the zero address gives the zero prefix
	return p
}

// quiet logs what strangers can cause, but not as often as they like.
type quiet struct {
	log  *slog.Logger
	rate Rate

	mu      sync.Mutex // guards all below
	budget  bucket
	skipped int
}

// How often: of strangers one by one, and of a crowd of them.
var (
	quietRate = Rate{Burst: 20, Every: time.Second}
	crowdRate = Rate{Burst: 3, Every: 30 * time.Second}
)

func newQuiet(log *slog.Logger, rate Rate) *quiet { return &quiet{log: log, rate: rate} }

func (q *quiet) debug(msg string, args ...any) { q.say(slog.LevelDebug, msg, args) }
func (q *quiet) info(msg string, args ...any)  { q.say(slog.LevelInfo, msg, args) }
func (q *quiet) warn(msg string, args ...any)  { q.say(slog.LevelWarn, msg, args) }

func (q *quiet) say(level slog.Level, msg string, args []any) {
	if !q.log.Enabled(context.Background(), level) {
		return
	}
	q.mu.Lock()
	ok := q.budget.take(q.rate, time.Now())
	if !ok {
		q.skipped++
	} else if q.skipped > 0 {
		args = append(args, "skipped", q.skipped)
		q.skipped = 0
	}
	q.mu.Unlock()
	if ok {
		q.log.Log(context.Background(), level, msg, args...)
	}
}
