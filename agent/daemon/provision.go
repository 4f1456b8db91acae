package daemon

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

// Provision is the verb that takes in a bundle. method is the control method
// behind it; became says what a bundle has made of this device.
func Provision(long, example, method string, became func(*agent.ProvisionResult) (device, what string)) *cobra.Command {
	return &cobra.Command{
		Use: "provision BUNDLE", Short: "Take in a provisioning bundle", Long: long, Example: example,
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
			if err := c.Call(cmd.Context(), method, in, &out); err != nil {
				return err
			}
			return verb.Print(cmd, out, func(w io.Writer) {
				device, what := became(&out)
				provisioned(w, args[0], &out, device, what)
			})
		},
	}
}

// readBundle reads a file that is no larger than a bundle can be.
func readBundle(path string) ([]byte, error) {
	const next = "name the bundle file that the management server made"
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrPermission) {
		return nil, control.Problemf(control.BadInput, "run it with sudo, or as the user whose file it is", "%w", err)
	}
	if err != nil {
		return nil, control.Problemf(control.BadInput, next, "%w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, transport.MaxBundle+1))
	if err != nil {
		return nil, control.Problemf(control.BadInput, "copy the file again from where it was made", "read bundle: %w", err)
	}
	if len(data) > transport.MaxBundle {
		return nil, control.Problemf(control.BadInput, next, "%s is too large for a bundle", path)
	}
	return data, nil
}

func provisioned(w io.Writer, path string, r *agent.ProvisionResult, device, what string) {
	switch r.Outcome {
	case agent.OutcomeUnchanged:
		fmt.Fprintf(w, "nothing changed: this bundle was taken in before; this %s is %s\n", device, what)
	case agent.OutcomeUpgraded:
		fmt.Fprintf(w, "this spare %s is now %s; the keys it holds stay\n", device, what)
	case agent.OutcomeReplaced:
		fmt.Fprintf(w, "this %s is still %s, with a newer bundle\n", device, what)
	default:
		fmt.Fprintf(w, "this %s is now %s\n", device, what)
	}
	fmt.Fprintf(w, "  next: %s\n", r.Next)
	fmt.Fprintf(w, "  next: delete the bundle, it has done its work: rm %s\n", path)
}
