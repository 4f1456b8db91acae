// Command kagimori keeps the keys of a terminal: `kagimori run` is the daemon,
// every other verb asks it over its control socket. START HERE, then run.go;
// each noun has a file of verbs. What they do is in package agent.
package main

import (
	"context"
	"os"
	"runtime/debug"
	"time"

	"github.com/kagimori/kagimori/transport/control/verb"
)

// built is set by the linker (-X main.built=2026-01-02T15:04:05Z).
var built string

const long = `Keeps the keys of this terminal: its identity, and the credentials with which
local programs reach services. The daemon, "kagimori run", holds them; the
other verbs ask it.

A new device takes in a bundle (provision). A terminal that is replaced gives
its credentials to the new one (keycopy). Programs use them through relays.`

func main() { os.Exit(program().Execute(context.Background())) }

func program() *verb.Frame {
	f := verb.New("kagimori", "Keeper of this terminal's keys", long, verb.Version)
	f.Add(runVerb(), provisionVerb(), statusVerb(), credentialVerbs(), keycopyVerbs(), relayVerbs())
	return f
}

// builtAt is when this program was built, as far as it knows: a terminal's
// clock is never before that.
func builtAt() time.Time {
	if t, err := time.Parse(time.RFC3339, built); err == nil {
		return t
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if t, err := time.Parse(time.RFC3339, s.Value); err == nil && s.Key == "vcs.time" {
				return t
			}
		}
	}
	return time.Time{}
}
