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

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/agent/daemon"
	"github.com/kagimori/kagimori/agent/gate"
	"github.com/kagimori/kagimori/configs"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// crlFile holds the last good lists of revoked credentials, in the state directory.
const crlFile = "revoked.lists"

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
	config := cmd.Flags().String("config", "", "configuration `FILE` (default "+configs.GatePath+")")
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
	d, err := daemon.Open("kagimori-gate", log)
	if err != nil {
		return err
	}
	defer d.Close()
	roots, err := readRoots(cfg.Gate.UpstreamCA)
	if err != nil {
		return err
	}
	var g *gate.Gate
	a, err := d.Agent(agent.Config{
		Built: daemon.Built(built), Bundles: []transport.BundleKind{transport.BundleGate},
		Poll: cfg.Link.Poll.D(), MaxBackoff: cfg.Link.MaxBackoff.D(),
		Receive: func(ctx context.Context, e *transport.Envelope) error { return g.Receive(ctx, e) },
	}, cfg.HSM, cfg.StateDir)
	if err != nil {
		return err
	}
	source, stop := gate.FromAgent(a)
	defer stop()
	g, err = gate.New(gate.Config{
		Upstream: cfg.Gate.Upstream, UpstreamRoots: roots,
		CRLMaxAge: cfg.Gate.CRLMaxAge.D(), CRLFetch: cfg.Gate.CRLFetch.D(), CRLFile: filepath.Join(cfg.StateDir, crlFile),
	}, source, d.Dog, log)
	if err != nil {
		return err
	}
	socket, err := d.Control(cfg.Control)
	if err != nil {
		return err
	}
	door, err := d.Listen("gate", func() (net.Listener, error) { return listen(cfg.Gate.Listen) })
	if err != nil {
		return err
	}
	return d.Run(ctx, daemon.Shell{
		Agent: a, Interface: g.Interface(a), Config: cfg.Control, Control: socket, Line: func() string { return line(g, a) },
		Parts: []func(context.Context) error{func(ctx context.Context) error { return g.Run(ctx, door) }},
	})
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

// listen opens the door to terminals.
func listen(address string) (net.Listener, error) {
	door, err := net.Listen("tcp", address)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return nil, control.Problemf(control.Conflict, "stop the program that has the port, or change listen in the [gate] section", "listen for terminals: %w", err)
	case err != nil:
		return nil, control.Problemf(control.Config, "change listen in the [gate] section; a port below 1024 takes a socket unit with FileDescriptorName=gate", "listen for terminals: %w", err)
	}
	return door, nil
}

// line is the status in a few words, for the service manager.
func line(g *gate.Gate, a *agent.Agent) string {
	door := g.Status()
	if !door.Open && len(door.Problems) > 0 {
		return "admits nobody: " + door.Problems[0].Text
	}
	return fmt.Sprintf("%s: open, %d connected; %s", door.Service, door.Connections, a.Status().Line())
}
