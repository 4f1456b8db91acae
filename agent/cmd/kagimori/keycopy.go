package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

func keycopyVerbs() *cobra.Command {
	return verb.Group("keycopy", "Copy keys from an old terminal to a new one",
		`Copies credentials from the terminal that is replaced to the one that replaces
it. On the old one: "kagimori keycopy offer" shows an operator code. On the new
one: "kagimori keycopy fetch HOST:PORT" asks for it. Both must have been
provisioned for the same group; no server needs to be in reach.`,
		offerVerb(), fetchVerb(), disarmVerb(), unlockVerb())
}

func offerVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "offer",
		Short: "On the old terminal: show a code and wait for the new one",
		Long: `Makes an operator code, shows it, and waits for the new terminal. The code is
good for one copy, five minutes and three wrong attempts. Ctrl-C destroys it.
If the login is lost the offer stands until its time is over; "kagimori keycopy
disarm" ends it. If this terminal has a PIN (kagimori pin), it is asked for, or
read as one line of standard input.

This terminal keeps its keys: it is a copy.`,
		Example: "  kagimori keycopy offer\n  kagimori keycopy offer --credential cr-7q3mz5xk2a --credential cr-b4w9tn6rjd",
	}
	ids := cmd.Flags().StringArray("credential", nil, "offer only the credential with this `ID` (may be repeated)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := verb.Dial(cmd)
		if err != nil {
			return err
		}
		defer c.Close()
		reader, err := control.NewReader()
		if err != nil {
			return err
		}
		show := verb.NewProgress(cmd)
		defer show.End()
		in := agent.OfferParams{Credentials: names(*ids), ReplyKey: reader.Key()}
		if in.PIN, err = askPIN(cmd, c); err != nil {
			return err
		}
		err = c.Stream(cmd.Context(), "com.kagimori.agent.KeycopyOffer", in, func(raw json.RawMessage) error {
			var ev agent.KeycopyEvent
			if err := json.Unmarshal(raw, &ev); err != nil {
				return err
			}
			if ev.Step == "armed" {
				return armed(show, reader, ev)
			}
			return happened(show, ev)
		})
		if cmd.Context().Err() != nil {
			show.End()
			return disarm(verb.Socket(cmd))
		}
		return err
	}
	return cmd
}

// disarm destroys the code after Ctrl-C: hanging up alone does not.
func disarm(socket string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	const next = "run `kagimori keycopy disarm`"
	c, err := control.Dial(ctx, socket)
	if err != nil {
		return control.Problemf(control.Interrupted, next, "interrupted; the code may still stand: %w", err)
	}
	defer c.Close()
	if err := c.Call(ctx, "com.kagimori.agent.KeycopyDisarm", nil, nil); err != nil {
		return control.Problemf(control.Interrupted, next, "interrupted; the code may still stand: %w", err)
	}
	return control.Problemf(control.Interrupted, "", "interrupted; the operator code is destroyed")
}

// armed shows what a technician needs at the old terminal: the code, and what
// to type at the new one.
func armed(show *verb.Progress, reader *control.Reader, ev agent.KeycopyEvent) error {
	code, err := reader.Open(agent.LabelCode, ev.Code)
	if err != nil {
		return err
	}
	defer code.Wipe()
	var b strings.Builder
	b.WriteString("To be copied to the new terminal; this one keeps them:\n")
	for _, k := range ev.Keys {
		fmt.Fprintf(&b, "    %s  (service %s)\n", k.ID, k.Service)
	}
	if more := ev.Items - len(ev.Keys); more > 0 {
		fmt.Fprintf(&b, "    and %d more\n", more)
	}
	for _, h := range ev.Held {
		fmt.Fprintf(&b, "  not %s: %s\n", h.ID, h.Reason)
	}
	if ev.Warning != "" {
		fmt.Fprintf(&b, "  warning: %s\n", ev.Warning)
	}
	fmt.Fprintf(&b, "\n    operator code    %s\n\n", string([]byte(code)))
	fmt.Fprintf(&b, "Type it on the new terminal, within %s:\n", spell(ev.Seconds))
	for _, address := range reachable(ev.Listen) {
		fmt.Fprintf(&b, "    kagimori keycopy fetch %s\n", address)
	}
	b.WriteString("\nwaiting; Ctrl-C destroys the code")
	ev.Code = string([]byte(code)) // --json: the reader of this stream is the operator
	return show.Line(ev, "%s", b.String())
}

