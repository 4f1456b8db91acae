package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/agent/daemon"
	"github.com/kagimori/kagimori/transport"
)

func provisionVerb() *cobra.Command {
	return daemon.Provision(`Takes in a bundle file that the management server made ("kagimori-server
terminal add" or "spare add"), and asks for its passphrase. The passphrase is
read from the terminal without echo, or else as one line of standard input.

A terminal bundle after a spare one of the same deployment is an upgrade. The
same bundle twice changes nothing. A bundle of another deployment, or for
another terminal, is refused.`, "  kagimori provision nav-001.bundle", "com.kagimori.agent.Provision",
		func(r *agent.ProvisionResult) (device, what string) {
			if r.Kind == transport.BundleSpare {
				return "device", fmt.Sprintf("a spare of deployment %s, group %s", r.Deployment, r.Group)
			}
			return "device", fmt.Sprintf("terminal %s of deployment %s", r.Terminal, r.Deployment)
		})
}
