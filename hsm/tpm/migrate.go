package tpm

// Keys that may go to another chip (hsm.Migrator). The policy that lets a key be
// duplicated is a PolicyAuthorize: the authority signs, parent by parent, a
// PolicyDuplicationSelect. migrate_policy.go computes and signs those,
// migrate_wire.go is what travels.

import (
	"bytes"
	"context"
	"crypto"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
)

// migrateAttributes: the chip makes the key, an empty auth value uses it, only
// the policy lets it go (or change), and never but wrapped twice. What makes it
// free to go, fixedTPM and fixedParent clear, cannot be added to a key later.
const migrateAttributes = attrOrigin | attrUserWithAuth | attrAdminWithPolicy | attrNoDA | attrEncryptedDup

// innerCipher is the inner wrapper's TPMT_SYM_DEF_OBJECT.
func innerCipher() []byte { return words(nil, tpm2.TPMAlgAES, 8*cfbKeySize, tpm2.TPMAlgCFB) }

// A migratableKey is a decoded Blob; its item has the TPMT_PUBLIC alone. In the
// blob the authority's point stands before it.
type migratableKey struct {
	item      hsm.Item
	authority []byte
}

// area is the template of the keys of one authority.
func (k migratableKey) area() area { return migratableArea(k.authority) }

func migratableArea(authority []byte) area {
	policy := authorized(authority, migrateReference())
	return signArea(migrateAttributes, policy[:]...)
}

// encode is the Blob.
func (k migratableKey) encode() (hsm.Blob, error) {
	item := k.item
	item.Public = slices.Concat(k.authority, item.Public)
	return item.Encode()
}

// migratable tells a blob of such a key, from its head.
func migratable(b hsm.Blob) bool {
	const purposeAt = 2
	return len(b) > purposeAt && hsm.Purpose(b[purposeAt]) == hsm.PurposeMigrate
}

// decodeMigratable takes a blob apart, before the chip is asked.
func decodeMigratable(b hsm.Blob) (migratableKey, error) {
	item, err := hsm.DecodeFor(bytes.Clone(b), hsm.KindTPM, hsm.PurposeMigrate)
	if err != nil {
		return migratableKey{}, err
	}
	k := migratableKey{item: item}
	if len(item.Public) >= pointSize {
		k.authority, k.item.Public = item.Public[:pointSize:pointSize], item.Public[pointSize:]
		if k.area().fits(k.item.Public) {
			return k, nil
		}
	}
	return migratableKey{}, fmt.Errorf("%w: its public part is not that of a %v of ours", hsm.ErrBlob, hsm.PurposeMigrate)
}

// NewMigratableKey makes an ECDSA P-256 key in the chip.
func (m *Module) NewMigratableKey(ctx context.Context, authority crypto.PublicKey) (hsm.Blob, error) {
	point, err := pointOf(authority)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	b, err := do(ctx, m, nil, func(c *chip) (hsm.Blob, error) {
		public, private, err := c.make(migratableArea(point), nil, nil)
		if err != nil {
			return nil, err
		}
		return c.migratable(point, public, private).encode()
	})
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return b, nil
}

// migratable is a key under the root in use.
func (c *chip) migratable(authority, public, private []byte) migratableKey {
	return migratableKey{authority: authority, item: hsm.Item{
		Kind: hsm.KindTPM, Purpose: hsm.PurposeMigrate, Owner: c.root.id(), Public: public, Sealed: private,
	}}
}

// Parent is the storage root key.
func (m *Module) Parent(ctx context.Context) ([]byte, error) {
	public, err := do(ctx, m, nil, func(c *chip) ([]byte, error) { return bytes.Clone(c.root.public), nil })
	if err != nil {
		return nil, fmt.Errorf("read storage root key: %w", err)
	}
	return public, nil
}

// Duplicate wraps a key to another chip's storage root key.
func (m *Module) Duplicate(ctx context.Context, key hsm.Blob, parent, approval []byte) ([]byte, error) {
	k, err := decodeMigratable(key)
	if err != nil {
		if item, other := hsm.Decode(key); other == nil && item.Kind == hsm.KindTPM && item.Purpose == hsm.PurposeKey {
			err = hsm.ErrStays
		}
		return nil, fmt.Errorf("duplicate key: %w", err)
	}
	if err := checkParent(k.authority, parent, approval); err != nil {
		return nil, fmt.Errorf("duplicate key: %w", err)
	}
	parent, approval = bytes.Clone(parent), bytes.Clone(approval)
	d, err := do(ctx, m, nil, func(c *chip) (duplicate, error) { return c.duplicate(k, parent, approval) })
	if err != nil {
		return nil, fmt.Errorf("duplicate key: %w", err)
	}
	defer d.wipe()
	return d.encode()
}

