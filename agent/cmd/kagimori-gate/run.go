package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/agent/gate"
	"github.com/kagimori/kagimori/configs"
	"github.com/kagimori/kagimori/hsm/open"
	"github.com/kagimori/kagimori/systemd"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

const (
	// deviceSecret is what the module "file" keeps in the state directory,
	// crlFile the last good lists of revoked credentials.
	deviceSecret = "device.secret"
	crlFile      = "revoked.lists"
)

func runVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the daemon",
		Long: `Runs the daemon until SIGTERM or SIGINT. It starts without a bundle, without
the management server and without the service behind it, admits nobody as long
as it cannot tell who may pass, and says in "kagimori-gate status" what it waits
for. Under systemd it is kagimori-gate.service.`,
		Example: "  kagimori-gate run\n  kagimori-gate run --config ./gate.toml",
	}
	config := cmd.Flags().String("config", "", "configuration file (default "+configs.GatePath+")")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var cfg configs.Gate
		if err := configs.Load(*config, &cfg); err != nil {
			return err
		}
		return run(cmd.Context(), &cfg, configs.Logger(cfg.Log, cmd.ErrOrStderr()))
	}
	return cmd
}

// run wires the daemon. It returns when everything has ended.
func run(ctx context.Context, cfg *configs.Gate, log *slog.Logger) error {
	if err := noCores(); err != nil {
		return err
	}
	notifier := systemd.NewNotifier(log)
	interval, err := systemd.Interval()
	if err != nil {
		return err
	}
	d := &daemon{cfg: cfg, dog: systemd.NewWatchdog(notifier, interval, log), notifier: notifier, log: log}
	if err := d.build(); err != nil {
		return err
	}
	defer d.stop()
	if err := d.listen(); err != nil {
		return err
	}
	return d.run(ctx)
}

// daemon is the gate's parts.
type daemon struct {
	cfg      *configs.Gate
	dog      *systemd.Watchdog
	notifier *systemd.Notifier
	log      *slog.Logger

	agent   *agent.Agent
	gate    *gate.Gate
	server  *control.Server
	control net.Listener // callers of the command line
	door    net.Listener // terminals
	stop    func()
}

// build makes the parts. Nothing runs yet.
func (d *daemon) build() error {
	cfg := d.cfg
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return control.Problemf(control.Storage, "make it for the daemon's user, mode 0700, or correct state_dir", "state directory: %w", err)
	}
	key := open.Config{Kind: cfg.HSM.Kind, Path: cfg.HSM.Path}
	if key.Path == "" && key.Kind == "file" {
		key.Path = filepath.Join(cfg.StateDir, deviceSecret)
	}
	var err error
	d.agent, err = agent.New(agent.Config{
		Program: "kagimori-gate", Version: verb.Version, Built: builtAt(),
		Bundles: []transport.BundleKind{transport.BundleGate},
		Poll:    cfg.Link.Poll.D(), MaxBackoff: cfg.Link.MaxBackoff.D(),
		Receive: func(ctx context.Context, e *transport.Envelope) error { return d.gate.Receive(ctx, e) },
	}, agent.Storage(key, cfg.StateDir, d.log), d.dog, d.log)
	if err != nil {
		return control.Problemf(control.Config, "correct the configuration", "%w", err)
	}
	roots, err := readRoots(cfg.Gate.UpstreamCA)
	if err != nil {
		return err
	}
	source, stop := gate.FromAgent(d.agent)
	d.stop = stop
	d.gate, err = gate.New(gate.Config{
		Upstream: cfg.Gate.Upstream, UpstreamRoots: roots,
		CRLMaxAge: cfg.Gate.CRLMaxAge.D(), CRLFetch: cfg.Gate.CRLFetch.D(), CRLFile: filepath.Join(cfg.StateDir, crlFile),
	}, source, d.dog, d.log)
	if err != nil {
		return err
	}
	access, err := control.NewAccess(cfg.Control.Operators)
	if err != nil {
		return err
	}
	d.server, err = control.New(control.Options{Product: "kagimori-gate", Version: verb.Version, Access: access}, d.log, d.gate.Interface(d.agent))
	return err
}

// readRoots reads the CAs of an https upstream; no path means the system's.
func readRoots(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	const next = "correct upstream_ca in the [gate] section: a PEM file with the certificates of CAs"
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, control.Problemf(control.Config, next, "upstream_ca: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data) {
		return nil, control.Problemf(control.Config, next, "upstream_ca: %s holds no certificate", path)
	}
	return roots, nil
}

// listen opens both doors, or takes systemd's. The control socket comes first:
// it also is what keeps a second daemon from starting.
func (d *daemon) listen() error {
	sockets, err := systemd.Activated()
	if err != nil {
		return err
	}
	d.control, d.door = sockets.Take("control"), sockets.Take("gate")
	if err := sockets.Close(); err != nil {
		return err
	}
	if d.control == nil {
		if d.control, err = control.Listen(d.cfg.Control.Socket, d.cfg.Control.FileMode()); err != nil {
			return err
		}
	}
	if d.door == nil {
		if d.door, err = net.Listen("tcp", d.cfg.Gate.Listen); err != nil {
			d.control.Close()
			if errors.Is(err, unix.EADDRINUSE) {
				return control.Problemf(control.Conflict, "stop the program that has the port, or change listen in the [gate] section", "listen for terminals: %w", err)
			}
			return control.Problemf(control.Config, "change listen in the [gate] section; a port below 1024 takes a socket unit with FileDescriptorName=gate", "listen for terminals: %w", err)
		}
	}
	return nil
}

// run runs the parts until ctx ends or one of them cannot go on.
func (d *daemon) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	wg.Go(func() { cancel(d.server.Serve(ctx, d.control)) })
	wg.Go(func() { cancel(d.agent.Run(ctx)) })
	wg.Go(func() { cancel(d.gate.Run(ctx, d.door)) })
	wg.Go(func() { d.dog.Run(ctx) })
	select {
	case <-d.agent.Ready():
		d.notifier.Ready(d.line())
		d.log.Info("ready", "version", verb.Version, "control", d.cfg.Control.Socket, "listen", d.door.Addr(), "upstream", d.cfg.Gate.Upstream)
		wg.Go(func() { d.watch(ctx) })
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

// line is the status in a few words, for the service manager.
func (d *daemon) line() string {
	door := d.gate.Status()
	if !door.Open && len(door.Problems) > 0 {
		return "admits nobody: " + door.Problems[0].Text
	}
	return fmt.Sprintf("%s: open, %d connected; %s", door.Service, door.Connections, d.agent.Status().Line())
}

// watch asks the daemon over its own socket, as a verb does, and beats when it
// answers; it also keeps the line that `systemctl status` shows.
func (d *daemon) watch(ctx context.Context) {
	loop := d.dog.Loop("control")
	defer loop.End()
	tick, stop := d.dog.Tick()
	defer stop()
	shown := ""
	for {
		if answers(ctx, d.cfg.Control.Socket) {
			loop.Beat()
		}
		if line := d.line(); line != shown {
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