// spell writes a short time out: "5 minutes", "90 seconds".
func spell(seconds int) string {
	if seconds >= 120 && seconds%60 == 0 {
		return fmt.Sprintf("%d minutes", seconds/60)
	}
	return fmt.Sprintf("%d seconds", seconds)
}

// happened shows one step.
func happened(show *verb.Progress, ev agent.KeycopyEvent) error {
	switch keycopy.EventKind(ev.Step) {
	case keycopy.EventItem:
		return show.Step(ev, "%s", ev.Text)
	case keycopy.EventKilled, keycopy.EventExpired:
		return show.Step(ev, "%s", ev.Text) // the error that follows says it in full
	case keycopy.EventClosed:
		return show.Line(ev, "%s", summary(ev))
	}
	return show.Line(ev, "%s", ev.Text)
}

// summary is the last word on a copy: each key, and what to do next.
func summary(ev agent.KeycopyEvent) string {
	var b strings.Builder
	for _, k := range ev.Keys {
		fmt.Fprintf(&b, "    %s  (service %s)\n", k.ID, k.Service)
	}
	for _, h := range ev.Held {
		fmt.Fprintf(&b, "  not %s: %s\n", h.ID, h.Reason)
	}
	if ev.More > 0 {
		fmt.Fprintf(&b, "  and %d more not copied\n", ev.More)
	}
	b.WriteString(ev.Text)
	if ev.Next != "" {
		b.WriteString("\n  next: " + ev.Next)
	}
	return b.String()
}

// typings is how often a person is asked for a code that was mistyped.
const typings = 5

func fetchVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "fetch HOST:PORT",
		Short: "On the new terminal: copy the keys that the old one offers",
		Long: `Asks for the operator code that the old terminal shows, and copies its
credentials to this one. The code is read from the terminal without echo, or
else as one line of standard input.`,
		Example: "  kagimori keycopy fetch 192.0.2.7:8885",
	}
	ids := cmd.Flags().StringArray("credential", nil, "copy only the credential with this `ID` (may be repeated)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if _, _, err := net.SplitHostPort(args[0]); err != nil {
			return control.Problemf(control.Usage, "give it as the old terminal shows it, for example 192.0.2.7:8885", "%q is not HOST:PORT", args[0])
		}
		c, err := verb.Dial(cmd)
		if err != nil {
			return err
		}
		defer c.Close()
		in := agent.FetchParams{Address: args[0], Credentials: names(*ids)}
		for try := 1; ; try++ {
			err := fetch(cmd, c, in)
			// A mistyped code costs nothing: a person may type it again.
			if try == typings || !errors.Is(err, &control.Problem{Kind: control.BadInput}) || !term.IsTerminal(int(os.Stdin.Fd())) {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%v\n", err)
		}
	}
	return cmd
}

// fetch asks for the code and makes one attempt with it.
func fetch(cmd *cobra.Command, c *control.Client, in agent.FetchParams) error {
	code, err := verb.ReadSecret(cmd, "Operator code: ")
	if err != nil {
		return err
	}
	defer code.Wipe()
	if in.Code, err = c.Seal(cmd.Context(), agent.LabelCode, code); err != nil {
		return err
	}
	show := verb.NewProgress(cmd)
	defer show.End()
	return c.Stream(cmd.Context(), "com.kagimori.agent.KeycopyFetch", in, func(raw json.RawMessage) error {
		var ev agent.KeycopyEvent
		if err := json.Unmarshal(raw, &ev); err != nil {
			return err
		}
		return happened(show, ev)
	})
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
