package tpm

import (
	"context"
	"crypto"
	"crypto/rand"
	"log/slog"
	"time"

	"github.com/kagimori/kagimori/hsm"
)

// OpenWithin is Open with another deadline for commands.
func OpenWithin(ctx context.Context, path string, limit time.Duration, log *slog.Logger) (*Module, error) {
	c, err := configFor(path, log)
	if err != nil {
		return nil, err
	}
	c.limit = limit
	return open(ctx, c)
}

// OpenUnorderly is Open of a module that never sends TPM2_Shutdown.
func OpenUnorderly(ctx context.Context, path string, log *slog.Logger) (*Module, error) {
	c, err := configFor(path, log)
	if err != nil {
		return nil, err
	}
	c.skipOrderly = true
	return open(ctx, c)
}

// OpenNode opens a module on what stands in for a device node.
func OpenNode(ctx context.Context, node func() (fd int, err error), limit time.Duration, log *slog.Logger) (*Module, error) {
	return open(ctx, config{dial: deviceDialer(node), level: hsm.LevelTPM, limit: limit, log: log})
}

// Decode is what a blob meets before the chip is asked.
func Decode(b hsm.Blob, p hsm.Purpose) (err error) {
	switch p {
	case hsm.PurposeCounter:
		_, _, err = decodeCounter(b)
	case hsm.PurposeBoot:
		_, err = decodeBoot(b)
	case hsm.PurposePIN:
		_, err = decodePIN(b)
	case hsm.PurposeMigrate:
		_, err = decodeMigratable(b)
	default:
		_, err = decode(b, p)
	}
	return err
}

// UnsealUnchecked is UnsealBoot without a look at the approval before the chip's.
func UnsealUnchecked(ctx context.Context, m *Module, b hsm.Blob, a hsm.Approval) (*hsm.Secret, error) {
	blob, err := decodeBoot(b)
	if err != nil {
		return nil, err
	}
	return do(ctx, m, nil, func(c *chip) (*hsm.Secret, error) { return c.unsealBoot(blob, []hsm.Approval{a}) })
}

// Node opens a device node, Direct tells one without a resource manager.
var (
	Node   = openNode
	Direct = direct
)

// PINAuth is the auth value that a PIN becomes.
var PINAuth = pinAuth

// DuplicateUnchecked is Duplicate without a look at the approval before the chip's.
func DuplicateUnchecked(ctx context.Context, m *Module, key hsm.Blob, parent, approval []byte) ([]byte, error) {
	k, err := decodeMigratable(key)
	if err != nil {
		return nil, err
	}
	d, err := do(ctx, m, nil, func(c *chip) (duplicate, error) { return c.duplicate(k, parent, approval) })
	if err != nil {
		return nil, err
	}
	return d.encode()
}

// DuplicateItem is DuplicateUnchecked of any object.
func DuplicateItem(ctx context.Context, m *Module, item hsm.Item, authority crypto.Signer, parent, approval []byte) ([]byte, error) {
	point, err := pointOf(authority.Public())
	if err != nil {
		return nil, err
	}
	d, err := do(ctx, m, nil, func(c *chip) (duplicate, error) {
		return c.duplicate(migratableKey{item: item, authority: point}, parent, approval)
	})
	if err != nil {
		return nil, err
	}
	return d.encode()
}

// SignParent is ApproveParent of anything.
func SignParent(authority crypto.Signer, parent []byte) []byte {
	digest := migrateGrant(parent).digest()
	sig, err := authority.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		panic(err)
	}
	return sig
}

// Duplicate is what travels, taken apart.
type Duplicate struct{ Inner, Public, Private, Seed []byte }

// OpenDuplicate decodes what travels.
func OpenDuplicate(b []byte) (Duplicate, error) {
	d, err := decodeDuplicate(b)
	return Duplicate{d.inner, d.public, d.private, d.seed}, err
}

// EncodeDuplicate is the other way.
func EncodeDuplicate(d Duplicate) ([]byte, error) {
	return duplicate{d.Inner, d.Public, d.Private, d.Seed}.encode()
}

// Sized is a TPM2B.
func Sized(b []byte) []byte { return sized(nil, b) }
