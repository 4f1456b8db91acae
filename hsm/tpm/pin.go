package tpm

// Secrets behind a PIN (hsm.PINs): the one kind of object here that counts wrong
// guesses (Part 1, 19.8). A chip that loses power after such an object was used,
// with a right PIN too, counts that as a wrong guess at its next start, unless it
// was told before to stop in order. So each use ends with TPM2_Shutdown: what
// comes after it works as ever, and a power cut costs nothing (the reference code
// forgets the use; a test holds swtpm to it). What is left is the time between
// the two commands.

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
)

const (
	// pinAttributes lack noDA, on purpose.
	pinAttributes = attrFixedTPM | attrFixedParent | attrUserWithAuth
	pinAuthSize   = sha256.Size
)

// pinAuth is the auth value of a PIN: of one length, so that no chip's limit is
// met, and never what the person typed.
func pinAuth(pin *hsm.Secret) []byte {
	b := append([]byte("kagimori PIN/1"), pin.Bytes()...)
	defer clear(b)
	sum := sha256.Sum256(b)
	return sum[:]
}

// SealPIN keeps 1 to hsm.MaxSealed bytes behind a PIN.
func (m *Module) SealPIN(ctx context.Context, secret, pin *hsm.Secret) (hsm.Blob, error) {
	if err := errors.Join(hsm.CheckSealed(secret), hsm.CheckPIN(pin)); err != nil {
		return nil, fmt.Errorf("seal behind a PIN: %w", err)
	}
	auth := pinAuth(pin)
	defer clear(auth)
	input := hsm.NewSecret(slices.Concat(auth, secret.Bytes()))
	b, err := do(ctx, m, input, func(c *chip) (hsm.Blob, error) {
		return c.sealPIN(input.Bytes()[:pinAuthSize], input.Bytes()[pinAuthSize:])
	})
	if err != nil {
		return nil, fmt.Errorf("seal behind a PIN: %w", err)
	}
	return b, nil
}

func (c *chip) sealPIN(auth, secret []byte) (hsm.Blob, error) {
	public, private, err := c.make(sealedArea(pinAttributes, nil), auth, secret)
	if err != nil {
		return nil, err
	}
	return hsm.Item{Kind: hsm.KindTPM, Purpose: hsm.PurposePIN, Owner: c.root.id(), Public: public, Sealed: private}.Encode()
}

// UnsealPIN opens what SealPIN kept. A wrong PIN is hsm.ErrPIN and was counted
// once; a chip that takes no more PINs is hsm.ErrLockout.
func (m *Module) UnsealPIN(ctx context.Context, sealed hsm.Blob, pin *hsm.Secret) (*hsm.Secret, error) {
	if err := hsm.CheckPIN(pin); err != nil {
		return nil, fmt.Errorf("unseal: %w", err)
	}
	item, err := decodePIN(sealed)
	if err != nil {
		return nil, fmt.Errorf("unseal: %w", err)
	}
	input := hsm.NewSecret(pinAuth(pin))
	secret, err := do(ctx, m, input, func(c *chip) (*hsm.Secret, error) { return c.unsealPIN(item, input.Bytes()) })
	if err != nil {
		return nil, fmt.Errorf("unseal: %w", err)
	}
	return secret, nil
}

// decodePIN takes a blob apart, before the chip is asked.
func decodePIN(b hsm.Blob) (hsm.Item, error) {
	item, err := hsm.DecodeFor(bytes.Clone(b), hsm.KindTPM, hsm.PurposePIN)
	if err == nil && !sealedArea(pinAttributes, nil).fits(item.Public) {
		err = fmt.Errorf("%w: its public part is not that of a %v of ours", hsm.ErrBlob, hsm.PurposePIN)
	}
	return item, err
}

func (c *chip) unsealPIN(item hsm.Item, auth []byte) (*hsm.Secret, error) {
	if err := c.load(item); err != nil {
		return nil, err
	}
	s, err := c.guarded(auth)
	if err != nil {
		return nil, err
	}
	s.dir = encOut
	secret, err := c.openSealed(s)
	c.unload()
	c.orderly()
	if denied(err) { // said without the chip's code: nothing may take it for a reason to try again
		return nil, fmt.Errorf("%w (%v)", hsm.ErrPIN, err)
	}
	return secret, err
}

// guarded is a session for an auth value that counts wrong guesses. It is made
// new: one that went out of step would make a right value look like a wrong one.
func (c *chip) guarded(auth []byte) (*session, error) {
	c.endSession()
	return c.authWith(plain, auth)
}

// orderly is TPM2_Shutdown(CLEAR), after the use of what counts wrong guesses,
// also for a job that is stopped already.
func (c *chip) orderly() {
	if c.skipOrderly || c.wire == nil {
		return
	}
	ctx := c.ctx
	c.ctx = nil
	_, _, err := c.ask(command{code: tpm2.TPMCCShutdown, params: words(nil, tpm2.TPMSUClear)})
	c.ctx = ctx
	if err != nil {
		c.log.Warn("the TPM was not told of an orderly stop: if power fails before the next one, it counts a wrong guess", "err", err)
	}
}
