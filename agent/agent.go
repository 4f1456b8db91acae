// Package agent is the daemon that keeps a terminal's keys. START HERE: this
// file makes an Agent and runs its parts; each part is a noun with a file:
//
//   - opening.go, vault.go, identity.go: key storage, store, and the device's own key
//   - aside.go, recovery.go: how a device gets its keys back when they do not open
//   - terminal.go, provision.go: what a provisioning bundle makes of a device
//   - clock.go: what time it is, on a terminal that may wake in 1970
//   - link.go, trip.go: the connection to the management server, and enroll.go,
//     session.go, command.go, credential.go, holding.go: what is said over it
//   - revoked.go: which gates may not be talked to any more
//   - relay.go: local ports through which unchanged programs use credentials
//   - keycopy.go, keycopy_offer.go, keycopy_door.go, keycopy_fetch.go, keycopy_resume.go: credentials
//     from terminal to terminal; keycopy_deal.go, keycopy_journal.go, keycopy_keys.go: what is on
//     record of that and what it does to keys; keycopy_settle.go, keycopy_report.go: who decides when
//     an end is gone, and what the server is told
//   - audit.go: what happened to keys; doctor.go, lockout.go, pin.go: what is
//     wrong, the chip's guard against guessing, and the PIN for people
//   - status.go, control.go: what people see and ask for
//
// The conversations (enroll.go, session.go) are pure: messages in, messages
// out. Only link.go, relay.go and the key copy touch the network. The gate
// (agent/gate) is an agent that stands on the service's side; it uses this
// package and never the other way round.
package agent

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/kagimori/kagimori/agent/relay"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/systemd"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// Config is what a program decides about its agent. Zero durations take the
// defaults; what is nil or empty is not offered.
type Config struct {
	// Program and Version are for people: "kagimori", "0.1.0".
	Program, Version string
	// Bundles are the kinds that Provision takes in.
	Bundles []transport.BundleKind
	// Built is the build date, part of the clock's floor (DESIGN D12).
	Built time.Time
	// Poll is how often the server is asked for commands, default 15 min;
	// MaxBackoff the longest pause between attempts to connect, default 2 min.
	Poll, MaxBackoff time.Duration
	// Receive takes messages from the server that the agent itself does not
	// know. It is called in the link's goroutine and must not block for long.
	Receive func(context.Context, *transport.Envelope) error
	Relays  []relay.Config
	Keycopy *KeycopyConfig
	// Passphrase is where key storage asks for one; nil: nobody can give it.
	Passphrase *PassphraseDesk
	// Boot is how keys are bound to the boot, for what people see; nil: not.
	Boot *BootConfig
	// StateDir is where the store is, for what is set aside there and for the doctor. Examine
	// asks key storage how it is while it does not open; nil: it is not asked.
	StateDir string
	Examine  func(context.Context) (hsm.Health, error)
}

const (
	defaultPoll       = 15 * time.Minute
	defaultMaxBackoff = 2 * time.Minute
	// reopenFirst and reopenMost bound the pauses between attempts to open key
	// storage that is not there.
	reopenFirst, reopenMost = 2 * time.Second, time.Minute
	// openingTime is how long a slow chip may take before the watchdog bites.
	openingTime = 2 * time.Minute
)

// An Agent is made by New, runs once, and may be asked from several goroutines
// at any time, also while its key storage is not open.
type Agent struct {
	cfg    Config
	opener Opener
	dog    *systemd.Watchdog
	log    *slog.Logger
	clock  *Clock
	ready  chan struct{}
	opened chan struct{}     // closed when there is a vault
	orders chan *remedyOrder // remedies for the loop that opens
	relays []*relayRun
	link   linkStatus
	copies copies

	mu       sync.Mutex
	vault    *vault                 // guarded by mu; nil while it is not open
	problem  *control.Problem       // guarded by mu: why it is not open
	cause    error                  // guarded by mu: the same, typed; nil before the first attempt
	seen     map[string]hsm.Blob    // guarded by mu: what is in clear in a store that does not open
	unnoted  error                  // guarded by mu: why a store that is set aside is not taken note of yet
	watchers map[chan struct{}]bool // guarded by mu
	looks    looks                  // what anybody may have looked at
	intake   sync.Mutex             // held while a bundle is taken in
	unlocks  sync.Mutex             // held while a passphrase is tried
}

// errStarting is a storage that nobody has tried to open yet.
var errStarting = control.Problemf(control.Unavailable, "try again in a moment", "the daemon is starting")

