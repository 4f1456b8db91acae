// Package daemon is what kagimori and kagimori-gate have in common between main
// and the agent: the process, the service manager, the control socket, and the
// verb that takes in a bundle. START HERE: Open, then Run.
package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/configs"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/open"
	"github.com/kagimori/kagimori/systemd"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

// A Daemon is one process of one program.
type Daemon struct {
	Program string
	Dog     *systemd.Watchdog
	Log     *slog.Logger

	notifier *systemd.Notifier
	sockets  systemd.Sockets
	doors    []net.Listener
}

// Open prepares the process: the service manager, and the sockets that it passed.
func Open(program string, log *slog.Logger) (*Daemon, error) {
	notifier := systemd.NewNotifier(log)
	interval, err := systemd.Interval()
	if err != nil {
		return nil, err
	}
	sockets, err := systemd.Activated()
	if err != nil {
		return nil, err
	}
	return &Daemon{Program: program, Dog: systemd.NewWatchdog(notifier, interval, log), Log: log, notifier: notifier, sockets: sockets}, nil
}

// Agent makes the agent on the key storage and state that a configuration names.
func (d *Daemon) Agent(cfg agent.Config, keys configs.HSM, stateDir string) (*agent.Agent, error) {
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return nil, control.Problemf(control.Storage, "make it for the daemon's user, mode 0700, or correct state_dir", "state directory: %w", err)
	}
	cfg.Program, cfg.Version, cfg.StateDir = d.Program, verb.Version, stateDir
	cfg.Passphrase = &agent.PassphraseDesk{}
	where := open.Config{Kind: keys.Kind, Path: keys.Path, Dir: stateDir, Passphrase: keys.Passphrase, Ask: cfg.Passphrase.Ask}
	cfg.Examine = func(ctx context.Context) (hsm.Health, error) { return open.Examine(ctx, where, d.Log) }
	sc := agent.StoreConfig{Dir: stateDir, Check: CheckStore}
	if len(keys.BootRegisters) > 0 {
		b, err := newBoot(keys, where, d.Log)
		if err != nil {
			return nil, err
		}
		sc.Boot, cfg.Boot = b.store(), b.agent()
	}
	storage := agent.Storage(where, sc, d.Log)
	a, err := agent.New(cfg, storage, d.Dog, d.Log)
	if err != nil {
		return nil, control.Problemf(control.Config, "correct the configuration", "%w", err)
	}
	return a, nil
}

// Listen gives the door of that name: the service manager's, or else what own
// opens. Doors are closed by Close.
func (d *Daemon) Listen(name string, own func() (net.Listener, error)) (net.Listener, error) {
	door := d.sockets.Take(name)
	if door == nil {
		var err error
		if door, err = own(); err != nil {
			return nil, err
		}
	}
	d.doors = append(d.doors, door)
	return door, nil
}

// Close closes the doors.
func (d *Daemon) Close() {
	for _, door := range d.doors {
		door.Close()
	}
}

// Control opens the control socket. It comes before every other door: it also
// is what keeps a second daemon from starting.
func (d *Daemon) Control(cfg configs.Control) (net.Listener, error) {
	return d.Listen("control", func() (net.Listener, error) { return control.Listen(cfg.Socket, cfg.FileMode()) })
}

// A Shell is what Run runs around an agent.
type Shell struct {
	Agent     *agent.Agent
	Interface control.Interface
	Config    configs.Control
	Control   net.Listener
	Line      func() string                     // the state in a few words, for the service manager
	Parts     []func(ctx context.Context) error // what else runs; one that ends ends the daemon
}

// Run serves until ctx ends or a part cannot go on, and until all has ended.
func (d *Daemon) Run(ctx context.Context, s Shell) error {
	if err := d.sockets.Close(); err != nil {
		return err
	}
	access, err := control.NewAccess(s.Config.Operators)
	if err != nil {
		return err
	}
	server, err := control.New(control.Options{Product: d.Program, Version: verb.Version, Access: access}, d.Log, s.Interface)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	wg.Go(func() { cancel(server.Serve(ctx, s.Control)) })
	wg.Go(func() { cancel(s.Agent.Run(ctx)) })
	wg.Go(func() { d.Dog.Run(ctx) })
	for _, part := range s.Parts {
		wg.Go(func() { cancel(part(ctx)) })
	}
	select {
	case <-s.Agent.Ready():
		d.notifier.Ready(s.Line())
		d.Log.Info("ready", "version", verb.Version, "control", s.Config.Socket)
		wg.Go(func() { d.watch(ctx, s) })
	case <-ctx.Done():
	}
	<-ctx.Done()
	d.notifier.Stopping()
	wg.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// watch asks the daemon over its own socket, as a verb does, and beats when it
// answers; it also keeps the line that `systemctl status` shows.
func (d *Daemon) watch(ctx context.Context, s Shell) {
	loop := d.Dog.Loop("control")
	defer loop.End()
	tick, stop := d.Dog.Tick()
	defer stop()
	shown := ""
	for {
		if answers(ctx, s.Config.Socket) {
			loop.Beat()
		}
		if line := s.Line(); line != shown {
			d.notifier.Status("%s", line)
			shown = line
		}
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
	}
}

func answers(ctx context.Context, socket string) bool {
	c, err := control.Dial(ctx, socket)
	if err != nil {
		return false
	}
	defer c.Close()
	return c.Call(ctx, "org.varlink.service.GetInfo", nil, nil) == nil
}

// Built is when this program was built, as far as it knows: a terminal's clock
// is never before that (DESIGN D12). stamp is the linker's, RFC 3339.
func Built(stamp string) time.Time {
	if t, err := time.Parse(time.RFC3339, stamp); err == nil {
		return t
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if t, err := time.Parse(time.RFC3339, s.Value); err == nil && s.Key == "vcs.time" {
				return t
			}
		}
	}
	return time.Time{}
}
