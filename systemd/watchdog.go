package systemd

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// DefaultInterval stands where systemd sets no watchdog: silent loops are
// still named in the log then.
const DefaultInterval = 30 * time.Second

// Interval is WatchdogSec= of the unit, 0 when there is none for this
// process. (The one of go-systemd reads the microseconds with Atoi and so
// fails above 2147 s on 32-bit machines.)
func Interval() (time.Duration, error) {
	usec := os.Getenv("WATCHDOG_USEC")
	if usec == "" {
		return 0, nil
	}
	if pid := os.Getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0, nil
	}
	const most = uint64(1<<63-1) / uint64(time.Microsecond)
	n, err := strconv.ParseUint(usec, 10, 64)
	if err != nil || n == 0 || n > most {
		return 0, fmt.Errorf("WATCHDOG_USEC=%q is not a time in microseconds", usec)
	}
	return time.Duration(n) * time.Microsecond, nil
}

// A Watchdog tells systemd that the daemon is alive, as long as each of its
// loops is: a process whose event loop hangs gets killed and restarted.
type Watchdog struct {
	notifier *Notifier
	interval time.Duration
	log      *slog.Logger

	mu    sync.Mutex
	loops map[*Loop]struct{} // guarded by mu
}

// NewWatchdog makes one; interval is Interval's, or DefaultInterval.
func NewWatchdog(n *Notifier, interval time.Duration, log *slog.Logger) *Watchdog {
	if interval <= 0 {
		interval = DefaultInterval
	}
	return &Watchdog{notifier: n, interval: interval, log: log, loops: map[*Loop]struct{}{}}
}

// Every is how often a loop should beat: three times in an interval.
func (w *Watchdog) Every() time.Duration { return w.interval / 3 }

// A Loop is one goroutine that must keep turning.
type Loop struct {
	w      *Watchdog
	name   string
	last   time.Time // guarded by w.mu
	silent bool      // guarded by w.mu; said so in the log already
}

// Loop registers one; registering counts as its first beat. The loop ends
// with End, or else the watchdog bites.
func (w *Watchdog) Loop(name string) *Loop {
	l := &Loop{w: w, name: name, last: time.Now()}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.loops[l] = struct{}{}
	return l
}

// Beat says that the loop turns.
func (l *Loop) Beat() {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	l.last = time.Now()
	if l.silent {
		l.silent = false
		l.w.log.Info("loop turns again", "loop", l.name)
	}
}

// End takes a loop out that has ended as it should.
func (l *Loop) End() {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	delete(l.w.loops, l)
}

// Tick returns a channel on which to beat, for a select that may otherwise
// wait longer than Every; stop frees it.
func (w *Watchdog) Tick() (tick <-chan time.Time, stop func()) {
	t := time.NewTicker(w.Every())
	return t.C, t.Stop
}

// Run notifies until ctx ends, three times in an interval, but not while a
// loop has been silent for a whole interval.
func (w *Watchdog) Run(ctx context.Context) {
	tick := time.NewTicker(w.Every())
	defer tick.Stop()
	for {
		if w.alive(time.Now()) {
			w.notifier.notify(daemon.SdNotifyWatchdog)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// alive says whether every loop has beaten within the interval, and names
// those that have not in the log, once each.
func (w *Watchdog) alive(now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	alive := true
	for l := range w.loops {
		if now.Sub(l.last) < w.interval {
			continue
		}
		alive = false
		if !l.silent {
			l.silent = true
			w.log.Error("loop is silent, the watchdog is not fed", "loop", l.name, "since", now.Sub(l.last))
		}
	}
	return alive
}
