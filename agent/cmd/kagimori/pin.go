package main

import (
	"bytes"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

func pinVerbs() *cobra.Command {
	set := &cobra.Command{
		Use: "set", Short: "Set the PIN that key copies ask for",
		Long: `Sets the PIN that "kagimori keycopy offer" asks for from now on, or another one.
It has 4 to 32 characters. Key storage counts wrong ones: a TPM locks by the
limits that "kagimori tpm show" names. The PIN is read from the terminal without
echo, twice, or else as one line of standard input.

The daemon needs no PIN, at its start or later.`,
		Example: "  sudo kagimori pin set",
		RunE:    func(cmd *cobra.Command, _ []string) error { return setPIN(cmd) },
	}
	clear := &cobra.Command{
		Use: "clear", Short: "Take the PIN away",
		Long:    "Takes the PIN away: key copies ask for none any more. An administrator needs not\nknow it.",
		Example: "  sudo kagimori pin clear",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := verb.Dial(cmd)
			if err != nil {
				return err
			}
			defer c.Close()
			if err := c.Call(cmd.Context(), "com.kagimori.agent.PINClear", nil, nil); err != nil {
				return err
			}
			return verb.Print(cmd, struct{}{}, func(w io.Writer) { fmt.Fprintln(w, "key copies ask for no PIN any more") })
		},
	}
	return verb.Group("pin", "The PIN before key copies", "The PIN that a person types before this terminal offers its keys.", set, clear)
}

func setPIN(cmd *cobra.Command) error {
	c, err := verb.Dial(cmd)
	if err != nil {
		return err
	}
	defer c.Close()
	pin, err := verb.ReadSecret(cmd, "New PIN: ")
	if err != nil {
		return err
	}
	defer pin.Wipe()
	if f, ok := cmd.InOrStdin().(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		again, err := verb.ReadSecret(cmd, "Again: ")
		if err != nil {
			return err
		}
		defer again.Wipe()
		if !bytes.Equal(pin, again) {
			return control.Problemf(control.BadInput, "type the same PIN twice", "the two PINs differ; nothing was changed")
		}
	}
	var in agent.PINParams
	if in.PIN, err = c.Seal(cmd.Context(), agent.LabelPIN, pin); err != nil {
		return err
	}
	if err := c.Call(cmd.Context(), "com.kagimori.agent.PINSet", in, nil); err != nil {
		return err
	}
	return verb.Print(cmd, struct{}{}, func(w io.Writer) { fmt.Fprintln(w, "key copies ask for this PIN from now on") })
}
