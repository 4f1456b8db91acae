package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// The PIN of this terminal. It stands before what a person does at the old
// terminal of a key copy, and before nothing that the daemon does by itself. Key
// storage judges it and counts wrong ones.

const (
	blobPIN = "pin" // hsm.PINs: a secret that opens under the PIN
	// pinSecret is its length in bytes. Nothing uses what is in it: that it opens
	// is the answer.
	pinSecret = 32
)

// LabelPIN is a PIN's on the control socket.
const LabelPIN = "pin"

// PINParams: PIN is sealed under LabelPIN.
type PINParams struct {
	PIN string `json:"pin"`
}

// pinMethods set and clear it.
func (a *Agent) pinMethods() []control.Method {
	return []control.Method{
		{
			Name: "PINSet", Class: control.Admin, In: PINParams{}, Handle: a.pinSet,
			Doc: "Sets the PIN that KeycopyOffer asks for, or another one. It is sealed under the label \"pin\".",
		},
		{
			Name: "PINClear", Class: control.Admin, Handle: func(context.Context, *control.Call) error { return a.pinClear() },
			Doc: "Takes the PIN away.",
		},
	}
}

// pinBlob is nil while no PIN is set.
func (v *vault) pinBlob() (blob hsm.Blob, err error) {
	err = v.store.View(func(tx *store.Tx) error {
		blob = tx.Blob(blobPIN)
		return nil
	})
	return blob, err
}

func (a *Agent) pinSet(ctx context.Context, call *control.Call) error {
	var in PINParams
	if err := call.Params(&in); err != nil {
		return err
	}
	v, err := a.open()
	if err != nil {
		return err
	}
	typed, err := call.Unseal(LabelPIN, in.PIN)
	if err != nil {
		return err
	}
	return v.setPIN(ctx, typed)
}

// setPIN wipes typed.
func (v *vault) setPIN(ctx context.Context, typed transport.Sensitive) error {
	pin := hsm.NewSecret(typed)
	defer pin.Wipe()
	if err := hsm.CheckPIN(pin); err != nil {
		return control.Problemf(control.BadInput, "choose another", "%w", err)
	}
	secret := hsm.RandomSecret(pinSecret)
	defer secret.Wipe()
	blob, err := v.module.SealPIN(ctx, secret, pin)
	if err != nil {
		problem, _ := storageProblem(err)
		return problem
	}
	return v.update(func(tx *store.Tx) error {
		return errors.Join(tx.PutBlob(blobPIN, blob), v.audit(tx, audit.PINSet, "", ""))
	})
}

func (a *Agent) pinClear() error {
	v, err := a.open()
	if err != nil {
		return err
	}
	return v.update(func(tx *store.Tx) error {
		if tx.Blob(blobPIN) == nil {
			return control.Problemf(control.NotFound, "nothing to do", "no PIN is set")
		}
		return errors.Join(tx.DeleteBlob(blobPIN), v.audit(tx, audit.PINCleared, "", ""))
	})
}

// judgePIN lets pass whoever knows the PIN, and everybody while none is set.
// typed is nil if none was given; it is wiped.
func (a *Agent) judgePIN(ctx context.Context, v *vault, typed transport.Sensitive) error {
	pin := hsm.NewSecret(typed)
	defer pin.Wipe()
	blob, err := v.pinBlob()
	if err != nil || blob == nil {
		return err
	}
	if pin.Len() == 0 {
		return control.Problemf(control.Refused, "type the PIN of this terminal; a program passes it as `pin`, sealed", "this terminal offers its keys only to who knows its PIN")
	}
	if err := hsm.CheckPIN(pin); err != nil {
		return control.Problemf(control.BadInput, "type it again; this cost no try", "%w", err)
	}
	a.judging(true)
	secret, err := v.module.UnsealPIN(ctx, blob, pin)
	a.judging(false)
	if err == nil {
		secret.Wipe()
		return nil
	}
	return a.pinRefused(ctx, v, err)
}

func (a *Agent) judging(now bool) {
	a.copies.mu.Lock()
	defer a.copies.mu.Unlock()
	a.copies.judging = now
}

// pinRefused says why, and how many tries or how much time is left.
func (a *Agent) pinRefused(ctx context.Context, v *vault, err error) error {
	var guard hsm.Lockout
	if h, err := v.module.Health(ctx); err == nil && h.Chip != nil {
		guard = h.Chip.Lockout
	}
	switch {
	case errors.Is(err, hsm.ErrPIN):
		if err := v.logged(audit.PINWrong, "", ""); err != nil {
			a.log.Error("wrong PIN not logged", "err", err) // it is counted
		}
		if guard.Limit > guard.Count {
			err = fmt.Errorf("%w; wrong ones until it locks: %d", err, guard.Limit-guard.Count)
		}
		return control.Problemf(control.Refused, "type it again; if nobody knows it, an administrator sets another: sudo "+a.cfg.Program+" pin set", "%w", err)
	case errors.Is(err, hsm.ErrLockout):
		if guard.Locked {
			err = fmt.Errorf("%w; one more try is taken in %s", err, guard.Wait().Round(time.Second))
		}
		return control.Problemf(control.Refused, "wait, and find out who typed them; an administrator may set another PIN: sudo "+a.cfg.Program+" pin set, or reset a TPM: sudo "+a.cfg.Program+" tpm reset-lockout", "%w", err)
	}
	problem, _ := a.explain(err)
	return problem
}
