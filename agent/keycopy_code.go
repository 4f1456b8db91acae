package agent

import (
	"context"
	"crypto/rand"
	"errors"

	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// Which operator codes this terminal takes (req: C2): those that it makes, those
// that an operator types on both terminals, or either. Of the latter the last
// ones are known again, by short tags under a key that key storage keeps.

const (
	keyUsedCodes = "typed codes" // in bucketAttempts: keycopy.UsedCodes
	blobCodeTags = "code-tags"   // the MAC key of their tags
)

// An armOrder is what somebody wants at the old terminal.
type armOrder struct {
	selected []transport.Name // none: all
	move     bool             // what may be copied is moved
	// typed is the operator's own code as he typed it, wiped by arm; nil: this
	// terminal makes one.
	typed transport.Sensitive
}

// A fetchOrder is what somebody wants at the new one.
type fetchOrder struct {
	address  string
	typed    transport.Sensitive   // the operator code as it was typed; wiped by fetch
	selected []transport.Name      // none: all
	copyOnly bool                  // leave what can only be moved
	mode     transport.KeycopyMode // "": the first that is enabled
}

// operatorCode makes the code of an offer, or takes the operator's own and gives
// its tag. A refusal costs nothing.
func (a *Agent) operatorCode(ctx context.Context, p *party, order armOrder) (*keycopy.OperatorCode, *uint16, error) {
	now := a.backdated(p.clock())
	policy := a.cfg.Keycopy.Codes
	if order.typed == nil {
		if !policy.Allows(keycopy.CodeGenerated) {
			return nil, nil, control.Problemf(control.Conflict, "choose a code of your own and type it here and on the new terminal: "+a.cfg.Program+" keycopy offer --typed", "this terminal makes no operator codes (codes = \"typed\" in its [keycopy] section)")
		}
		code, err := keycopy.NewOperatorCode(rand.Reader, now)
		return code, nil, err
	}
	if !policy.Allows(keycopy.CodeTyped) {
		order.typed.Wipe()
		return nil, nil, control.Problemf(control.Conflict, "use the code that it makes: "+a.cfg.Program+" keycopy offer; or have codes = \"either\" set in the [keycopy] section of both terminals", "this terminal takes no operator codes but those that it makes")
	}
	code, err := keycopy.CodesTyped.Parse(order.typed, now)
	if err != nil {
		return nil, nil, control.Problemf(control.BadInput, "choose another code; this cost nothing", "%w", err)
	}
	tag, err := a.judgeTyped(ctx, p, code)
	if err != nil {
		code.Wipe()
		return nil, nil, err
	}
	return code, tag, nil
}

// typedCode reads the code that was typed at the new terminal, and gives its tag
// if it is an operator's own. A refusal costs nothing.
func (a *Agent) typedCode(ctx context.Context, p *party, typed transport.Sensitive) (*keycopy.OperatorCode, *uint16, error) {
	code, err := a.cfg.Keycopy.Codes.Parse(typed, p.clock())
	if err != nil {
		return nil, nil, control.Problemf(control.BadInput, "this cost no attempt", "%w", err)
	}
	if code.Kind() == keycopy.CodeGenerated {
		return code, nil, nil
	}
	tag, err := a.judgeTyped(ctx, p, code)
	if err != nil {
		code.Wipe()
		return nil, nil, err
	}
	return code, tag, nil
}

// judgeTyped refuses an operator's own code that is weak, or was used before.
func (a *Agent) judgeTyped(ctx context.Context, p *party, code *keycopy.OperatorCode) (*uint16, error) {
	const next = "choose another code on both terminals; this cost nothing"
	if err := code.CheckStrength(append([]string{string(p.self.Terminal)}, a.cfg.Keycopy.Numbers...)); err != nil {
		return nil, control.Problemf(control.BadInput, next, "%w", err)
	}
	tag, err := p.vault.codeTag(ctx, code)
	if err != nil {
		problem, _ := storageProblem(err)
		return nil, problem
	}
	err = p.vault.store.View(func(tx *store.Tx) error {
		var used keycopy.UsedCodes
		if _, err := tx.Get(bucketAttempts, keyUsedCodes, &used); err != nil {
			return err
		}
		return used.Check(tag, p.vault.clock.Steady())
	})
	if errors.Is(err, keycopy.ErrUsedCode) {
		err = control.Problemf(control.BadInput, next, "%w", err)
	}
	return &tag, err
}

// useCode remembers a typed code; tag nil is a generated one. spent: it may not
// be typed here again, not even now.
func (v *vault) useCode(tx *store.Tx, tag *uint16, spent bool) error {
	if tag == nil {
		return nil
	}
	var used keycopy.UsedCodes
	if _, err := tx.Get(bucketAttempts, keyUsedCodes, &used); err != nil {
		return err
	}
	used.Use(*tag, v.clock.Steady(), spent)
	return tx.Put(bucketAttempts, keyUsedCodes, &used)
}

// codeTag has key storage compute a code's tag. A key that another chip had is
// of no use any more, nor are its tags.
func (v *vault) codeTag(ctx context.Context, code *keycopy.OperatorCode) (uint16, error) {
	var key hsm.Blob
	err := v.store.View(func(tx *store.Tx) error {
		key = tx.Blob(blobCodeTags)
		return nil
	})
	if err != nil {
		return 0, err
	}
	under := func(ctx context.Context, m []byte) (*hsm.Secret, error) { return v.module.MAC(ctx, key, m) }
	if key != nil {
		tag, err := code.Tag(ctx, under)
		if !errors.Is(err, hsm.ErrReplaced) {
			return tag, err
		}
	}
	fresh := hsm.RandomSecret(hsm.MACKeySize)
	defer fresh.Wipe()
	if key, err = v.module.ImportMAC(ctx, fresh); err != nil {
		return 0, err
	}
	err = v.update(func(tx *store.Tx) error {
		return errors.Join(tx.PutBlob(blobCodeTags, key), tx.Delete(bucketAttempts, keyUsedCodes))
	})
	if err != nil {
		return 0, err
	}
	return code.Tag(ctx, under)
}

// backdated makes codes live shorter than the protocol allows, if the
// configuration says so.
func (a *Agent) backdated(now keycopy.Instant) keycopy.Instant {
	if ttl := a.cfg.Keycopy.CodeTTL; ttl > 0 && ttl < keycopy.CodeLifetime {
		now.Wall, now.Mono = now.Wall.Add(ttl-keycopy.CodeLifetime), now.Mono+ttl-keycopy.CodeLifetime
	}
	return now
}
