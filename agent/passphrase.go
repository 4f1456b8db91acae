package agent

// The passphrase of key storage: it waits for one at its start (ErrPassphrase)
// until somebody gives it over the control socket, and an administrator sets or
// removes it while key storage is open.

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport/control"
)

// LabelStorage is the label of key storage's passphrase on the control socket.
const LabelStorage = "key storage passphrase"

// UnlockParams: Passphrase is sealed under LabelStorage.
type UnlockParams struct {
	Passphrase string `json:"passphrase"`
}

// UnlockReply says whether key storage was locked.
type UnlockReply struct {
	Unlocked bool `json:"unlocked"` // false: it was open already
}

// PassphraseReply says what is now.
type PassphraseReply struct {
	Set   bool     `json:"set"`
	Notes []string `json:"notes,omitempty"` // what that protects, and what not
}

// A PassphraseDesk is where somebody lays down a passphrase and key storage asks
// for it. Each is tried once.
type PassphraseDesk struct {
	mu    sync.Mutex
	given *hsm.Secret // guarded by mu; nil: none
}

// Ask is open.Config.Ask: the passphrase that lies there, else hsm.ErrPassphrase.
func (d *PassphraseDesk) Ask(context.Context) (*hsm.Secret, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.given == nil {
		return nil, hsm.ErrPassphrase
	}
	p := d.given
	d.given = nil
	return p, nil
}

// lay takes a passphrase over; what lay there goes. Nil clears the desk.
func (d *PassphraseDesk) lay(p *hsm.Secret) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.given.Wipe()
	d.given = p
}

// unlockStorage gives key storage its passphrase, which it takes over, and
// waits until that was tried. It returns false when nothing was locked.
func (a *Agent) unlockStorage(ctx context.Context, p *hsm.Secret) (bool, error) {
	a.unlocks.Lock() // one at a time, so that each learns of his own
	defer a.unlocks.Unlock()
	if _, err := a.open(); err == nil || a.cfg.Passphrase == nil || !errors.Is(err, hsm.ErrPassphrase) {
		p.Wipe()
		return false, err
	}
	a.cfg.Passphrase.lay(p)
	err := a.try(ctx, Remedy{})
	a.cfg.Passphrase.lay(nil)
	if errors.Is(err, hsm.ErrWrongPassphrase) {
		a.log.Warn("wrong passphrase for key storage")
		return false, control.Problemf(control.Refused, "type it as it was set; mind the keyboard's layout", "%w", hsm.ErrWrongPassphrase)
	}
	if err != nil {
		return false, err
	}
	a.log.Info("key storage unlocked by passphrase")
	return true, nil
}

// setPassphrase sets another passphrase, or removes it for nil.
func (a *Agent) setPassphrase(ctx context.Context, p *hsm.Secret) (*PassphraseReply, error) {
	// One at a time with all else that takes Argon2id's memory.
	a.intake.Lock()
	defer a.intake.Unlock()
	v, err := a.open()
	if err != nil {
		return nil, err
	}
	guard, ok := v.module.(hsm.Passphrases)
	if !ok {
		return nil, control.Problemf(control.Conflict, "bind the store to the boot of this machine instead: "+a.cfg.Program+" boot --help",
			"key storage %q keeps its keys without a passphrase", v.module.Level())
	}
	if p != nil {
		if err := hsm.CheckPassphrase(p); err != nil {
			return nil, control.Problemf(control.BadInput, fmt.Sprintf("choose one of %d to %d bytes; several words are easier than signs", hsm.MinPassphrase, hsm.MaxPassphrase), "%w", err)
		}
	}
	if err := guard.SetPassphrase(ctx, p); err != nil {
		problem, _ := a.explain(err)
		problem.Next += "; then do this again before the next start, which may ask for the new passphrase or for the old one"
		return nil, problem
	}
	reply := &PassphraseReply{Set: guard.HasPassphrase()}
	what := "removed"
	if reply.Set {
		what = "set"
	}
	a.log.Info("passphrase of key storage changed", "now", what)
	if err := v.logged(audit.Passphrase, "", "%s", what); err != nil {
		return nil, err
	}
	if h, err := v.module.Health(ctx); err == nil {
		reply.Notes = h.Notes
	}
	a.changed()
	return reply, nil
}

// passphraseMethods are on the control socket of every program with an agent.
func (a *Agent) passphraseMethods() []control.Method {
	return []control.Method{
		{
			Name: "Unlock", Class: control.Operate, In: UnlockParams{}, Out: UnlockReply{}, Handle: a.handleUnlock,
			Doc: "Gives key storage the passphrase that it waits for, sealed under the label \"key storage passphrase\".",
		},
		{
			Name: "PassphraseSet", Class: control.Admin, In: UnlockParams{}, Out: PassphraseReply{}, Handle: a.handlePassphraseSet,
			Doc: "Sets the passphrase that key storage waits for after each start, or another one.",
		},
		{
			Name: "PassphraseRemove", Class: control.Admin, Out: PassphraseReply{}, Handle: a.handlePassphraseRemove,
			Doc: "Removes it: key storage opens by itself again.",
		},
	}
}

// typed unseals a passphrase of a call.
func typed(call *control.Call) (*hsm.Secret, error) {
	var in UnlockParams
	if err := call.Params(&in); err != nil {
		return nil, err
	}
	p, err := call.Unseal(LabelStorage, in.Passphrase)
	if err != nil {
		return nil, err
	}
	return hsm.NewSecret(p), nil
}

func (a *Agent) handleUnlock(ctx context.Context, call *control.Call) error {
	p, err := typed(call)
	if err != nil {
		return err
	}
	unlocked, err := a.unlockStorage(ctx, p)
	if err != nil {
		return err
	}
	return call.Reply(UnlockReply{Unlocked: unlocked})
}

func (a *Agent) handlePassphraseSet(ctx context.Context, call *control.Call) error {
	p, err := typed(call)
	if err != nil {
		return err
	}
	defer p.Wipe()
	reply, err := a.setPassphrase(ctx, p)
	if err != nil {
		return err
	}
	return call.Reply(reply)
}

func (a *Agent) handlePassphraseRemove(ctx context.Context, call *control.Call) error {
	reply, err := a.setPassphrase(ctx, nil)
	if err != nil {
		return err
	}
	return call.Reply(reply)
}
