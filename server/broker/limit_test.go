package broker

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestLimiter(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	l := newLimiter(Rate{Burst: 2, Every: time.Second}, Rate{Burst: 5, Every: time.Minute})
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	allowed := func(who netip.Addr, want bool) {
		t.Helper()
		if got := l.allow(who, now); got != want {
			t.Errorf("%v at %v: %v", who, now, got)
		}
	}
	allowed(a, true)
	allowed(a, true)
	allowed(a, false)
	allowed(netip.MustParseAddr("::ffff:192.0.2.1"), false) // the same
	allowed(b, true)
	now = now.Add(time.Second)
	allowed(a, true)
	allowed(a, false)
	now = now.Add(time.Hour) // not more than the burst
	allowed(b, true)
	allowed(b, true)
	allowed(b, false)
}

func TestLimiterTotal(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	l := newLimiter(Rate{Burst: 1, Every: time.Second}, Rate{Burst: 3, Every: time.Minute})
	got := 0
	for i := range byte(10) {
		if l.allow(netip.AddrFrom4([4]byte{192, 0, 2, i}), now) {
			got++
		}
	}
	if got != 3 {
		t.Errorf("%d of 10 addresses came in, want 3", got)
	}
}

// One owner of a whole IPv6 network is one party; the table stays small whatever
// comes.
func TestLimiterNetworks(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	l := newLimiter(Rate{Burst: 1, Every: time.Second}, Rate{Burst: 1 << 20, Every: time.Microsecond})
	if !l.allow(netip.MustParseAddr("2001:db8::1"), now) || l.allow(netip.MustParseAddr("2001:db8::2%eth0"), now) {
		t.Error("an IPv6 /64 is not one party")
	}
	if !l.allow(netip.Addr{}, now) || l.allow(netip.Addr{}, now) {
		t.Error("those without address are not counted together")
	}
	for i := range 3 * maxAddresses {
		l.allow(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), now.Add(time.Duration(i)))
		if len(l.by) > maxAddresses {
			t.Fatalf("%d addresses are kept", len(l.by))
		}
	}
	now = now.Add(time.Hour)
	l.forget(now)
	if len(l.by) != 0 {
		t.Errorf("%d addresses are kept after an hour", len(l.by))
	}
}

func TestQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		book := new(logBook)
		q := newQuiet(slog.New(slog.NewTextHandler(book, nil)), quietRate)
		for range 1000 {
			q.info("refused")
		}
		if n := strings.Count(book.String(), "\n"); n != quietRate.Burst {
			t.Errorf("%d lines of 1000, want %d", n, quietRate.Burst)
		}
		time.Sleep(time.Minute) // in the bubble's time
		q.warn("refused")
		if !strings.Contains(book.String(), "skipped=980") {
			t.Errorf("the last line does not tell what is missing:\n%s", book)
		}
		q.debug("nobody listens")
	})
}
