package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

// typings is how often a person is asked for a code that was mistyped.
const typings = 5

func fetchVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "fetch [HOST:PORT]",
		Short: "On the new terminal: copy the keys that the old one offers",
		Long: `Asks for the operator code that the old terminal shows, and copies its
credentials to this one. The code is read from the terminal without echo, or
else as one line of standard input; it may be typed in groups and in full width.
Whatever stands in the QR code of "kagimori keycopy offer --qr" may be given
instead of HOST:PORT: then this terminal also makes sure that it is that one.
Without either it looks on the local networks for a terminal that offers keys and
announces it (announce in [keycopy], off by default), and asks before it dials.

When it says that you may unplug the old terminal, you may; before that, leave it
on. If the connection breaks or the power goes after the codes matched, this
terminal comes back to the old one by itself: no code is needed then.

--copy-only takes what is copied and leaves at the old terminal what would move.
--json prints one line of JSON for each event, for another screen: see
docs/replace.md.

It ends with exit code 0 when the keys are here, 4 when the codes do not match, 5
when the old terminal was not reached or the copy broke off, 7 when a digit was
mistyped (that cost nothing), 130 after Ctrl-C.`,
		Example: "  kagimori keycopy fetch 192.0.2.7:8885\n  kagimori keycopy fetch 'kagimori-keycopy:?a=192.0.2.7:8885&k=LHDhK3oGRvkiefQnx7OOczTY5TizTWksw6Rl-AV_9gw'",
	}
	ids := cmd.Flags().StringArray("credential", nil, "copy only the credential with this `ID` (may be repeated)")
	mode := cmd.Flags().String("mode", "", "propose this `MODE` (pake, kek, direct); by default the first that is enabled")
	oneOf(cmd, "mode", "pake", "kek", "direct")
	copyOnly := cmd.Flags().Bool("copy-only", false, "leave what would move at the old terminal")
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 {
			if _, _, err := net.SplitHostPort(args[0]); err != nil && !keycopy.IsInvitation(args[0]) {
				return control.Problemf(control.Usage, "give it as the old terminal shows it, for example 192.0.2.7:8885", "%q is not HOST:PORT", args[0])
			}
		}
		c, err := verb.Dial(cmd)
		if err != nil {
			return err
		}
		defer c.Close()
		if len(args) == 0 {
			found, err := find(cmd, c)
			if err != nil {
				return err
			}
			args = []string{found}
		}
		in := agent.FetchParams{Address: args[0], Credentials: names(*ids), CopyOnly: *copyOnly, Mode: transport.KeycopyMode(*mode)}
		for try := 1; ; try++ {
			err := fetch(cmd, c, in)
			// A mistyped code costs nothing: a person may type it again.
			if try == typings || !errors.Is(err, &control.Problem{Kind: control.BadInput}) || !verb.Asks(cmd) {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%v\n", err)
		}
	}
	return cmd
}

// fetch asks for the code and makes one attempt with it.
func fetch(cmd *cobra.Command, c *control.Client, in agent.FetchParams) (err error) {
	if in.Code, err = sealed(cmd, c, agent.LabelCode, "Operator code: "); err != nil {
		return err
	}
	show := newDisplay(cmd)
	defer show.end()
	return c.Stream(cmd.Context(), "com.kagimori.agent.KeycopyFetch", in, func(raw json.RawMessage) error {
		var ev agent.KeycopyEvent
		if err := json.Unmarshal(raw, &ev); err != nil {
			return err
		}
		return show.happened(ev)
	})
}

// find looks for an offer that is announced. One that answers may be anybody's,
// so a person says whether it is the one.
func find(cmd *cobra.Command, c *control.Client) (string, error) {
	var out agent.FindReply
	if err := c.Call(cmd.Context(), "com.kagimori.agent.KeycopyFind", nil, &out); err != nil {
		return "", err
	}
	const next = "give the address that the old terminal shows: kagimori keycopy fetch HOST:PORT"
	switch len(out.Addresses) {
	case 0:
		return "", control.Problemf(control.NotFound, next, "no terminal on the local networks announces an offer")
	case 1:
		if !verb.Asks(cmd) {
			return "", control.Problemf(control.Usage, next, "a terminal at %s offers keys, and nobody is here to say whether it is the right one", out.Addresses[0])
		}
		return out.Addresses[0], verb.Confirm(cmd, fmt.Sprintf("A terminal at %s offers keys. Compare that with the address on its display: anybody can say so.", out.Addresses[0]))
	}
	return "", control.Problemf(control.Conflict, next, "several terminals announce an offer: %s", strings.Join(out.Addresses, ", "))
}
