package tpm

// What lies under the root: templates, making, loading.

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
)

// template is the public area of a purpose, less the key itself. All are bound
// to this chip and this parent, and none counts wrong guesses (NoDA).
func template(p hsm.Purpose) tpm2.TPMTPublic {
	public := tpm2.TPMTPublic{
		Type:             tpm2.TPMAlgKeyedHash,
		NameAlg:          tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: true, NoDA: true},
	}
	switch p {
	case hsm.PurposeSeal:
		public.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{
			Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgNull},
		})
	case hsm.PurposeMAC:
		public.ObjectAttributes.SignEncrypt = true
		public.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{
			Scheme: tpm2.TPMTKeyedHashScheme{
				Scheme:  tpm2.TPMAlgHMAC,
				Details: tpm2.NewTPMUSchemeKeyedHash(tpm2.TPMAlgHMAC, &tpm2.TPMSSchemeHMAC{HashAlg: tpm2.TPMAlgSHA256}),
			},
		})
	case hsm.PurposeKey, hsm.PurposeAttest:
		public.Type = tpm2.TPMAlgECC
		public.ObjectAttributes.SignEncrypt = true
		public.ObjectAttributes.Restricted = p == hsm.PurposeAttest // signs what the chip itself states
		public.ObjectAttributes.SensitiveDataOrigin = true
		public.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			CurveID: tpm2.TPMECCNistP256,
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
		})
	}
	return public
}

// create makes an object under the root and returns its blob. data is the
// secret part, nil where the chip makes it.
func (c *chip) create(p hsm.Purpose, data *hsm.Secret) (hsm.Blob, error) {
	c.unload() // its place may be needed
	auth, err := c.auth(encIn)
	if err != nil {
		return nil, err
	}
	sensitive := &tpm2.TPMSSensitiveCreate{}
	if data != nil {
		sensitive.Data = tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: data.Bytes()})
	}
	rsp, err := tpm2.Create{
		ParentHandle: tpm2.AuthHandle{Handle: c.root.handle, Name: c.root.name, Auth: auth},
		InSensitive:  tpm2.TPM2BSensitiveCreate{Sensitive: sensitive},
		InPublic:     tpm2.New2B(template(p)),
	}.Execute(c)
	if err != nil {
		return nil, err
	}
	public, err := rsp.OutPublic.Contents()
	if err != nil || !fits(*public, template(p)) {
		return nil, errors.New("the TPM made something else than it was asked for")
	}
	return hsm.Item{
		Kind: hsm.KindTPM, Purpose: p, Owner: c.root.id(),
		Public: rsp.OutPublic.Bytes(), Sealed: rsp.OutPrivate.Buffer,
	}.Encode()
}

// loaded is the object that stays in the chip after a job, for the next one
// that wants the same. One, because a TPM has three places: the root takes one
// (always, or while it is used), this the second, and the third is free.
type loaded struct {
	handle tpm2.TPMHandle // 0: nothing is loaded
	item   hsm.Item
}

// decode takes apart a blob for one purpose, before the chip is asked.
func decode(b hsm.Blob, p hsm.Purpose) (hsm.Item, tpm2.TPMTPublic, error) {
	item, err := hsm.DecodeFor(bytes.Clone(b), hsm.KindTPM, p)
	if err != nil {
		return hsm.Item{}, tpm2.TPMTPublic{}, err
	}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](item.Public)
	if err != nil {
		return hsm.Item{}, tpm2.TPMTPublic{}, fmt.Errorf("%w: its public part: %v", hsm.ErrBlob, err)
	}
	ours := fits(*public, template(p)) || p == hsm.PurposeMAC && fits(*public, wrappedMAC())
	if !ours || !bytes.Equal(tpm2.Marshal(public), item.Public) {
		return hsm.Item{}, tpm2.TPMTPublic{}, fmt.Errorf("%w: its public part is not that of a %v of ours", hsm.ErrBlob, p)
	}
	return item, *public, nil
}

// load brings an object into the chip, unless it is there.
func (c *chip) load(item hsm.Item) error {
	if err := c.rootFor(item.Owner); err != nil {
		return err
	}
	if c.loaded.handle != 0 && same(c.loaded.item, item) {
		return nil
	}
	c.unload()
	handle, err := c.bring(item)
	if err != nil {
		return err
	}
	c.loaded = loaded{handle: handle, item: item}
	return nil
}

// bring loads an object of the root in use; its place is the caller's to free.
func (c *chip) bring(item hsm.Item) (tpm2.TPMHandle, error) {
	var auth authorizer = noPassword{}
	if c.session != nil { // else none is started for this: nothing here is secret
		c.session.aim(plain, nil)
		auth = c.session
	}
	handle, _, err := c.ask(command{
		code: tpm2.TPMCCLoad, handles: []entity{c.root.entity()}, auth: auth,
		params: sized(sized(nil, item.Sealed), item.Public), gives: true,
	})
	if badParameter(err) {
		return 0, fmt.Errorf("%w: damaged or altered (%v)", hsm.ErrBlob, err)
	}
	if err != nil {
		return 0, fmt.Errorf("load: %w", err)
	}
	if err := checkHandle(handle, transient); err != nil {
		return 0, fmt.Errorf("load: %w", err)
	}
	return handle, nil
}

// use is the loaded object, authorised for one command.
func (c *chip) use(dir direction) (tpm2.AuthHandle, error) {
	auth, err := c.auth(dir)
	if err != nil {
		return tpm2.AuthHandle{}, err
	}
	return tpm2.AuthHandle{Handle: c.loaded.handle, Name: nameOf(c.loaded.item.Public), Auth: auth}, nil
}

// same tells whether two items are the same object.
func same(a, b hsm.Item) bool {
	return a.Owner == b.Owner && bytes.Equal(a.Public, b.Public) && bytes.Equal(a.Sealed, b.Sealed)
}
