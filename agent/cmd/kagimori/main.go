// Command kagimori keeps the keys of a terminal: `kagimori run` is the daemon,
// every other verb asks it over its control socket. START HERE, then run.go;
// each noun has a file of verbs. What they do is in package agent.
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

const long = `Keeps the keys of this terminal: its identity, and the credentials with which
local programs reach services. The daemon, "kagimori run", holds them; the
other verbs ask it.

A new device takes in a bundle (provision). A terminal that is replaced gives
its credentials to the new one (keycopy). Programs use them through relays.`

func main() {
	if err := hsm.NoCores(); err != nil { // verbs see codes and passphrases, too
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(program().Execute(context.Background()))
}

func program() *verb.Frame {
	f := verb.New("kagimori", "Keeper of this terminal's keys", long, verb.Version)
	f.Add(runVerb(), provisionVerb(), statusVerb(), credentialVerbs(), keycopyVerbs(), relayVerbs(), pinVerbs(), chipVerbs())
	shared := daemon.Program{
		Name: "kagimori", Interface: "com.kagimori.agent", Built: daemon.Built(built),
		Load: func(path string) (configs.HSM, string, error) {
			var cfg configs.Agent
			err := configs.Load(path, &cfg)
			return cfg.HSM, cfg.StateDir, err
		},
	}
	f.Add(daemon.CheckVerb("kagimori"), shared.Doctor(), shared.Audit(), shared.Lockout(), shared.Unlock(), shared.Passphrase(), shared.Recovery(), shared.Boot())
	return f
}
