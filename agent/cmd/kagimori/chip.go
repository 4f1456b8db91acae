package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

func chipVerbs() *cobra.Command {
	return verb.Group("chip", "The chip of this terminal, as a place for keys",
		"A key that lives in a chip goes only to chips that the fleet has approved. The\nserver does that by itself for a terminal that has proven its TPM; for a spare that\nhas not met its server it is done by hand.", chipShow(), chipInstall())
}

func chipShow() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:     "show",
		Short:   "Show the chip, and whether keys may come to it",
		Long:    "Shows the Name of the storage key in this terminal's chip, and whether the fleet\nhas approved it. With --out it writes what \"kagimori-server chip approve\" needs.",
		Example: "  kagimori chip show\n  kagimori chip show --out spare-17.chip",
	}
	cmd.Flags().StringVarP(&out, "out", "o", "", "`FILE` for the server, which must not exist")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := verb.Dial(cmd)
		if err != nil {
			return err
		}
		defer c.Close()
		var s agent.ChipStatus
		if err := c.Call(cmd.Context(), "com.kagimori.agent.ChipShow", nil, &s); err != nil {
			return err
		}
		if out != "" {
			if err := writeChip(out, &s); err != nil {
				return err
			}
		}
		return verb.Print(cmd, s, func(w io.Writer) {
			showChip(w, &s)
			if out != "" {
				fmt.Fprintf(w, "written to %s; where the server is: kagimori-server chip approve %s --out FILE\n", out, out)
			}
		})
	}
	return cmd
}

func writeChip(path string, s *agent.ChipStatus) error {
	if !s.Present {
		return control.Problemf(control.Conflict, "set key storage to \"tpm\" on a device that has one", "this terminal has no chip")
	}
	err := hsm.CreateFile(path, s.File, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return control.Problemf(control.Conflict, "move it away, or choose another file with --out", "%s exists already", path)
	}
	if err != nil {
		return control.Problemf(control.BadInput, "choose another file with --out", "%w", err)
	}
	return nil
}

func showChip(w io.Writer, s *agent.ChipStatus) {
	approved := verb.Warn("no")
	if s.Approved {
		approved = verb.Good("yes")
	}
	chip := s.Chip
	if !s.Present {
		chip = "none"
	}
	verb.Fields(w, "chip", chip, "key storage", s.Level, "approved", approved)
	fmt.Fprintln(w, s.Text)
	if s.Next != "" {
		fmt.Fprintf(w, "next: %s\n", s.Next)
	}
}

func chipInstall() *cobra.Command {
	return &cobra.Command{
		Use:     "install FILE",
		Short:   "Take in an approval of this chip",
		Long:    "Takes in what \"kagimori-server chip approve\" wrote for this terminal's chip. From\nthen on a key copy may bring keys that live in a chip.",
		Example: "  sudo kagimori chip install spare-17.approval",
		RunE: func(cmd *cobra.Command, args []string) error {
			file, err := readSmall(args[0], transport.MaxChipFile)
			if err != nil {
				return control.Problemf(control.BadInput, "name the file that `kagimori-server chip approve` wrote", "%w", err)
			}
			c, err := verb.Dial(cmd)
			if err != nil {
				return err
			}
			defer c.Close()
			var s agent.ChipStatus
			if err := c.Call(cmd.Context(), "com.kagimori.agent.ChipInstall", agent.ChipInstallParams{File: file}, &s); err != nil {
				return err
			}
			return verb.Print(cmd, s, func(w io.Writer) { showChip(w, &s) })
		},
	}
}

// readSmall reads a file of at most limit bytes, and one more of a longer one,
// for whoever judges it to refuse.
func readSmall(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit+1))
}
