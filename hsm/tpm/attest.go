package tpm

// Proof of the chip to somebody far away (hsm.Attester); hsm/attest is the
// other side. attest_ek.go finds the endorsement key. A chip has three places
// for objects: root, attestation key and what is proven are all that ever is in
// it, and each job leaves it as it was.

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
)

var _ hsm.Attester = (*Module)(nil)

// proven is evidence with the key that signed it.
type proven struct {
	evidence *hsm.Evidence
	ak       hsm.Blob
}

// Evidence makes an attestation key (AK) and has it state that the storage root
// key and the identity key are in this chip. It fails with hsm.ErrEndorsement
// if no maker vouches for the chip. Where the endorsement key is RSA and not
// stored, the chip makes it anew, which may take it a minute.
func (m *Module) Evidence(ctx context.Context, identity hsm.Blob, nonce [32]byte) (*hsm.Evidence, hsm.Blob, error) {
	item, err := decode(identity, hsm.PurposeKey)
	if err != nil {
		return nil, nil, fmt.Errorf("prove the TPM: %w", err)
	}
	p, err := do(ctx, m, nil, func(c *chip) (proven, error) { return c.prove(item, nonce) })
	if err != nil {
		return nil, nil, fmt.Errorf("prove the TPM: %w", err)
	}
	return p.evidence, p.ak, nil
}

func (c *chip) prove(identity hsm.Item, nonce [32]byte) (proven, error) {
	none := proven{}
	if err := c.rootFor(identity.Owner); err != nil {
		return none, err
	}
	e := &hsm.Evidence{Root: c.root.public, Identity: identity.Public}
	if err := c.endorse(e); err != nil {
		return none, err
	}
	blob, err := c.create(hsm.PurposeAttest, nil)
	if err != nil {
		return none, fmt.Errorf("make attestation key: %w", err)
	}
	ak, err := decode(blob, hsm.PurposeAttest)
	if err != nil {
		return none, err
	}
	e.AK = ak.Public
	by, err := c.bring(ak)
	if err != nil {
		return none, err
	}
	defer c.flush(by)
	sign := entity{by, nameOf(ak.Public)}
	if e.RootProof, err = c.certify(entity{c.root.handle, c.root.name}, sign, nonce); err != nil {
		return none, fmt.Errorf("certify the storage root key: %w", err)
	}
	if err := c.load(identity); err != nil {
		return none, err
	}
	if e.IdentityProof, err = c.certify(entity{c.loaded.handle, nameOf(identity.Public)}, sign, nonce); err != nil {
		return none, fmt.Errorf("certify the identity key: %w", err)
	}
	return proven{e, blob}, nil
}

// keysOwn is TPM_ALG_NULL where it stands for "the key's own", or "none".
var keysOwn = words(nil, tpm2.TPMAlgNull)

// certify has a key state the Name of an object: TPM2_Certify (Part 3, 18.2).
// The session authorises the key; the object's auth value is empty.
func (c *chip) certify(object, by entity, nonce [32]byte) (hsm.Proof, error) {
	auth, err := c.auth(plain)
	if err != nil {
		return hsm.Proof{}, err
	}
	_, params, err := c.ask(command{
		code: tpm2.TPMCCCertify, handles: []entity{object, by}, auth: both{noPassword{}, auth},
		params: append(sized(nil, nonce[:]), keysOwn...),
	})
	if err != nil {
		return hsm.Proof{}, err
	}
	info, signature, err := unsized(params)
	return hsm.Proof{Attest: info, Signature: signature}, err
}

// Activate opens a challenge that was made for this chip's endorsement key and
// the AK of Evidence. One that was not is hsm.ErrBlob.
func (m *Module) Activate(ctx context.Context, ak hsm.Blob, challenge hsm.Challenge) (*hsm.Secret, error) {
	item, err := decode(ak, hsm.PurposeAttest)
	if err != nil {
		return nil, fmt.Errorf("open challenge: %w", err)
	}
	k, ok := endorserFor(challenge)
	if !ok {
		return nil, fmt.Errorf("open challenge: %w: parts of %d and %d bytes", hsm.ErrBlob, len(challenge.Credential), len(challenge.Secret))
	}
	challenge.Credential, challenge.Secret = bytes.Clone(challenge.Credential), bytes.Clone(challenge.Secret)
	secret, err := do(ctx, m, nil, func(c *chip) (*hsm.Secret, error) { return c.activate(item, k, challenge) })
	if err != nil {
		return nil, fmt.Errorf("open challenge: %w", err)
	}
	return secret, nil
}

