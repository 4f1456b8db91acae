package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control/verb"
)

// The verbs of the key copy: keycopy_offer.go for the old terminal,
// keycopy_fetch.go for the new one, keycopy_show.go what both show,
// keycopy_settle.go for what is on record and does not go on.

func keycopyVerbs() *cobra.Command {
	return verb.Group("keycopy", "Copy keys from an old terminal to a new one",
		`Copies credentials from the terminal that is replaced to the one that replaces
it. On the old one: "kagimori keycopy offer" shows an operator code. On the new
one: "kagimori keycopy fetch HOST:PORT" asks for it. Both must have been
provisioned for the same group; no server needs to be in reach.

When the connection breaks or the power goes, leave both terminals on: once the
new one has been told what it gets, it comes back by itself. "kagimori keycopy
list" says where each copy stands and what is to be done.`,
		append([]*cobra.Command{offerVerb(), fetchVerb(), disarmVerb(), unlockVerb()}, settleVerbs()...)...)
}

func disarmVerb() *cobra.Command {
	return &cobra.Command{
		Use:     "disarm",
		Short:   "On the old terminal: destroy the code of the offer that stands",
		Long:    "Destroys the operator code of an offer, for example one whose login was lost.",
		Example: "  kagimori keycopy disarm",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := verb.Dial(cmd)
			if err != nil {
				return err
			}
			defer c.Close()
			var out agent.DisarmReply
			if err := c.Call(cmd.Context(), "com.kagimori.agent.KeycopyDisarm", nil, &out); err != nil {
				return err
			}
			return verb.Print(cmd, out, func(w io.Writer) {
				if out.Disarmed {
					fmt.Fprintln(w, "the operator code is destroyed")
				} else {
					fmt.Fprintln(w, "no offer stood")
				}
			})
		},
	}
}

func unlockVerb() *cobra.Command {
	return &cobra.Command{
		Use:     "unlock",
		Short:   "Forget wrong operator codes that have locked this terminal",
		Long:    "Nine wrong operator codes in a day lock key copies on a terminal, for an hour and\nthen longer. Once it is clear who typed them, an administrator ends the lock here.",
		Example: "  sudo kagimori keycopy unlock",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := verb.Dial(cmd)
			if err != nil {
				return err
			}
			defer c.Close()
			if err := c.Call(cmd.Context(), "com.kagimori.agent.KeycopyUnlock", nil, nil); err != nil {
				return err
			}
			return verb.Print(cmd, struct{}{}, func(w io.Writer) { fmt.Fprintln(w, "wrong operator codes are forgotten") })
		},
	}
}

func names(ids []string) []transport.Name {
	var list []transport.Name
	for _, id := range ids {
		list = append(list, transport.Name(id))
	}
	return list
}
