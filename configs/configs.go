// Package configs reads the configuration files of the three programs: TOML,
// strict, each key documented and with its default in agent.toml, gate.toml
// and server.toml, which are embedded and are the default. START HERE:
//
//   - agent.go, gate.go, server.go: what can be set, one struct a program
//   - shared.go: the sections that they have in common
//   - load.go: reading, with file, line and key in every error
//
// It imports nothing else of this house.
package configs

import "embed"

// Files holds agent.toml, gate.toml and server.toml: the documented defaults.
//
//go:embed agent.toml gate.toml server.toml
var Files embed.FS

// Where a program looks when nobody names a file. When it is missing there,
// the defaults hold.
const (
	AgentPath  = "/etc/kagimori/agent.toml"
	GatePath   = "/etc/kagimori-gate/gate.toml"
	ServerPath = "/etc/kagimori-server/server.toml"
)

// MaxFile bounds a configuration file, in bytes.
const MaxFile = 1 << 20
