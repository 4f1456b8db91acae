package gate

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"time"
)

// counts counts what happens at the door, and logs the refusals. Somebody who
// knocks a thousand times a second fills no disk: beyond logBudget lines a
// second and reason they are only counted.
type counts struct {
	log *slog.Logger

	mu       sync.Mutex
	admitted int64             // guarded by mu: connections
	passed   int64             // guarded by mu: requests
	refusals map[Reason]*tally // guarded by mu
}

// tally is the count of one reason.
type tally struct {
	total  int64
	second time.Time // that logged belongs to
	logged int       // lines in it
	silent int       // refusals not logged since the last line
}

func newCounts(log *slog.Logger) *counts {
	return &counts{log: log, refusals: map[Reason]*tally{}}
}

func (c *counts) admit(ctx context.Context, s *session) {
	c.mu.Lock()
	c.admitted++
	c.mu.Unlock()
	c.log.DebugContext(ctx, "terminal admitted", "remote", s.RemoteAddr(), "credential", s.who.credential, "subject", s.who.subject)
}

func (c *counts) pass() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.passed++
}

// refused counts one, and logs it with why. err may be nil.
func (c *counts) refused(ctx context.Context, reason Reason, message string, remote net.Addr, who identity, err error) {
	silent, ok := c.note(reason, time.Now())
	if !ok {
		return
	}
	attrs := []slog.Attr{slog.String("reason", string(reason)), slog.Any("remote", remote)}
	if who.credential != "" {
		attrs = append(attrs, slog.String("credential", string(who.credential)), slog.String("serial", string(who.serial)))
	}
	if err != nil {
		attrs = append(attrs, slog.Any("err", err))
	}
	if silent > 0 {
		attrs = append(attrs, slog.Int("unlogged", silent))
	}
	level := slog.LevelWarn
	if reason == Handshake {
		level = slog.LevelDebug // port scanners, health checks
	}
	c.log.LogAttrs(ctx, level, message, attrs...)
}

func (c *counts) note(reason Reason, now time.Time) (silent int, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.refusals[reason]
	if t == nil {
		t = &tally{}
		c.refusals[reason] = t
	}
	t.total++
	if now.Sub(t.second) >= time.Second {
		t.second, t.logged = now, 0
	}
	if t.logged++; t.logged > logBudget {
		t.silent++
		return 0, false
	}
	silent, t.silent = t.silent, 0
	return silent, true
}

func (c *counts) read() (admitted, passed int64, refused map[Reason]int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	refused = map[Reason]int64{}
	for reason, t := range c.refusals {
		refused[reason] = t.total
	}
	return c.admitted, c.passed, refused
}
