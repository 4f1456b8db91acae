package keycopy

// Target is the new terminal's end: an operator code that was typed, and what
// to do with the credentials. Each connection is a targetRun (target_run.go).

import (
	"context"
	"crypto"

	"github.com/kagimori/kagimori/transport"
)

// TargetConfig is what a Target works with.
type TargetConfig struct {
	End
	Code SecurityCode
	// Select names the credentials wanted; empty means all. At most
	// transport.MaxKeycopySelect.
	Select []transport.Name
	// Identity is the key of the identity certificate shown in TLS, and signs
	// the receipt; nil without one.
	Identity crypto.Signer
	// Install stores the records in one durable step, or none of them, and has
	// no effect on those that are there already as they are. The secrets are
	// wiped when it returns.
	Install func(ctx context.Context, t *Transaction, records []transport.CredentialRecord) error
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
