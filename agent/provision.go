package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// Taking in a bundle (DESIGN D8, req: C1, L3). The security code becomes a key
// inside hsm and is gone from memory afterwards; the common key is sealed.

// ProvisionResult says what a bundle made of this device.
type ProvisionResult struct {
	Outcome    Outcome              `json:"outcome"`
	Kind       transport.BundleKind `json:"kind"`
	Deployment transport.Name       `json:"deployment"`
	Terminal   transport.Name       `json:"terminal,omitempty"`
	Service    transport.Name       `json:"service,omitempty"`
	Group      transport.Name       `json:"group"`
	Servers    []string             `json:"servers,omitempty"`
	Device     transport.DeviceID   `json:"device"`
	Next       string               `json:"next"`
}

// Provision takes in a bundle file. It either does all of it, durably, or
// nothing. file and passphrase stay the caller's to wipe.
func (a *Agent) Provision(ctx context.Context, file []byte, passphrase transport.Sensitive) (*ProvisionResult, error) {
	// One at a time: the rules look at what is there, and Argon2id takes memory.
	a.intake.Lock()
	defer a.intake.Unlock()
	v, err := a.open()
	if err != nil {
		return nil, err
	}
	b, err := transport.OpenBundle(file, passphrase)
	debug.FreeOSMemory() // Argon2id took more than all the rest will ever need
	if err != nil {
		next := "copy the file again from where it was made"
		if errors.Is(err, transport.ErrPassphrase) {
			next = "type the passphrase as it was shown when the bundle was made"
		}
		return nil, control.Problemf(control.BadInput, next, "%w", err)
	}
	defer b.Wipe()
	return a.take(ctx, v, b)
}

// take is Provision from the opened bundle on. intake is held.
func (a *Agent) take(ctx context.Context, v *vault, b *transport.Bundle) (*ProvisionResult, error) {
	current, err := v.self()
	if err != nil {
		return nil, err
	}
	defer current.wipe()
	next, outcome, err := admit(current, b, a.cfg.Program, a.cfg.Bundles)
	if err != nil {
		return nil, err
	}
	defer next.wipe()
	if outcome != OutcomeUnchanged {
		if err := a.takeIn(ctx, v, b, next, outcome); err != nil {
			return nil, err
		}
		a.log.Info("provisioned", "outcome", string(outcome), "deployment", next.Deployment, "terminal", next.Terminal, "group", next.Group, "epoch", next.Epoch)
	}
	return &ProvisionResult{
		Outcome: outcome, Kind: next.Kind, Deployment: next.Deployment, Terminal: next.Terminal, Service: next.Service,
		Group: next.Group, Servers: next.Servers, Device: v.device, Next: a.afterwards(next, outcome),
	}, nil
}

// takeIn makes what admit decided true, in one transaction.
func (a *Agent) takeIn(ctx context.Context, v *vault, b *transport.Bundle, next *terminalRecord, outcome Outcome) error {
	blob, err := bundleCode(ctx, v, b)
	if err != nil {
		return err
	}
	a.clock.Raise(b.IssuedAt())
	err = v.update(func(tx *store.Tx) error {
		if err := addCode(tx, next, heldCode{b.Epoch, blob}); err != nil {
			return err
		}
		if err := tx.Put(bucketTerminal, keySelf, next); err != nil {
			return err
		}
		if err := v.audit(tx, audit.Provisioned, cmp.Or(next.Terminal, "spare"), "%s, deployment %s, group %s", outcome, next.Deployment, next.Group); err != nil {
			return err
		}
		if outcome != OutcomeReplaced {
			return nil
		}
		// A newer bundle means another common key: enroll with that. What the
		// server knew to be here may have ended with the old one: tell it all.
		if err := tx.Delete(bucketIdentity, keyChain); err != nil {
			return err
		}
		return v.claimAll(tx)
	})
	if err != nil {
		problem, _ := storageProblem(fmt.Errorf("keep the bundle: %w", err))
		problem.Next += "; nothing was changed"
		return problem
	}
	return nil
}

// bundleCode has key storage take in the security code of a bundle. A bundle without
// one is for a terminal that must prove a TPM: then there is none, and it is
// refused where that proof will never come.
func bundleCode(ctx context.Context, v *vault, b *transport.Bundle) (hsm.Blob, error) {
	if b.Attest {
		if _, ok := v.module.(hsm.Attester); !ok {
			return nil, control.Problemf(control.Conflict,
				"if this machine has a TPM 2.0: stop the daemon, remove its state directory, set kind = \"tpm\" in [hsm], start it and provision again; "+
					"else have an administrator remove terminal "+string(b.Terminal)+" and add it without --attest",
				"this bundle is for a terminal that must prove a TPM, and this one keeps its keys in %q", v.module.Level())
		}
		return nil, nil
	}
	code := hsm.NewSecret(append([]byte(nil), b.SecurityCode...))
	defer code.Wipe()
	b.SecurityCode.Wipe()
	blob, err := v.module.ImportMAC(ctx, code)
	if err != nil {
		problem, _ := storageProblem(err)
		return nil, fmt.Errorf("take in the security code: %w", problem)
	}
	return blob, nil
}

// afterwards says what happens next, or what to do.
func (a *Agent) afterwards(t *terminalRecord, outcome Outcome) string {
	switch {
	case t.spare():
		return "this device has no name yet and needs no server; to take over the keys of the terminal that it replaces, run there `kagimori keycopy offer`, then here `kagimori keycopy fetch HOST:PORT`"
	case outcome == OutcomeUnchanged:
		return fmt.Sprintf("nothing to do; how it is says: %s status", a.cfg.Program)
	}
	return fmt.Sprintf("the daemon now enrolls by itself at %s; watch it with: %s status", t.Servers[0], a.cfg.Program)
}
