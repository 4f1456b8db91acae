package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/configs"
	"github.com/kagimori/kagimori/hsm/attest"
	"github.com/kagimori/kagimori/server"
	"github.com/kagimori/kagimori/server/broker"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/systemd"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

func runVerb() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Serve terminals, gates and the command line",
		Long: `Serves MQTT over TLS 1.3 to terminals and gates, revocation lists and /healthz
over HTTP, and the other verbs on the control socket, until it is told to stop
(SIGTERM, SIGINT). init has made its state directory.`,
		Example: "  kagimori-server run\n  kagimori-server run --config ./server.toml",
	}
	cmd.Flags().StringVar(&path, "config", "", "configuration `FILE` (default "+configs.ServerPath+", if it is there)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var cfg configs.Server
		if err := configs.Load(path, &cfg); err != nil {
			return err
		}
		if cmd.Flags().Changed("socket") {
			cfg.Control.Socket = verb.Socket(cmd)
		}
		return run(cmd.Context(), cfg, configs.Logger(cfg.Log, cmd.ErrOrStderr()))
	}
	return cmd
}

// run opens everything, from the inside out, and serves until ctx ends.
func run(ctx context.Context, cfg configs.Server, log *slog.Logger) error {
	access, err := control.NewAccess(cfg.Control.Operators)
	if err != nil {
		return err
	}
	makers, err := readRoots(cfg.Attestation.EKRoots)
	if err != nil {
		return err
	}
	if err := store.Present(cfg.StateDir); err != nil {
		return err
	}
	module, err := openModule(ctx, cfg.HSM, cfg.StateDir, log)
	if err != nil {
		return err
	}
	defer module.Close()
	st, err := store.Open(ctx, cfg.StateDir, module, log)
	if err != nil {
		return err
	}
	defer st.Close()
	interval, err := systemd.Interval()
	if err != nil {
		return err
	}
	notifier := systemd.NewNotifier(log)
	watchdog := systemd.NewWatchdog(notifier, interval, log)
	s, err := server.New(ctx, server.Config{
		Version: verb.Version, Access: access, Watchdog: watchdog, EKRoots: makers,
		Lifetimes: server.Lifetimes{
			Identity: cfg.CA.IdentityLifetime.D(), Service: cfg.CA.ServiceLifetime.D(), Server: cfg.CA.ServerLifetime.D(),
			CRL: cfg.CA.CRLLifetime.D(), Backdate: cfg.CA.Backdate.D(),
		},
	}, st, module, log)
	if err != nil {
		return err
	}
	defer s.Close()
	doors, err := listen(ctx, cfg)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	alive, stop := context.WithCancel(context.WithoutCancel(ctx)) // until all has ended: stopping may take its time
	defer stop()
	wg.Go(func() { watchdog.Run(alive) })
	notifier.Ready(fmt.Sprintf("deployment %s", s.Deployment().Name))
	defer context.AfterFunc(ctx, notifier.Stopping)()
	return s.Run(ctx, doors)
}

// readRoots reads the makers of TPMs, nil when none are configured.
func readRoots(path string) (*attest.Roots, error) {
	if path == "" {
		return nil, nil
	}
	const next = "correct ek_roots in the [attestation] section: a PEM file with CA certificates of makers of TPMs, or empty"
	f, err := os.Open(path)
	if err != nil {
		return nil, control.Problemf(control.Config, next, "ek_roots: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, attest.MaxRoots+1))
	if err != nil {
		return nil, control.Problemf(control.Config, next, "ek_roots: %w", err)
	}
	makers, err := attest.ParseRoots(text)
	if err != nil {
		return nil, control.Problemf(control.Config, next, "ek_roots: %s: %w", path, err)
	}
	return makers, nil
}

// listen opens the three doors, or takes them from systemd.
func listen(ctx context.Context, cfg configs.Server) (l server.Listeners, err error) {
	defer func() {
		if err != nil {
			for _, open := range []net.Listener{l.MQTT, l.HTTP, l.Control} {
				if open != nil {
					open.Close()
				}
			}
		}
	}()
	passed, err := systemd.Activated()
	if err != nil {
		return l, err
	}
	l = server.Listeners{MQTT: passed.Take("mqtt"), HTTP: passed.Take("http"), Control: passed.Take("control")}
	if err := passed.Close(); err != nil {
		return l, err
	}
	if l.Control == nil {
		if l.Control, err = control.Listen(cfg.Control.Socket, cfg.Control.FileMode()); err != nil {
			return l, err
		}
	}
	if l.MQTT == nil {
		if l.MQTT, err = broker.Listen(ctx, cfg.MQTT.Listen); err != nil {
			return l, cannotListen("mqtt", cfg.MQTT.Listen, err)
		}
	}
	if l.HTTP == nil {
		if l.HTTP, err = new(net.ListenConfig).Listen(ctx, "tcp", cfg.HTTP.Listen); err != nil {
			return l, cannotListen("http", cfg.HTTP.Listen, err)
		}
	}
	return l, nil
}

func cannotListen(section, address string, err error) error {
	kind, next := control.Config, fmt.Sprintf("set listen in [%s] to an address of this machine", section)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		kind, next = control.Conflict, fmt.Sprintf("see who has it with `ss -ltnp`, and stop it or set another listen in [%s]", section)
	case errors.Is(err, syscall.EACCES):
		kind, next = control.Refused, fmt.Sprintf("set a port above 1023 as listen in [%s], or let systemd open it", section)
	}
	var cause *net.OpError
	if errors.As(err, &cause) {
		err = cause
	}
	return control.Problemf(kind, next, "[%s] cannot listen on %s: %w", section, address, err)
}
