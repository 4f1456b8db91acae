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
	item, _, err := decode(identity, hsm.PurposeKey)
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
	e := &hsm.Evidence{Root: tpm2.Marshal(c.root.public), Identity: identity.Public}
	if err := c.endorse(e); err != nil {
		return none, err
	}
	blob, err := c.create(hsm.PurposeAttest, nil)
	if err != nil {
		return none, fmt.Errorf("make attestation key: %w", err)
	}
	ak, _, err := decode(blob, hsm.PurposeAttest)
	if err != nil {
		return none, err
	}
	e.AK = ak.Public
	by, err := c.bring(ak)
	if err != nil {
		return none, err
	}
	defer c.flush(by)
	e.RootProof, err = c.certify(by, ak, tpm2.AuthHandle{Handle: c.root.handle, Name: c.root.name, Auth: tpm2.PasswordAuth(nil)}, nonce)
	if err != nil {
		return none, fmt.Errorf("certify the storage root key: %w", err)
	}
	if err := c.load(identity); err != nil {
		return none, err
	}
	e.IdentityProof, err = c.certify(by, ak, tpm2.AuthHandle{Handle: c.loaded.handle, Name: nameOf(identity.Public), Auth: tpm2.PasswordAuth(nil)}, nonce)
	if err != nil {
		return none, fmt.Errorf("certify the identity key: %w", err)
	}
	return proven{e, blob}, nil
}

// certify has the AK state the Name of an object (Part 3, 18.2). The session
// authorises the AK; the object's auth value is empty.
func (c *chip) certify(by tpm2.TPMHandle, ak hsm.Item, object tpm2.AuthHandle, nonce [32]byte) (hsm.Proof, error) {
	auth, err := c.auth(plain)
	if err != nil {
		return hsm.Proof{}, err
	}
	rsp, err := tpm2.Certify{
		ObjectHandle:   object,
		SignHandle:     tpm2.AuthHandle{Handle: by, Name: nameOf(ak.Public), Auth: auth},
		QualifyingData: tpm2.TPM2BData{Buffer: nonce[:]},
		InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, // the key's own
	}.Execute(c)
	if err != nil {
		return hsm.Proof{}, err
	}
	return hsm.Proof{Attest: rsp.CertifyInfo.Bytes(), Signature: tpm2.Marshal(rsp.Signature)}, nil
}

// Activate opens a challenge that was made for this chip's endorsement key and
// the AK of Evidence. One that was not is hsm.ErrBlob.
func (m *Module) Activate(ctx context.Context, ak hsm.Blob, challenge hsm.Challenge) (*hsm.Secret, error) {
	item, _, err := decode(ak, hsm.PurposeAttest)
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
	use, done, err := c.allowEK(k)
	if err != nil {
		return nil, err
	}
	defer done()
	object, err := c.use(encOut) // the secret comes out encrypted
	if err != nil {
		return nil, err
	}
	rsp, err := tpm2.ActivateCredential{
		ActivateHandle: object,
		KeyHandle:      tpm2.AuthHandle{Handle: ek.handle, Name: ek.name, Auth: use},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: challenge.Credential},
		Secret:         tpm2.TPM2BEncryptedSecret{Buffer: challenge.Secret},
	}.Execute(c)
	if badParameter(err) {
		return nil, fmt.Errorf("%w: a challenge for another TPM or attestation key (%v)", hsm.ErrBlob, err)
	}
	if err != nil {
		return nil, err
	}
	return hsm.NewSecret(rsp.CertInfo.Buffer), nil
}

// ImportWrapped takes in a MAC key that was wrapped to the storage root key:
// nothing on this side of the chip ever sees it. One that was wrapped for
// another chip, or that could leave this one again, is hsm.ErrBlob.
func (m *Module) ImportWrapped(ctx context.Context, key hsm.Wrapped) (hsm.Blob, error) {
	if len(key.Public) > hsm.MaxBlob || len(key.Duplicate) > hsm.MaxBlob || len(key.Seed) > hsm.MaxBlob {
		return nil, fmt.Errorf("import wrapped key: %w", hsm.ErrTooLong)
	}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](key.Public)
	if err != nil || !fits(*public, wrappedMAC()) || !bytes.Equal(tpm2.Marshal(public), key.Public) {
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
	c.unload()                 // its place may be needed
	auth, err := c.auth(plain) // what is secret is wrapped
	if err != nil {
		return nil, err
	}
	rsp, err := tpm2.Import{
		ParentHandle: tpm2.AuthHandle{Handle: c.root.handle, Name: c.root.name, Auth: auth},
		ObjectPublic: tpm2.BytesAs2B[tpm2.TPMTPublic](key.Public),
		Duplicate:    tpm2.TPM2BPrivate{Buffer: key.Duplicate},
		InSymSeed:    tpm2.TPM2BEncryptedSecret{Buffer: key.Seed},
		Symmetric:    tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull}, // no inner wrapper
	}.Execute(c)
	if badParameter(err) {
		return nil, fmt.Errorf("%w: wrapped for another storage root key, or altered (%v)", hsm.ErrBlob, err)
	}
	if err != nil {
		return nil, err
	}
	item := hsm.Item{
		Kind: hsm.KindTPM, Purpose: hsm.PurposeMAC, Owner: c.root.id(),
		Public: key.Public, Sealed: rsp.OutPrivate.Buffer,
	}
	if err := c.load(item); err != nil { // only this shows that key and public part are a pair
		return nil, err
	}
	return item.Encode()
}

// wrappedMAC is the template of a MAC key from outside. It has neither of the
// attributes that bind to chip and parent, for TPM2_Import takes none that do,
// and no policy, without which nothing leaves a chip (Part 3, 13.1).
func wrappedMAC() tpm2.TPMTPublic {
	public := template(hsm.PurposeMAC)
	public.ObjectAttributes.FixedTPM, public.ObjectAttributes.FixedParent = false, false
	return public
}

// errEndorsementAuth is a hierarchy with a password that is not ours.
var errEndorsementAuth = errors.New("the TPM's endorsement hierarchy has a password; clear it: tpm2_changeauth -c endorsement -p PASSWORD")
