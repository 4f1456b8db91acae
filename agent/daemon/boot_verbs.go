package daemon

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/transport/control/verb"
)

// Boot holds the verbs about keys that open under a certain boot only.
func (p Program) Boot() *cobra.Command {
	return verb.Group("boot", "Keys that open under a certain boot only",
		`Firmware and boot loader measure what they start into registers of the TPM. With
boot_registers in the configuration, keys open under the present boot only, or, with
boot_authority, under every boot that the vendor has approved.`, p.bootShow(), p.bootPrepare(), p.bootConfirm())
}

func (p Program) bootVerb(cmd *cobra.Command, method string, in any) error {
	var s agent.BootStatus
	if err := p.call(cmd, method, in, &s); err != nil {
		return err
	}
	return verb.Print(cmd, s, func(w io.Writer) { showBoot(w, &s) })
}

func (p Program) bootShow() *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Show how this machine was booted and what keys are bound to",
		Long: `Shows the registers as they are now, whether anything is measured into them, the
slots under which keys open, and the approvals at hand. It also works while keys do
not open.`,
		Example: fmt.Sprintf("  %[1]s boot show\n  %[1]s boot show --json | jq .registers", p.Name),
		RunE:    func(cmd *cobra.Command, _ []string) error { return p.bootVerb(cmd, "BootShow", nil) },
	}
}

func (p Program) bootPrepare() *cobra.Command {
	var registers []string
	cmd := &cobra.Command{
		Use: "prepare", Short: "Before an update: have keys also open under the next boot",
		Long: `Makes a second slot for the registers as they will be after an update, which whoever
builds the update knows. Registers that are not named stay as they are. Both slots
open until "boot confirm"; if the update is taken back, the old one still does.
Prepare again replaces what was prepared before.`,
		Example: "  " + p.Name + " boot prepare --register 7=" + exampleValue,
	}
	cmd.Flags().StringArrayVar(&registers, "register", nil, "`N=HEX`: register and its value after the update, SHA-256 bank; may be given several times")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return p.bootVerb(cmd, "BootPrepare", agent.BootPrepareParams{Registers: registers})
	}
	return cmd
}

const exampleValue = "65caf8dd1e0ea7a6347b635d2b379c93b9a1351edc2afc3ecda700e534eb3068"

func (p Program) bootConfirm() *cobra.Command {
	return &cobra.Command{
		Use: "confirm", Short: "After an update that works: end the bond to the boot before",
		Long:    "Removes the slot of the boot before the update, after it made sure that the new one\nopens now. If the machine came up as before, it is refused and both stay.",
		Example: "  " + p.Name + " boot confirm",
		RunE:    func(cmd *cobra.Command, _ []string) error { return p.bootVerb(cmd, "BootConfirm", nil) },
	}
}

func showBoot(w io.Writer, s *agent.BootStatus) {
	authority := "none"
	if s.Authority != "" {
		authority = s.Authority
	}
	bond := s.Bond
	if bond == "" {
		bond = "-"
	}
	verb.Fields(w, "state", s.Text, "bound to", bond, "authority", authority)
	if len(s.Registers) > 0 {
		fmt.Fprintln(w, "\nRegisters now")
		t := verb.NewTable(w, "REGISTER", "SHA-256", "MEASURED")
		for _, r := range s.Registers {
			measured := verb.Good("yes")
			if !r.Measured {
				measured = verb.Bad("no")
			}
			t.Row(r.Register, r.Value, measured)
		}
		t.Flush("")
	}
	if len(s.Slots) > 0 {
		fmt.Fprintln(w, "\nSlots")
		t := verb.NewTable(w, "SLOT", "REGISTERS", "SIGNED", "OPENED")
		for _, x := range s.Slots {
			t.Row(x.Name, fmt.Sprint(x.Registers), x.Signed, x.Opened)
		}
		t.Flush("")
	}
	if s.Authority != "" {
		fmt.Fprintln(w, "\nApprovals")
		t := verb.NewTable(w, "FILE", "STATE")
		for _, f := range s.Approvals {
			state := any("good")
			switch {
			case f.Problem != "":
				state = verb.Bad(f.Problem)
			case f.Current:
				state = verb.Good("approves this boot")
			}
			t.Row(f.File, state)
		}
		t.Flush("none")
	}
	if s.Next != "" {
		fmt.Fprintf(w, "  next: %s\n", s.Next)
	}
}
