// Command kagimori-gate admits terminals to a service by their credentials:
// `kagimori-gate run` is the daemon, every other verb asks it over its control
// socket. START HERE, then run.go. What it does is in package agent/gate.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/kagimori/kagimori/agent/daemon"
	"github.com/kagimori/kagimori/configs"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport/control/verb"
)

// built is set by the linker (-X main.built=2026-01-02T15:04:05Z).
var built string

const long = `Stands in front of a service and admits terminals to it by their credentials.
The daemon, "kagimori-gate run", takes TLS connections, checks the certificate
of each terminal, and passes its requests on with two headers that say who it
is: Kagimori-Credential and Kagimori-Subject. No terminal can set them itself.

A new gate takes in the bundle that "kagimori-server gate add" made (provision).
Then it gets its own certificate and the list of revoked credentials by itself.`

func main() {
	if err := hsm.NoCores(); err != nil { // verbs see codes and passphrases, too
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(program().Execute(context.Background()))
}

func program() *verb.Frame {
	f := verb.New("kagimori-gate", "Admits terminals to a service", long, verb.Version)
	f.Add(runVerb(), provisionVerb(), statusVerb())
	shared := daemon.Program{
		Name: "kagimori-gate", Interface: "com.kagimori.gate", Built: daemon.Built(built),
		Load: func(path string) (configs.HSM, string, error) {
			var cfg configs.Gate
			err := configs.Load(path, &cfg)
			return cfg.HSM, cfg.StateDir, err
		},
	}
	f.Add(daemon.CheckVerb("kagimori-gate"), shared.Doctor(), shared.Audit(), shared.Lockout(), shared.Unlock(), shared.Passphrase(), shared.Recovery(), shared.Boot())
	return f
}
