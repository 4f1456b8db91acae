package main

import (
	"bytes"
	"context"
	"encoding/json"
	"time"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

const offerLong = `Shows which keys are copied, which move and which stay, and why; then an operator
code, and where the new terminal finds this one. The code is good for one copy,
five minutes and three wrong attempts. If this terminal has a PIN (kagimori pin),
it is asked for, or read as one line of standard input.

What happens to a key is its policy: "copy" leaves this terminal its key, "move"
takes it away once the new one uses it. --move moves also what may be copied.

Ctrl-C destroys the code, as long as the new terminal has not proven it; from then
on the copy goes on without you. If the login is lost the offer stands until its
time is over; "kagimori keycopy disarm" ends it. If the connection breaks after the
codes matched, leave this terminal on: the new one comes back by itself.

Where the configuration allows it (codes in [keycopy]), --typed asks for a code of
your own, which you then type on the new terminal as well: 8, or 10 to 16, digits.

--qr draws address and key of this terminal, never the code, for a camera.
--json prints one line of JSON for each event, for another screen: see
docs/replace.md.

It ends with exit code 0 when the new terminal has the keys, 4 after too many wrong
codes, 5 when nobody came in time or the copy broke off, 7 for a code of your own
that is easy to guess, 130 after Ctrl-C.`

func offerVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "offer",
		Short:   "On the old terminal: show a code and wait for the new one",
		Long:    offerLong,
		Example: "  kagimori keycopy offer\n  kagimori keycopy offer --qr\n  kagimori keycopy offer --credential cr-7q3mz5xk2a --credential cr-b4w9tn6rjd",
	}
	flags := cmd.Flags()
	ids := flags.StringArray("credential", nil, "offer only the credential with this `ID` (may be repeated)")
	move := flags.Bool("move", false, "move the keys: this terminal gives up also those that may be copied")
	typed := flags.Bool("typed", false, "type a code of your own on both terminals")
	drawn := flags.Bool("qr", false, "draw address and key of this terminal as a QR code")
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
		in := agent.OfferParams{Credentials: names(*ids), ReplyKey: reader.Key(), Move: *move}
		if err := ask(cmd, c, &in, *typed); err != nil {
			return err
		}
		show := newDisplay(cmd)
		defer show.end()
		show.qr = *drawn
		err = c.Stream(cmd.Context(), "com.kagimori.agent.KeycopyOffer", in, func(raw json.RawMessage) error {
			var ev agent.KeycopyEvent
			if err := json.Unmarshal(raw, &ev); err != nil {
				return err
			}
			if ev.Step == "armed" {
				return show.armed(reader, ev)
			}
			return show.happened(ev)
		})
		if cmd.Context().Err() != nil {
			show.end()
			return disarm(verb.Socket(cmd))
		}
		return err
	}
	return withIDs(cmd)
}

// ask asks for the PIN, if this terminal has one, and for the operator's own
// code, if he is to make it.
func ask(cmd *cobra.Command, c *control.Client, in *agent.OfferParams, typed bool) error {
	var s agent.Status
	err := c.Call(cmd.Context(), "com.kagimori.agent.Status", nil, &s)
	if err != nil || s.Keycopy == nil {
		return err // the offer says why there is none
	}
	if s.Keycopy.PIN {
		if in.PIN, err = sealed(cmd, c, agent.LabelPIN, "PIN: "); err != nil {
			return err
		}
	}
	switch s.Keycopy.Codes {
	case keycopy.CodesTyped:
		typed = true
	case keycopy.CodesGenerated:
		if typed {
			return control.Problemf(control.Conflict, "leave --typed out; or have codes = \"either\" set in the [keycopy] section of both terminals", "this terminal takes no operator codes but those that it makes")
		}
	}
	if !typed {
		return nil
	}
	code, err := verb.ReadSecret(cmd, "Operator code of your own (8, or 10 to 16, digits): ")
	if err != nil {
		return err
	}
	defer code.Wipe()
	if verb.Asks(cmd) {
		again, err := verb.ReadSecret(cmd, "Again: ")
		if err != nil {
			return err
		}
		defer again.Wipe()
		if !bytes.Equal(code, again) {
			return control.Problemf(control.BadInput, "type the same code twice", "the two codes differ; this cost nothing")
		}
	}
	in.Code, err = c.Seal(cmd.Context(), agent.LabelCode, code)
	return err
}

// sealed reads a secret and seals it for the daemon.
func sealed(cmd *cobra.Command, c *control.Client, label, prompt string) (string, error) {
	var secret transport.Sensitive
	secret, err := verb.ReadSecret(cmd, prompt)
	if err != nil {
		return "", err
	}
	defer secret.Wipe()
	return c.Seal(cmd.Context(), label, secret)
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
