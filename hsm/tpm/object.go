package tpm

// What lies under the root: making and loading. area.go has the templates.

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
)

// create makes an object under the root and returns its blob. data is the
// secret part, nil where the chip makes it.
func (c *chip) create(p hsm.Purpose, data *hsm.Secret) (hsm.Blob, error) {
	public, private, err := c.make(template(p), nil, data.Bytes())
	if err != nil {
		return nil, err
	}
	return hsm.Item{Kind: hsm.KindTPM, Purpose: p, Owner: c.root.id(), Public: public, Sealed: private}.Encode()
}

// make is TPM2_Create: it returns the public area whole, and the private part.
// value is the auth value, data the secret part; both may be nil.
func (c *chip) make(a area, value, data []byte) (public, private []byte, err error) {
	c.unload() // its place may be needed
	auth, err := c.auth(encIn)
	if err != nil {
		return nil, nil, err
	}
	area := append(slices.Clone(a), blank(a)...)
	const heads = 2 + 2 + 2 + 2 + 2 + 4 // two in sensitive, four of parameters
	params := make([]byte, 0, heads+len(value)+len(data)+len(area))
	// In clear until the session encrypts it; append must not leave copies behind.
	defer clear(params[:cap(params)])
	params = binary.BigEndian.AppendUint16(params, uint16(2+len(value)+2+len(data)))
	params = sized(sized(params, value), data)
	params = sized(params, area)
	params = append(sized(params, nil), 0, 0, 0, 0) // no outside info, no creation PCRs
	_, out, err := c.ask(command{code: tpm2.TPMCCCreate, handles: []entity{c.root.entity()}, auth: auth, params: params})
	if err != nil {
		return nil, nil, err
	}
	private, out, err = unsized(out)
	if err != nil {
		return nil, nil, err
	}
	public, _, err = unsized(out)
	if err != nil || !a.fits(public) {
		return nil, nil, errors.New("the TPM made something else than it was asked for")
	}
	return public, private, nil
}

// blank is the empty key of a template.
func blank(a area) []byte {
	if a.kind() == tpm2.TPMAlgKeyedHash {
		return []byte{0, 0}
	}
	return []byte{0, 0, 0, 0} // x and y
}

// loaded is the object that stays in the chip after a job, for the next one
// that wants the same. One, because a TPM has three places: the root takes one
// (always, or while it is used), this the second, and the third is free.
type loaded struct {
	handle tpm2.TPMHandle // 0: nothing is loaded
	item   hsm.Item
}

// decode takes apart a blob for one purpose, before the chip is asked.
func decode(b hsm.Blob, p hsm.Purpose) (hsm.Item, error) {
	item, err := hsm.DecodeFor(bytes.Clone(b), hsm.KindTPM, p)
	if err != nil {
		return hsm.Item{}, err
	}
	if !template(p).fits(item.Public) && (p != hsm.PurposeMAC || !wrappedMAC().fits(item.Public)) {
		return hsm.Item{}, fmt.Errorf("%w: its public part is not that of a %v of ours", hsm.ErrBlob, p)
	}
	return item, nil
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

// entity is the loaded object as a command names it.
func (l loaded) entity() entity { return entity{l.handle, nameOf(l.item.Public)} }

// same tells whether two items are the same object.
func same(a, b hsm.Item) bool {
	return a.Owner == b.Owner && bytes.Equal(a.Public, b.Public) && bytes.Equal(a.Sealed, b.Sealed)
}
