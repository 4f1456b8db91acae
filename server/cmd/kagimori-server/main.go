// Command kagimori-server is the management server. `init` makes a deployment,
// `run` is the daemon, every other verb asks it over its control socket. START
// HERE, then run.go; each noun has a file of verbs. What they do is in package
// server.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/server"
	"github.com/kagimori/kagimori/transport/control/verb"
)

const long = `Manages the terminals of one deployment: who they are, which credentials they
hold for which services, and what they are told to do. The daemon,
"kagimori-server run", does it; the other verbs ask it.

A deployment begins with init. A service gets a gate (gate add), a terminal its
bundle (terminal add), and then what it needs (credential issue). Replacement
boxes take spare bundles (spare add).`

func main() {
	if err := hsm.NoCores(); err != nil { // verbs see codes and passphrases, too
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(program().Execute(context.Background()))
}

func program() *verb.Frame {
	f := verb.New("kagimori-server", "Management server of a fleet of terminals", long, verb.Version)
	f.Add(initVerb(), runVerb(), terminalVerbs(), spareVerbs(), gateVerbs(), groupVerbs(), credentialVerbs(), keycopyVerbs(), recoveryVerbs(), bootVerbs(), chipVerbs())
	return f
}

// ask calls one method of the running server.
func ask(cmd *cobra.Command, method string, in, out any) error {
	c, err := verb.Dial(cmd)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Call(cmd.Context(), server.Interface+"."+method, in, out)
}
