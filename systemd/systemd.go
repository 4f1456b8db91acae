// Package systemd is how the daemons live under systemd: they say when they
// are ready, prove that their loops turn, take over sockets, and carry their
// own units. Outside systemd all of it is quietly nothing. START HERE:
//
//   - notify.go: READY, STATUS, STOPPING
//   - watchdog.go: WATCHDOG, only when every loop has beaten
//   - activation.go: sockets that systemd opened
//   - units/: the units, what makes the user, and what opens the TPM to it
//
// It imports nothing else of this house.
package systemd

import "embed"

// Units holds the unit files, in units/.
//
//go:embed units
var Units embed.FS