func (c *chip) activate(ak hsm.Item, k endorser, challenge hsm.Challenge) (*hsm.Secret, error) {
	if err := c.load(ak); err != nil {
		return nil, err
	}
	ek, err := c.takeEK(k)
	if err != nil {
		return nil, err
	}
	defer c.putEK(ek)
	object, err := c.auth(encOut) // the secret comes out encrypted
	if err != nil {
		return nil, err
	}
	use, done, err := c.allowEK(k)
	if err != nil {
		return nil, err
	}
	defer done()
	_, params, err := c.ask(command{ // TPM2_ActivateCredential (Part 3, 12.5)
		code: tpm2.TPMCCActivateCredential, auth: both{object, use},
		handles: []entity{{c.loaded.handle, nameOf(ak.Public)}, {ek.handle, ek.name}},
		params:  sized(sized(nil, challenge.Credential), challenge.Secret),
	})
	if badParameter(err) {
		return nil, fmt.Errorf("%w: a challenge for another TPM or attestation key (%v)", hsm.ErrBlob, err)
	}
	if err != nil {
		return nil, err
	}
	secret, err := only(params)
	if err != nil {
		return nil, err
	}
	return hsm.NewSecret(secret), nil
}

// ImportWrapped takes in a MAC key that was wrapped to the storage root key:
// nothing on this side of the chip ever sees it. One that was wrapped for
// another chip, or that could leave this one again, is hsm.ErrBlob.
func (m *Module) ImportWrapped(ctx context.Context, key hsm.Wrapped) (hsm.Blob, error) {
	if len(key.Public) > hsm.MaxBlob || len(key.Duplicate) > hsm.MaxBlob || len(key.Seed) > hsm.MaxBlob {
		return nil, fmt.Errorf("import wrapped key: %w", hsm.ErrTooLong)
	}
	if !wrappedMAC().fits(key.Public) {
		return nil, fmt.Errorf("import wrapped key: %w: its public part is not that of a MAC key that stays here", hsm.ErrBlob)
	}
	key.Public, key.Duplicate, key.Seed = bytes.Clone(key.Public), bytes.Clone(key.Duplicate), bytes.Clone(key.Seed)
	b, err := do(ctx, m, nil, func(c *chip) (hsm.Blob, error) { return c.importWrapped(key) })
	if err != nil {
		return nil, fmt.Errorf("import wrapped key: %w", err)
	}
	return b, nil
}

func (c *chip) importWrapped(key hsm.Wrapped) (hsm.Blob, error) {
	private, err := c.importUnder(plain, nil, key, keysOwn) // what is secret is wrapped, once
	if err != nil {
		return nil, err
	}
	item := hsm.Item{
		Kind: hsm.KindTPM, Purpose: hsm.PurposeMAC, Owner: c.root.id(),
		Public: key.Public, Sealed: private,
	}
	if err := c.load(item); err != nil { // only this shows that key and public part are a pair
		return nil, err
	}
	return item.Encode()
}

// importUnder has the root take in what was wrapped to it: TPM2_Import (Part 3,
// 13.3). inner is the key of an inner wrapper by cipher (TPMT_SYM_DEF_OBJECT).
func (c *chip) importUnder(dir direction, inner []byte, key hsm.Wrapped, cipher []byte) (private []byte, err error) {
	c.unload() // its place may be needed
	auth, err := c.auth(dir)
	if err != nil {
		return nil, err
	}
	const heads = 4 * 2
	params := make([]byte, 0, heads+len(inner)+len(key.Public)+len(key.Duplicate)+len(key.Seed)+len(cipher))
	// inner is in clear until the session encrypts it; append must not leave copies.
	defer clear(params[:cap(params)])
	for _, part := range [][]byte{inner, key.Public, key.Duplicate, key.Seed} {
		params = sized(params, part)
	}
	_, out, err := c.ask(command{
		code: tpm2.TPMCCImport, handles: []entity{{c.root.handle, c.root.name}}, auth: auth,
		params: append(params, cipher...),
	})
	if badParameter(err) {
		return nil, fmt.Errorf("%w: wrapped for another storage root key, or altered (%v)", hsm.ErrBlob, err)
	}
	if err != nil {
		return nil, err
	}
	return only(out)
}

// wrappedMAC is the template of a MAC key from outside. It has neither of the
// attributes that bind to chip and parent, for TPM2_Import takes none that do,
// and no policy, without which nothing leaves a chip (Part 3, 13.1).
func wrappedMAC() area { return macArea(attrUserWithAuth | attrNoDA) }

// errEndorsementAuth is a hierarchy with a password that is not ours.
var errEndorsementAuth = errors.New("the TPM's endorsement hierarchy has a password; clear it: tpm2_changeauth -c endorsement -p PASSWORD")
