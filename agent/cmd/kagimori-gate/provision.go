package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

func provisionVerb() *cobra.Command {
	return &cobra.Command{
		Use:   "provision BUNDLE",
		Short: "Take in a provisioning bundle",
		Long: `Takes in a bundle file that the management server made ("kagimori-server gate
add"), and asks for its passphrase. The passphrase is read from the terminal
without echo, or else as one line of standard input.

The same bundle twice changes nothing. A bundle of another deployment, or for
another gate, is refused.`,
		Example: "  kagimori-gate provision maps.bundle",
		RunE: func(cmd *cobra.Command, args []string) error {
			file, err := readBundle(args[0])
			if err != nil {
				return err
			}
			passphrase, err := verb.ReadSecret(cmd, "Passphrase: ")
			if err != nil {
				return err
			}
			defer passphrase.Wipe()
			c, err := verb.Dial(cmd)
			if err != nil {
				return err
			}
			defer c.Close()
			in := agent.ProvisionParams{Bundle: file}
			if in.Passphrase, err = c.Seal(cmd.Context(), agent.LabelPassphrase, passphrase); err != nil {
				return err
			}
			var out agent.ProvisionResult
			if err := c.Call(cmd.Context(), "com.kagimori.gate.Provision", in, &out); err != nil {
				return err
			}
			return verb.Print(cmd, out, func(w io.Writer) { provisioned(w, args[0], &out) })
		},
	}
}

// readBundle reads a file that is no larger than a bundle can be.
func readBundle(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, control.Problemf(control.BadInput, "name the bundle file that the management server made", "%w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, transport.MaxBundle+1))
	if err != nil {
		return nil, control.Problemf(control.BadInput, "copy the file again from where it was made", "read bundle: %w", err)
	}
	if len(data) > transport.MaxBundle {
		return nil, control.Problemf(control.BadInput, "name the bundle file that the management server made", "%s is too large for a bundle", path)
	}
	return data, nil
}

func provisioned(w io.Writer, path string, r *agent.ProvisionResult) {
	what := fmt.Sprintf("%s, which guards service %s of deployment %s", r.Terminal, r.Service, r.Deployment)
	switch r.Outcome {
	case agent.OutcomeUnchanged:
		fmt.Fprintf(w, "nothing changed: this bundle was taken in before; this gate is %s\n", what)
	case agent.OutcomeReplaced:
		fmt.Fprintf(w, "this gate is still %s, with a newer bundle\n", what)
	default:
		fmt.Fprintf(w, "this gate is now %s\n", what)
	}
	fmt.Fprintf(w, "  next: %s\n", r.Next)
	fmt.Fprintf(w, "  next: delete the bundle, it has done its work: rm %s\n", path)
}
