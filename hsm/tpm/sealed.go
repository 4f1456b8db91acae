package tpm

// Sealed data objects with an auth value or a policy: what a person's PIN opens,
// and what a measured boot opens. Made and opened by commands put together here.

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
)

// TPMA_OBJECT (Part 2, 8.3).
const (
	attrFixedTPM        = 1 << 1
	attrFixedParent     = 1 << 4
	attrUserWithAuth    = 1 << 6
	attrAdminWithPolicy = 1 << 7
	attrNoDA            = 1 << 10
	attrSign            = 1 << 18
)

// sealedArea is the TPMT_PUBLIC of a sealed data object up to the digest that
// the chip puts in (unique).
func sealedArea(attributes uint32, policy []byte) []byte {
	be := binary.BigEndian
	b := be.AppendUint16(be.AppendUint16(nil, uint16(tpm2.TPMAlgKeyedHash)), uint16(tpm2.TPMAlgSHA256))
	b = sized(be.AppendUint32(b, attributes), policy)
	return be.AppendUint16(b, uint16(tpm2.TPMAlgNull)) // no scheme: data
}

// isSealed tells whether public is that area with a digest in it.
func isSealed(public, area []byte) bool {
	rest, ok := bytes.CutPrefix(public, area)
	return ok && len(rest) == 2+sha256.Size && binary.BigEndian.Uint16(rest) == sha256.Size
}

// createSealed makes such an object under the root: its public area whole, and
// its private part. value may be nil.
func (c *chip) createSealed(area, value, data []byte) (public, private []byte, err error) {
	c.unload() // its place may be needed
	auth, err := c.auth(encIn)
	if err != nil {
		return nil, nil, err
	}
	sensitive := sized(sized(nil, value), data)
	defer clear(sensitive)
	params := sized(nil, sensitive)
	defer clear(params)
	params = sized(params, sized(bytes.Clone(area), nil))
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
	if err != nil || !isSealed(public, area) {
		return nil, nil, errors.New("the TPM made something else than it was asked for")
	}
	return bytes.Clone(public), bytes.Clone(private), nil
}

// openSealed is TPM2_Unseal of the loaded object.
func (c *chip) openSealed(auth authorizer) (*hsm.Secret, error) {
	_, out, err := c.ask(command{code: tpm2.TPMCCUnseal, handles: []entity{c.loaded.entity()}, auth: auth})
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

// entity is the root key as a command names it.
func (r root) entity() entity { return entity{r.handle, r.name.Buffer} }

// entity is the loaded object as a command names it.
func (l loaded) entity() entity { return entity{l.handle, nameOf(l.item.Public).Buffer} }
