package tpm

import (
	"context"
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
