package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/agent/doctor"
	"github.com/kagimori/kagimori/configs"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/open"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

// A Program is what the verbs that both programs share need to know of one.
type Program struct {
	Name, Interface string
	Built           time.Time
	// Load reads a configuration file; "" is the usual one.
	Load func(path string) (keys configs.HSM, stateDir string, err error)
}

// Doctor is the verb that says what is wrong.
func (p Program) Doctor() *cobra.Command {
	cmd := &cobra.Command{
		Use: "doctor", Short: "Say what is wrong, what it leads to and what to do",
		Long: `Examines key storage, store, disk, clock, certificates, link, confinement and
audit log, and says of each thing that is wrong what it comes from, what it leads
to, and what to do next; and what would break if the power failed now.

It asks the daemon. When that does not run, it looks by itself at what it may,
changes nothing, and says so; --config then names the configuration.

The exit code is that of the worst finding's class; notes do not count:

` + doctor.Help(),
		Example: fmt.Sprintf("  %[1]s doctor\n  %[1]s doctor --json | jq -r '.findings[].class'", p.Name),
	}
	config := cmd.Flags().String("config", "", "configuration `FILE`, for when the daemon does not run")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		report, err := p.examine(cmd, *config)
		if err != nil {
			return err
		}
		if err := verb.Print(cmd, report, func(w io.Writer) { showReport(w, report) }); err != nil {
			return err
		}
		return verb.Exit(report.Exit)
	}
	return cmd
}

// examine asks the daemon, or looks alone.
func (p Program) examine(cmd *cobra.Command, config string) (*doctor.Report, error) {
	c, err := verb.Dial(cmd)
	switch {
	case errors.Is(err, &control.Problem{Kind: control.Unavailable}):
		keys, stateDir, err := p.Load(config)
		if err != nil {
			return nil, err
		}
		return doctor.Examine(p.alone(cmd.Context(), keys, stateDir)), nil
	case err != nil:
		return nil, err
	}
	defer c.Close()
	var report doctor.Report
	if err := c.Call(cmd.Context(), p.Interface+".Doctor", nil, &report); err != nil {
		return nil, err
	}
	// The daemon may be too confined to see all options of its file system.
	if report.StateDir != "" {
		report.Add(doctor.FlashFindings(doctor.ReadDisk(report.StateDir))...)
	}
	return &report, nil
}

// alone is what can be seen without a daemon, and without changing anything.
func (p Program) alone(ctx context.Context, keys configs.HSM, stateDir string) *doctor.Snapshot {
	now := time.Now()
	s := &doctor.Snapshot{Program: p.Name, StateDir: stateDir, Clock: doctor.Time{System: now, Floor: p.Built, Plausible: true}}
	if _, err := os.Stat(stateDir); err == nil {
		s.Disk = doctor.ReadDisk(stateDir)
	}
	health, err := open.Examine(ctx, open.Config{Kind: keys.Kind, Path: keys.Path, Dir: stateDir}, slog.New(slog.DiscardHandler))
	switch {
	case err == nil:
		s.Health = &health
	case errors.Is(err, errors.ErrUnsupported):
	default:
		s.HealthErr = err
	}
	path := filepath.Join(stateDir, storeFile)
	switch _, err := os.Stat(path); {
	case errors.Is(err, fs.ErrNotExist): // never started, or moved away
	case err != nil:
		s.Storage = fmt.Errorf("look at the store: %w", err)
	default:
		s.Storage = CheckStore(ctx, path)
	}
	return s
}

const storeFile = "kagimori.db"

func showReport(w io.Writer, r *doctor.Report) {
	if r.Healthy {
		fmt.Fprintln(w, "nothing is wrong")
	}
	for _, f := range r.Findings {
		class := verb.Warn(string(f.Class))
		switch f.Severity {
		case doctor.Fault:
			class = verb.Bad(string(f.Class))
		case doctor.Note:
			class = verb.Dim(string(f.Class))
		}
		verb.Fields(w, string(f.Severity), class, "  found", f.Text, "  cause", f.Cause, "  so", f.Consequence, "  next", f.Next)
	}
	fmt.Fprintln(w, "if the power failed now:")
	for _, line := range r.Power {
		fmt.Fprintf(w, "  %s\n", line)
	}
	for _, line := range r.Summary {
		fmt.Fprintln(w, line)
	}
}

// Lockout holds the verbs about the TPM and its guard against guessing.
func (p Program) Lockout() *cobra.Command {
	return verb.Group("tpm", "The TPM, and its guard against guessing",
		`Shows the TPM, and sets or resets its guard against guessing. This program's own
keys are exempt from that guard; it is for PINs, and for what other programs keep
in the TPM.`, p.showTPM(), p.setLockout(), p.resetLockout())
}

func (p Program) showTPM() *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Show the TPM's state and its lockout counters",
		Long:    "Shows what key storage says of itself. Asking counts nothing and is answered\nwhile the TPM is locked out. With --json, times are in nanoseconds.",
		Example: fmt.Sprintf("  %[1]s tpm show\n  %[1]s tpm show --json | jq .chip.lockout", p.Name),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := verb.Dial(cmd)
			if err != nil {
				return err
			}
			defer c.Close()
			var h hsm.Health
			if err := c.Call(cmd.Context(), p.Interface+".KeyStorage", nil, &h); err != nil {
				return err
			}
			return verb.Print(cmd, h, func(w io.Writer) { showHealth(w, &h) })
		},
	}
}

func showHealth(w io.Writer, h *hsm.Health) {
	fields := []any{"level", h.Level, "older stores are", "refused"}
	if !h.RollbackProof {
		fields[3] = verb.Warn("not surely refused")
	}
	if c := h.Chip; c != nil {
		locked := verb.Good("no")
		if c.Lockout.Locked {
			locked = verb.Bad(fmt.Sprintf("yes, one more try in %s", c.Lockout.Wait()))
		}
		fields = append(fields, "maker", c.Maker, "firmware", c.Firmware, "root key", c.Root, "  stored", c.Stored,
			"owner password", isSet(c.OwnerPassword), "lockout password", isSet(c.LockoutPassword),
			"locked", locked, "wrong tries", fmt.Sprintf("%d of %d", c.Lockout.Count, c.Lockout.Limit),
			"  one forgotten in", c.Lockout.Recovery, "  wrong password", fmt.Sprintf("locks the reset for %s", c.Lockout.Reset),
			"counters", c.Counters, "stopped orderly", !c.Unorderly)
	}
	verb.Fields(w, fields...)
	for _, n := range h.Notes {
		fmt.Fprintf(w, "  %s\n", n)
	}
}

func isSet(set bool) string {
	if set {
		return "set"
	}
	return "not set"
}
