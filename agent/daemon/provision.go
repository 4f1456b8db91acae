package daemon

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

var bundleFile = sealedFile{"bundle", agent.LabelPassphrase, transport.MaxBundle, "name the bundle file that the management server made"}

// Provision is the verb that takes in a bundle. method is the control method
// behind it; became says what a bundle has made of this device.
func Provision(long, example, method string, became func(*agent.ProvisionResult) (device, what string)) *cobra.Command {
	return &cobra.Command{
		Use: "provision BUNDLE", Short: "Take in a provisioning bundle", Long: long, Example: example,
		RunE: func(cmd *cobra.Command, args []string) error {
			return bundleFile.take(cmd, args[0], func(c *control.Client, file []byte, passphrase string) error {
				var out agent.ProvisionResult
				if err := c.Call(cmd.Context(), method, agent.ProvisionParams{Bundle: file, Passphrase: passphrase}, &out); err != nil {
					return err
				}
				return verb.Print(cmd, out, func(w io.Writer) {
					device, what := became(&out)
					provisioned(w, args[0], &out, device, what)
				})
			})
		},
	}
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
