package main

import (
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/server"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

func credentialShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Show a credential and who holds or held it",
		Long: `Shows a credential with all that have it or had it: from when to when, how they
got it, and by which key copy. In transit is what its terminal has given up in a
key copy and nobody has proven to have instead.`,
		Example: "  kagimori-server credential show cr-abcdefghij",
		RunE: func(cmd *cobra.Command, args []string) error {
			var c server.CredentialInfo
			if err := ask(cmd, "CredentialShow", server.NameParams{Name: args[0]}, &c); err != nil {
				return err
			}
			return verb.Print(cmd, c, func(w io.Writer) { printCredential(w, c) })
		},
	}
}

func printCredential(w io.Writer, c server.CredentialInfo) {
	verb.Fields(w, "id", c.ID, "kind", c.Kind, "destination", c.Service, "subject", c.Subject, "usage", c.Usage, "transfer", c.Transfer,
		"chip only", c.ChipOnly, "certificate", dash(c.Serial), "expires", verb.Time(c.Expires), "state", credentialState(c),
		"operation", c.Operation, "operation date", verb.Time(c.Operated), "ordered from", dash(string(c.Ordered)))
	fmt.Fprintln(w, "\nHolders")
	t := verb.NewTable(w, "TERMINAL", "DEVICE", "SINCE", "UNTIL", "ORIGIN", "FROM DEVICE", "KEY COPY", "EXPIRES", "STATE")
	for _, h := range c.Holders {
		source, copied := "-", "-"
		if h.Source != nil {
			source = h.Source.Short()
		}
		if h.Txn != nil {
			copied = h.Txn.String()
		}
		t.Row(h.Terminal, h.Device.Short(), verb.Time(h.Since), verb.Time(h.Until), h.Origin, source, copied, verb.Time(h.Expires), holderState(h))
	}
	t.Flush("nobody yet")
	for _, h := range c.Holders {
		if h.Note != "" {
			fmt.Fprintf(w, "note: %s: %s\n", h.Terminal, h.Note)
		}
		if h.Rule != "" {
			fmt.Fprintf(w, "note: %s %s\n", h.Terminal, h.Rule)
		}
		if h.State == store.HoldingEnded && h.Taken != nil {
			fmt.Fprintf(w, "note: %s gave it up in key copy %s\n", h.Terminal, h.Taken)
		}
	}
	if c.Conflict != "" {
		fmt.Fprintf(w, "wrong: %s\n", c.Conflict)
		next(w, c.Next)
	}
}

func holderState(h server.HolderInfo) verb.Cell {
	switch {
	case h.State == store.HoldingEnded:
		return verb.Dim("ended")
	case h.State == store.HoldingTransit:
		return verb.Warn("in transit")
	case !h.Expires.After(time.Now()):
		return verb.Bad("expired")
	}
	return verb.Good("has it")
}

// inTransit says whether nobody is sure to have a credential, but somebody is to
// get it.
func inTransit(c server.CredentialInfo) bool {
	has := func(state store.HoldingState) bool {
		return slices.ContainsFunc(c.Holders, func(h server.HolderInfo) bool { return h.State == state })
	}
	return has(store.HoldingTransit) && !has(store.HoldingActive)
}

func credentialSet() *cobra.Command {
	var in server.CredentialSetParams
	cmd := &cobra.Command{
		Use:   "set ID",
		Short: "Change what may happen to a credential when its terminal is replaced",
		Long: `Changes the rule for a credential's transfer, and has every terminal that holds it
told. Each goes by the rule that it had until it confirms the new one; credential
show names those that have not. A terminal that gets the credential later by a key
copy is told when it reports it. A key copy that is under way goes on by the old rule.

copy: both terminals have it afterwards. move: the old one gives it up. never: it
stays where it is. What was made in a chip to stay there cannot be changed.`,
		Example: "  kagimori-server credential set cr-abcdefghij --transfer move",
	}
	cmd.Flags().StringVar(&in.Transfer, "transfer", "", "what may happen to it, `HOW` is copy, move or never")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		in.Name = args[0]
		if in.Transfer == "" {
			return control.Problemf(control.Usage, "say what: kagimori-server credential set "+args[0]+" --transfer HOW", "--transfer is missing")
		}
		var r server.CredentialSetReply
		if err := ask(cmd, "CredentialSet", in, &r); err != nil {
			return err
		}
		return verb.Print(cmd, r, func(w io.Writer) {
			fmt.Fprintf(w, "%s: transfer %s, was %s. Told: %s.\n", r.ID, r.Transfer, r.Was, dash(names(r.Told)))
			for _, n := range r.Notes {
				fmt.Fprintf(w, "Note: %s.\n", n)
			}
			if len(r.Told) > 0 {
				next(w, "whether they go by it: kagimori-server credential show "+string(r.ID))
			}
		})
	}
	return cmd
}
