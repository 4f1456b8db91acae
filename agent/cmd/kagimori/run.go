package main

import (
	"context"
	"log/slog"
	"slices"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/agent/daemon"
	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/relay"
	"github.com/kagimori/kagimori/configs"
	"github.com/kagimori/kagimori/transport"
)

func runVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the daemon",
		Long: `Runs the daemon until SIGTERM or SIGINT. It starts without a bundle, without a
network, with a wrong clock and without its TPM, and says in "kagimori status"
what it waits for. Under systemd it is kagimori.service.`,
		Example: "  kagimori run\n  kagimori run --config ./agent.toml",
	}
	config := cmd.Flags().String("config", "", "configuration `FILE` (default "+configs.AgentPath+")")
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
	d, err := daemon.Open("kagimori", log)
	if err != nil {
		return err
	}
	defer d.Close()
	a, err := d.Agent(agentConfig(cfg), cfg.HSM, cfg.StateDir)
	if err != nil {
		return err
	}
	socket, err := d.Control(cfg.Control)
	if err != nil {
		return err
	}
	return d.Run(ctx, daemon.Shell{
		Agent: a, Interface: a.Interface(), Config: cfg.Control, Control: socket,
		Line: func() string { return a.Status().Line() },
	})
}

// agentConfig is a terminal's agent: it takes spare and terminal bundles, runs
// relays and copies keys.
func agentConfig(cfg *configs.Agent) agent.Config {
	c := agent.Config{
		Built: daemon.Built(built), Bundles: []transport.BundleKind{transport.BundleSpare, transport.BundleTerminal},
		Poll: cfg.Link.Poll.D(), MaxBackoff: cfg.Link.MaxBackoff.D(),
	}
	if len(cfg.Keycopy.Enabled) > 0 {
		c.Keycopy = &agent.KeycopyConfig{Listen: cfg.Keycopy.Listen, CodeTTL: cfg.Keycopy.CodeTTL.D(),
			Codes: keycopy.CodePolicy(cfg.Keycopy.Codes), Numbers: slices.Concat(cfg.Keycopy.Numbers, ownNumbers()),
			RequireIdentity: cfg.Keycopy.RequireIdentity, Announce: cfg.Keycopy.Announce}
		for _, m := range cfg.Keycopy.Enabled {
			c.Keycopy.Modes = append(c.Keycopy.Modes, transport.KeycopyMode(m))
		}
	}
	for _, r := range cfg.Relays {
		c.Relays = append(c.Relays, relay.Config{Service: transport.Name(r.Service), Listen: r.Listen, Public: r.Exposed})
	}
	return c
}
