package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/relay"
	"github.com/kagimori/kagimori/configs"
	"github.com/kagimori/kagimori/hsm/open"
	"github.com/kagimori/kagimori/systemd"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

// deviceSecret is what the module "file" keeps in the state directory.
const deviceSecret = "device.secret"

func runVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the daemon",
		Long: `Runs the daemon until SIGTERM or SIGINT. It starts without a bundle, without a
network, with a wrong clock and without its TPM, and says in "kagimori status"
what it waits for. Under systemd it is kagimori.service.`,
		Example: "  kagimori run\n  kagimori run --config ./agent.toml",
	}
	config := cmd.Flags().String("config", "", "configuration file (default "+configs.AgentPath+")")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var cfg configs.Agent
		if err := configs.Load(*config, &cfg); err != nil {
			return err
		}
		return run(cmd.Context(), &cfg, configs.Logger(cfg.Log, cmd.ErrOrStderr()))
	}
	return cmd
}

// run wires the daemon. It returns when everything has ended.
func run(ctx context.Context, cfg *configs.Agent, log *slog.Logger) error {
	if err := noCores(); err != nil {
		return err
	}
	notifier := systemd.NewNotifier(log)
	interval, err := systemd.Interval()
	if err != nil {
		return err
	}
	dog := systemd.NewWatchdog(notifier, interval, log)
	a, err := newAgent(cfg, dog, log)
	if err != nil {
		return err
	}
	listener, server, err := openControl(cfg, a, log)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	wg.Go(func() { cancel(server.Serve(ctx, listener)) })
	wg.Go(func() { cancel(a.Run(ctx)) })
	wg.Go(func() { dog.Run(ctx) })
	select {
	case <-a.Ready():
		notifier.Ready(a.Status().Line())
		log.Info("ready", "version", verb.Version, "control", cfg.Control.Socket)
		wg.Go(func() { watch(ctx, cfg.Control.Socket, a, dog, notifier) })
	case <-ctx.Done():
	}
	<-ctx.Done()
	notifier.Stopping()
	wg.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// noCores keeps keys out of core dumps and away from debuggers of the same user.
func noCores() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("switch off core dumps: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("switch off core dumps: %w", err)
	}
	return nil
}

// newAgent makes an agent of a configuration.
func newAgent(cfg *configs.Agent, dog *systemd.Watchdog, log *slog.Logger) (*agent.Agent, error) {
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, control.Problemf(control.Storage, "make it for the daemon's user, mode 0700, or correct state_dir", "state directory: %w", err)
	}
	key := open.Config{Kind: cfg.HSM.Kind, Path: cfg.HSM.Path}
	if key.Path == "" && key.Kind == "file" {
		key.Path = filepath.Join(cfg.StateDir, deviceSecret)
	}
	c := agent.Config{
		Program: "kagimori", Version: verb.Version, Built: builtAt(),
		Bundles: []transport.BundleKind{transport.BundleSpare, transport.BundleTerminal},
		Poll:    cfg.Link.Poll.D(), MaxBackoff: cfg.Link.MaxBackoff.D(),
	}
	if slices.Contains(cfg.Keycopy.Enabled, string(transport.KeycopyPAKE)) {
		c.Keycopy = &agent.KeycopyConfig{Listen: cfg.Keycopy.Listen, CodeTTL: cfg.Keycopy.CodeTTL.D()}
		if c.Keycopy.CodeTTL > keycopy.CodeLifetime {
			log.Warn("keycopy.code_ttl is longer than a code may live", "code_ttl", c.Keycopy.CodeTTL, "used", keycopy.CodeLifetime)
		}
	}
	for _, r := range cfg.Relays {
		c.Relays = append(c.Relays, relay.Config{Service: transport.Name(r.Service), Listen: r.Listen, Public: r.Exposed})
	}
	a, err := agent.New(c, agent.Storage(key, cfg.StateDir, log), dog, log)
	if err != nil {
		return nil, control.Problemf(control.Config, "correct the configuration", "%w", err)
	}
	return a, nil
}

// openControl opens the control socket, or takes systemd's. It also is what
// keeps a second daemon from starting.
func openControl(cfg *configs.Agent, a *agent.Agent, log *slog.Logger) (net.Listener, *control.Server, error) {
	access, err := control.NewAccess(cfg.Control.Operators)
	if err != nil {
		return nil, nil, err
	}
	server, err := control.New(control.Options{Product: "kagimori", Version: verb.Version, Access: access}, log, a.Interface())
	if err != nil {
		return nil, nil, err
	}
	sockets, err := systemd.Activated()
	if err != nil {
		return nil, nil, err
	}
	listener := sockets.Take("control")
	if err := sockets.Close(); err != nil {
		return nil, nil, err
	}
	if listener == nil {
		listener, err = control.Listen(cfg.Control.Socket, cfg.Control.FileMode())
	}
	return listener, server, err
}

// watch asks the daemon over its own socket, as a verb does, and beats when it
// answers; it also keeps the line that `systemctl status` shows.
func watch(ctx context.Context, socket string, a *agent.Agent, dog *systemd.Watchdog, notifier *systemd.Notifier) {
	loop := dog.Loop("control")
	defer loop.End()
	tick, stop := dog.Tick()
	defer stop()
	shown := ""
	for {
		if answers(ctx, socket) {
			loop.Beat()
		}
		if line := a.Status().Line(); line != shown {
			notifier.Status("%s", line)
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
