package tpm

import (
	"bytes"
	"context"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
)

// Seal keeps 1 to hsm.MaxSealed bytes: a TPM sealed data object.
func (m *Module) Seal(ctx context.Context, secret *hsm.Secret) (hsm.Blob, error) {
	if err := hsm.CheckSealed(secret); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	input := secret.Clone()
	b, err := do(ctx, m, input, func(c *chip) (hsm.Blob, error) { return c.create(hsm.PurposeSeal, input) })
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return b, nil
}

// Unseal opens what Seal kept.
func (m *Module) Unseal(ctx context.Context, sealed hsm.Blob) (*hsm.Secret, error) {
	item, err := decode(sealed, hsm.PurposeSeal)
	if err != nil {
		return nil, fmt.Errorf("unseal: %w", err)
	}
	secret, err := do(ctx, m, nil, func(c *chip) (*hsm.Secret, error) { return c.unseal(item) })
	if err != nil {
		return nil, fmt.Errorf("unseal: %w", err)
	}
	return secret, nil
}

func (c *chip) unseal(item hsm.Item) (*hsm.Secret, error) {
	if err := c.load(item); err != nil {
		return nil, err
	}
	auth, err := c.auth(encOut)
	if err != nil {
		return nil, err
	}
	return c.openSealed(auth)
}

// ImportMAC makes an HMAC object around a key of exactly hsm.MACKeySize bytes.
func (m *Module) ImportMAC(ctx context.Context, key *hsm.Secret) (hsm.Blob, error) {
	if err := hsm.CheckMACKey(key); err != nil {
		return nil, fmt.Errorf("import MAC key: %w", err)
	}
	input := key.Clone()
	b, err := do(ctx, m, input, func(c *chip) (hsm.Blob, error) { return c.create(hsm.PurposeMAC, input) })
	if err != nil {
		return nil, fmt.Errorf("import MAC key: %w", err)
	}
	return b, nil
}

// MAC is HMAC-SHA256 of message, computed in the chip and encrypted on the way
// out.
func (m *Module) MAC(ctx context.Context, key hsm.Blob, message []byte) (*hsm.Secret, error) {
	if err := hsm.CheckMessage(message); err != nil {
		return nil, fmt.Errorf("compute MAC: %w", err)
	}
	item, err := decode(key, hsm.PurposeMAC)
	if err != nil {
		return nil, fmt.Errorf("compute MAC: %w", err)
	}
	input := hsm.NewSecret(bytes.Clone(message))
	mac, err := do(ctx, m, input, func(c *chip) (*hsm.Secret, error) { return c.mac(item, input) })
	if err != nil {
		return nil, fmt.Errorf("compute MAC: %w", err)
	}
	return mac, nil
}

func (c *chip) mac(item hsm.Item, message *hsm.Secret) (*hsm.Secret, error) {
	if err := c.load(item); err != nil {
		return nil, err
	}
	auth, err := c.auth(encTwo)
	if err != nil {
		return nil, err
	}
	_, out, err := c.ask(command{ // TPM2_HMAC
		code: tpm2.TPMCCMAC, handles: []entity{c.loaded.entity()}, auth: auth,
		params: append(sized(nil, message.Bytes()), keysOwn...),
	})
	return takeSecret(out, err)
}

// openSealed is TPM2_Unseal of the loaded object.
func (c *chip) openSealed(auth authorizer) (*hsm.Secret, error) {
	_, out, err := c.ask(command{code: tpm2.TPMCCUnseal, handles: []entity{c.loaded.entity()}, auth: auth})
	return takeSecret(out, err)
}

// takeSecret takes the one parameter of a response over.
func takeSecret(out []byte, err error) (*hsm.Secret, error) {
	if err != nil {
		return nil, err
	}
	defer clear(out)
	data, err := only(out)
	if err != nil {
		return nil, err
	}
	return hsm.NewSecret(bytes.Clone(data)), nil
}