func (c *chip) duplicate(k migratableKey, parent, approval []byte) (duplicate, error) {
	if err := c.load(k.item); err != nil {
		return duplicate{}, err
	}
	s, err := c.startSession(tpm2.TPMSEPolicy)
	if err != nil {
		return duplicate{}, err
	}
	defer s.wipe()
	s.dir, s.last = encOut, true // the inner key comes out encrypted, and ends the session
	d, err := c.duplicateIn(s, k, parent, approval)
	if err != nil {
		c.flush(s.handle) // nothing else does: there are three places
		if is(err, tpm2.TPMRCPolicyFail, tpm2.TPMRCExpired) {
			return duplicate{}, fmt.Errorf("%w (%v)", hsm.ErrNotApproved, err)
		}
	}
	return d, err
}

// duplicateIn leads the session through the policy to TPM2_Duplicate.
func (c *chip) duplicateIn(s *session, k migratableKey, parent, approval []byte) (d duplicate, err error) {
	object := nameOf(k.item.Public)
	const noObject = 0 // the approval is of a parent, for any key
	_, _, err = c.ask(command{
		code: tpm2.TPMCCPolicyDuplicationSelect, handles: []entity{{handle: s.handle}},
		params: append(sized(sized(nil, object), nameOf(parent)), noObject),
	})
	if err != nil {
		return d, fmt.Errorf("name the other chip: %w", err)
	}
	if err := c.policyAuthorize(s, k.authority, migrateGrant(parent), approval); err != nil {
		return d, fmt.Errorf("show the approval: %w", err)
	}
	to, err := c.loadPublic(parent, tpm2.TPMRHNull)
	if badParameter(err) {
		return d, fmt.Errorf("%w: its storage key is none (%v)", hsm.ErrNotApproved, err)
	}
	if err != nil {
		return d, fmt.Errorf("load the other chip's storage root key: %w", err)
	}
	defer c.flush(to)
	_, out, err := c.ask(command{ // TPM2_Duplicate (Part 3, 13.1); the chip draws the inner key
		code: tpm2.TPMCCDuplicate, handles: []entity{c.loaded.entity(), {to, nameOf(parent)}}, auth: s,
		params: append(sized(nil, nil), innerCipher()...),
	})
	if err != nil {
		return d, err
	}
	d.public = k.item.Public
	for _, part := range []*[]byte{&d.inner, &d.private, &d.seed} {
		if *part, out, err = unsized(out); err != nil {
			return d, err
		}
	}
	if len(out) != 0 || len(d.inner) != cfbKeySize {
		return d, errResponse
	}
	return d, nil
}

// Import takes in a key that Duplicate wrapped to this chip.
func (m *Module) Import(ctx context.Context, authority crypto.PublicKey, dup []byte) (hsm.Blob, error) {
	point, err := pointOf(authority)
	if err != nil {
		return nil, fmt.Errorf("import key: %w", err)
	}
	d, err := decodeDuplicate(bytes.Clone(dup))
	if err != nil {
		return nil, fmt.Errorf("import key: %w", err)
	}
	if !migratableArea(point).fits(d.public) {
		return nil, fmt.Errorf("import key: %w: it is not under the authority of this fleet, or another kind of key", hsm.ErrBlob)
	}
	b, err := do(ctx, m, hsm.NewSecret(d.inner), func(c *chip) (hsm.Blob, error) { return c.importKey(point, d) })
	if err != nil {
		return nil, fmt.Errorf("import key: %w", err)
	}
	return b, nil
}

func (c *chip) importKey(authority []byte, d duplicate) (hsm.Blob, error) {
	wrapped := hsm.Wrapped{Public: d.public, Duplicate: d.private, Seed: d.seed}
	private, err := c.importUnder(encIn, d.inner, wrapped, innerCipher())
	if err != nil {
		return nil, err
	}
	k := c.migratable(authority, d.public, private)
	if err := c.load(k.item); err != nil { // only this shows that key and public part are a pair
		return nil, err
	}
	return k.encode()
}
