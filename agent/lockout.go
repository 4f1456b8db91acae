package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport/control"
)

// The TPM's guard against guessing, for people with its lockout password. This
// terminal's own keys are exempt from it; it guards PINs, and what other programs
// keep in the chip.

// LabelLockout is the lockout password's on the control socket.
const LabelLockout = "lockout password"

// Bounds of what is set, as TPM 2.0 takes it.
const (
	maxLockoutLimit   = 1 << 16
	maxLockoutSeconds = 1<<32 - 1
)

// LockoutParams: Password is sealed under LabelLockout; nothing means the empty
// one, which a chip has until somebody sets another.
type LockoutParams struct {
	Password string `json:"password,omitempty"`
	Limit    int64  `json:"limit,omitempty"`            // wrong tries until it locks
	Recovery int64  `json:"recovery_seconds,omitempty"` // until one of them is forgotten
	Reset    int64  `json:"reset_seconds,omitempty"`    // that a wrong lockout password locks
}

func (a *Agent) keyStorage(ctx context.Context, call *control.Call) error {
	health, err := a.health(ctx)
	if err != nil {
		return err
	}
	return call.Reply(health)
}

// health asks key storage, also one that does not open.
func (a *Agent) health(ctx context.Context) (hsm.Health, error) {
	return a.looks.health.get(ctx, a.askHealth)
}

func (a *Agent) askHealth(ctx context.Context) (h hsm.Health, err error) {
	v, closed := a.open()
	switch {
	case closed == nil:
		h, err = v.module.Health(ctx)
	case a.cfg.Examine != nil:
		if h, err = a.cfg.Examine(ctx); errors.Is(err, errors.ErrUnsupported) {
			return h, closed
		}
	default:
		return h, closed
	}
	if err != nil {
		problem, _ := a.explain(err)
		return h, problem
	}
	return h, nil
}

func (a *Agent) lockoutSet(ctx context.Context, call *control.Call) error {
	var in LockoutParams
	if err := call.Params(&in); err != nil {
		return err
	}
	if in.Limit < 1 || in.Limit > maxLockoutLimit || in.Recovery < 1 || in.Recovery > maxLockoutSeconds || in.Reset < 1 || in.Reset > maxLockoutSeconds {
		return control.Problemf(control.BadInput, "usual is a limit of 32, recovery after 2h, reset after 24h", "limit %d, recovery %d s, reset %d s: each is at least 1; without them PINs can be guessed", in.Limit, in.Recovery, in.Reset)
	}
	return a.lockout(ctx, call, in.Password, audit.LockoutSet, fmt.Sprintf("limit %d, recovery %d s, reset %d s", in.Limit, in.Recovery, in.Reset), func(m hsm.LockoutSetter, password *hsm.Secret) error {
		return m.SetLockout(ctx, password, uint32(in.Limit), time.Duration(in.Recovery)*time.Second, time.Duration(in.Reset)*time.Second)
	})
}

func (a *Agent) lockoutReset(ctx context.Context, call *control.Call) error {
	var in LockoutParams
	if err := call.Params(&in); err != nil {
		return err
	}
	return a.lockout(ctx, call, in.Password, audit.LockoutReset, "", func(m hsm.LockoutSetter, password *hsm.Secret) error {
		return m.ResetLockout(ctx, password)
	})
}

// lockout does something with the lockout password, once, and logs it.
func (a *Agent) lockout(ctx context.Context, call *control.Call, sealed string, kind audit.Kind, detail string, do func(hsm.LockoutSetter, *hsm.Secret) error) error {
	v, err := a.open()
	if err != nil {
		return err
	}
	m, ok := v.module.(hsm.LockoutSetter)
	if !ok {
		return control.Problemf(control.Conflict, "only a TPM has one", "key storage of level %s has no guard against guessing to set", v.module.Level())
	}
	password := hsm.NewSecret(nil)
	if sealed != "" {
		typed, err := call.Unseal(LabelLockout, sealed)
		if err != nil {
			return err
		}
		password = hsm.NewSecret(typed)
	}
	defer password.Wipe()
	// A wrong password locks the reset for hours: one that cannot be right is not tried.
	if h, err := v.module.Health(ctx); err == nil && h.Chip != nil && h.Chip.LockoutPassword != (password.Len() > 0) {
		if h.Chip.LockoutPassword {
			return control.Problemf(control.Refused, "type it at the prompt, without --no-password", "this TPM has a lockout password; nothing was tried")
		}
		return control.Problemf(control.Conflict, "run it again with --no-password", "nobody has set a lockout password in this TPM; nothing was tried")
	}
	switch err := do(m, password); {
	case errors.Is(err, hsm.ErrLockoutPassword):
		return control.Problemf(control.Refused, "find the right one out before you try again: another wrong one locks it for longer; a TPM that nobody has the password of can be cleared in the firmware's setup", "%w; nothing was changed, and the TPM takes no lockout password for a while", err)
	case errors.Is(err, hsm.ErrLockout):
		return control.Problemf(control.Refused, "wait until that is over: "+a.cfg.Program+" tpm show says how long it may take", "the lockout password itself is locked after a wrong one: %w", err)
	case err != nil:
		problem, _ := a.explain(err)
		return problem
	}
	v.done(kind, "", "%s", detail)
	return nil
}
