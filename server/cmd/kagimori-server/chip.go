package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/server"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

func chipVerbs() *cobra.Command {
	return verb.Group("chip", "Chips: where keys that live in a chip may go",
		"A key that lives in a chip (credential issue --chip-only) and may travel goes only\nto chips that this server has approved. Those of terminals that prove their TPM\n(terminal add --attest) are approved when they connect; for a spare on the\nproduction line an administrator does it.",
		chipApprove(), chipList())
}

func chipApprove() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "approve FILE",
		Short: "Vouch for the chip of a spare terminal",
		Long: `Approves the chip whose storage key is in FILE, which "kagimori chip show --out FILE"
wrote on the terminal, and writes the approval for "kagimori chip install" there.
It works for a terminal that has never met this server.

The server cannot see that the storage key is in a chip: approve only what you took
from the terminal yourself, and from one that you trust. Whoever holds the private
half of a storage key that you approve can have every key of the fleet that may
travel, if an old terminal is made to offer it. An approval cannot be taken back:
chips know no time. The same chip again gives the same approval.`,
		Example: "  kagimori chip show --out spare-17.chip              # on the spare terminal\n  kagimori-server chip approve spare-17.chip --out spare-17.approval\n  kagimori chip install spare-17.approval             # on the spare terminal",
	}
	cmd.Flags().StringVarP(&out, "out", "o", "", "`FILE` for the approval, which must not exist")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if out == "" {
			return control.Problemf(control.Usage, "name it: kagimori-server chip approve "+args[0]+" --out FILE", "--out is missing")
		}
		file, err := readChipFile(args[0])
		if err != nil {
			return err
		}
		var reply server.ChipApproved
		if err := ask(cmd, "ChipApprove", server.ChipApproveParams{File: file}, &reply); err != nil {
			return err
		}
		err = hsm.CreateFile(out, reply.File, 0o644)
		if errors.Is(err, fs.ErrExist) {
			return control.Problemf(control.Conflict, "move it away, or choose another file with --out; the same approval is given again", "%s exists already", out)
		}
		if err != nil {
			return control.Problemf(control.BadInput, "choose another file with --out; the same approval is given again", "keep the approval: %w", err)
		}
		return verb.Print(cmd, reply, func(w io.Writer) {
			verb.Fields(w, "chip", reply.Chip.Chip, "approval", out, "approved", verb.Time(reply.Chip.Approved), "by", reply.Chip.Actor)
			if reply.Before {
				fmt.Fprintln(w, "\nIt was approved before; this is the same approval.")
			}
			fmt.Fprintf(w, "\nOn the terminal: kagimori chip install %s\n", out)
		})
	}
	return cmd
}

// readChipFile reads a little more than may be in it, for the server to refuse.
func readChipFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, control.Problemf(control.BadInput, "name the file that `kagimori chip show --out FILE` wrote on the terminal", "%w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, transport.MaxChipFile+1))
	if err != nil {
		return nil, control.Problemf(control.BadInput, "name the file that `kagimori chip show --out FILE` wrote on the terminal", "%w", err)
	}
	return data, nil
}

func chipList() *cobra.Command {
	var q listFlags
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List approved chips",
		Long:    "Lists the chips that keys may go to, by the Names of their storage keys, as\n\"kagimori chip show\" and tpm2_readpublic -c 0x81000001 show them.\nColumns: approved, origin. An origin is proven (at enrollment) or vouched (an\nadministrator said so).",
		Example: "  kagimori-server chip list --where origin=vouched",
	}
	q.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		list := []server.ChipInfo{}
		err := q.pages(cmd, func(in server.ListParams) (string, error) {
			var page server.ChipPage
			err := ask(cmd, "ChipList", in, &page)
			list = append(list, page.Chips...)
			return page.Next, err
		})
		if err != nil {
			return err
		}
		return verb.Print(cmd, map[string]any{"chips": list}, func(w io.Writer) {
			t := verb.NewTable(w, "CHIP", "ORIGIN", "DEVICE", "APPROVED", "BY")
			for _, c := range list {
				origin, device := verb.Good(string(c.Origin)), "-"
				if c.Origin == store.ChipVouched {
					origin = verb.Warn(string(c.Origin))
				}
				if c.Device != nil {
					device = c.Device.Short()
				}
				t.Row(c.Chip[:20]+"...", origin, device, verb.Time(c.Approved), c.Actor)
			}
			t.Flush(q.empty("no chip is approved"))
		})
	}
	return cmd
}