// New checks cfg. Nothing is opened before Run.
func New(cfg Config, opener Opener, dog *systemd.Watchdog, log *slog.Logger) (*Agent, error) {
	if cfg.Poll <= 0 {
		cfg.Poll = defaultPoll
	}
	if cfg.MaxBackoff <= 0 {
		cfg.MaxBackoff = defaultMaxBackoff
	}
	a := &Agent{
		cfg: cfg, opener: opener, dog: dog, log: log,
		clock: NewClock(time.Now, cfg.Built), ready: make(chan struct{}),
		opened: make(chan struct{}), orders: make(chan *remedyOrder),
		problem: errStarting, watchers: map[chan struct{}]bool{},
	}
	a.link.set(LinkStatus{State: LinkStarting})
	for _, rc := range cfg.Relays {
		r, err := relay.New(rc, credentials{a}, log)
		if err != nil {
			return nil, err
		}
		a.relays = append(a.relays, &relayRun{relay: r, listen: rc.Listen})
	}
	return a, nil
}

// Ready is closed once it is known whether key storage and store open.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// Clock is the time as this agent knows it.
func (a *Agent) Clock() *Clock { return a.clock }

// Run opens what there is to open and keeps everything going until ctx ends,
// or until something happens that only a restart or an administrator can help:
// then it returns that. While key storage does not open for a reason that may
// pass, it answers Status with it and tries again.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	v, err := a.openVault(ctx, cancel)
	if err != nil || v == nil {
		return err
	}
	var wg sync.WaitGroup
	wg.Go(func() { a.runStore(ctx, v) })
	wg.Go(func() { a.runLink(ctx, v) })
	for _, r := range a.relays {
		wg.Go(func() { r.run(ctx, a) })
	}
	wg.Go(func() { a.runKeycopy(ctx) })
	wg.Go(func() { a.runResume(ctx, v) })
	wg.Wait()
	a.mu.Lock()
	a.vault, a.problem = nil, control.Problemf(control.Unavailable, "start it again", "the daemon is stopping")
	a.mu.Unlock()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		err = cause
	}
	return errors.Join(err, v.close())
}

// rest waits, with beats, until pause is over or wake is told. It returns false
// when ctx has ended.
func (a *Agent) rest(ctx context.Context, loop *systemd.Loop, pause time.Duration, wake <-chan struct{}) bool {
	over := time.NewTimer(pause)
	defer over.Stop()
	tick, stop := a.dog.Tick()
	defer stop()
	for {
		loop.Beat()
		select {
		case <-ctx.Done():
			return false
		case <-over.C:
			return true
		case <-wake:
			return true
		case <-tick:
		}
	}
}

// beating runs do, which has a deadline of its own, and beats for it for at
// most limit.
func (a *Agent) beating(loop *systemd.Loop, limit time.Duration, do func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(done)
		do()
	})
	defer wg.Wait()
	tick, stop := a.dog.Tick()
	defer stop()
	for began := time.Now(); ; {
		select {
		case <-done:
			loop.Beat()
			return
		case <-tick:
			if time.Since(began) < limit {
				loop.Beat()
			}
		}
	}
}

// runStore proves now and then that the store answers, and writes the clock
// when its floor has fallen behind by a day, or when somebody waits by it.
func (a *Agent) runStore(ctx context.Context, v *vault) {
	loop := a.dog.Loop("store")
	defer loop.End()
	tick, stop := a.dog.Tick()
	defer stop()
	for {
		err := v.store.View(func(*store.Tx) error { return nil })
		due := a.clock.due()
		if err == nil && !due && a.clock.overdue() {
			due, err = v.waits()
		}
		if err == nil && due {
			err = v.update(func(*store.Tx) error { return nil })
		}
		if err != nil {
			a.log.Error("store does not answer", "err", err)
		} else {
			loop.Beat()
			if v.owing() {
				a.beating(loop, openingTime, func() { v.catchUp(ctx) })
			}
			if diskFull(a.asideUnnoted()) {
				a.noteAside(ctx, v)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
	}
}

// open gives the vault, or the Problem for which there is none.
func (a *Agent) open() (*vault, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.vault == nil {
		return nil, a.problem
	}
	return a.vault, nil
}

// Update writes to the agent's store, in buckets of the caller's own.
func (a *Agent) Update(fn func(*store.Tx) error) error {
	v, err := a.open()
	if err != nil {
		return err
	}
	return v.update(fn)
}

// View reads from the agent's store.
func (a *Agent) View(fn func(*store.Tx) error) error {
	v, err := a.open()
	if err != nil {
		return err
	}
	return v.store.View(fn)
}

// Watch gives a channel that is told, at least once, after anything in the
// store or the state of key storage changed. stop frees it.
func (a *Agent) Watch() (changed <-chan struct{}, stop func()) {
	c := make(chan struct{}, 1)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.watchers[c] = true
	return c, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.watchers, c)
	}
}

func (a *Agent) changed() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for c := range a.watchers {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// jitter gives randomness that only spreads things out.
func jitter() *rand.Rand { return rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())) }
