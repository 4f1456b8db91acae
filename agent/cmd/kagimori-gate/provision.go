package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/agent/daemon"
)

func provisionVerb() *cobra.Command {
	return daemon.Provision(`Takes in a bundle file that the management server made ("kagimori-server gate
add"), and asks for its passphrase. The passphrase is read from the terminal
without echo, or else as one line of standard input.

The same bundle twice changes nothing. A bundle of another deployment, or for
another gate, is refused.`, "  kagimori-gate provision maps.bundle", "com.kagimori.gate.Provision",
		func(r *agent.ProvisionResult) (device, what string) {
			return "gate", fmt.Sprintf("%s, which guards service %s of deployment %s", r.Terminal, r.Service, r.Deployment)
		})
}
