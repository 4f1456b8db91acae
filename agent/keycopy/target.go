package keycopy

// Target is the new terminal's end: an operator code that was typed, and what
// to do with the credentials. Each connection is a targetRun (target_run.go).
// Once the codes have matched it is the journal that counts: a transaction is
// resumed without a Target.

import (
	"crypto"

	"github.com/kagimori/kagimori/transport"
)

// TargetConfig is what a Target works with.
type TargetConfig struct {
	End
	Code SecurityCode
	// Mode is the one to propose; empty is the first that this end allows.
	Mode transport.KeycopyMode
	// Select names the credentials wanted; empty means all. At most
	// transport.MaxKeycopySelect.
	Select []transport.Name
	// Identity is the key of the identity certificate shown in TLS, and signs
	// RECEIPT and ACTIVATED; nil without one.
	Identity crypto.Signer
	// Want is TransferCopy if nothing that moves is to be taken; by default what
	// happens is each credential's policy.
	Want transport.Transfer
	// Parent is where keys that live in a chip may go; nil without a chip.
	Parent  *transport.KeycopyParent
	Journal Stager
}

func (c *TargetConfig) want() transport.Transfer {
	if c.Want == "" {
		return transport.TransferMove
	}
	return c.Want
}

// A Target serves one Fetch at a time.
type Target struct {
	cfg  TargetConfig
	code *OperatorCode
}

// NewTarget takes code over. Wipe the Target when done with it.
func NewTarget(cfg TargetConfig, code *OperatorCode) *Target {
	return &Target{cfg: cfg, code: code}
}

// Usable tells whether another Fetch may be tried with this code: the one
// before failed without having used the code up.
func (t *Target) Usable() bool { return t.code.Remaining(t.cfg.Clock()) > 0 }

// Wipe destroys the code.
func (t *Target) Wipe() { t.code.Wipe() }
