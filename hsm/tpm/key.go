package tpm

// Signing keys: made in the chip, never outside it. A Signer holds no place in
// the chip for good: any number of them share the one that load keeps.

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"sync/atomic"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
)

// signTimeout bounds one Sign, waiting for other users of the chip included:
// crypto.Signer takes no context.
const signTimeout = 2 * commandTimeout

// NewKey makes an ECDSA P-256 key in the chip.
func (m *Module) NewKey(ctx context.Context) (hsm.Blob, error) {
	b, err := do(ctx, m, nil, func(c *chip) (hsm.Blob, error) { return c.create(hsm.PurposeKey, nil) })
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return b, nil
}

// Signer takes a key into use; that the chip can load it is known when it
// returns.
func (m *Module) Signer(ctx context.Context, key hsm.Blob) (hsm.Signer, error) {
	item, area, err := decodeKey(key)
	if err != nil {
		return nil, fmt.Errorf("open key: %w", err)
	}
	point, err := area.pointIn(item.Public)
	if err != nil {
		return nil, fmt.Errorf("open key: %w: %v", hsm.ErrBlob, err)
	}
	if _, err := do(ctx, m, nil, func(c *chip) (struct{}, error) { return struct{}{}, c.load(item) }); err != nil {
		return nil, fmt.Errorf("open key: %w", err)
	}
	return &signer{module: m, item: item, public: point}, nil
}

// decodeKey takes apart a key of either sort.
func decodeKey(b hsm.Blob) (hsm.Item, area, error) {
	if migratable(b) {
		k, err := decodeMigratable(b)
		return k.item, k.area(), err
	}
	item, err := decode(b, hsm.PurposeKey)
	return item, template(hsm.PurposeKey), err
}

type signer struct {
	module *Module
	item   hsm.Item
	public *ecdsa.PublicKey
	closed atomic.Bool
}

func (s *signer) Public() crypto.PublicKey { return s.public }

// Sign makes an ASN.1 signature of a SHA-256 digest. The chip takes its own
// random numbers.
func (s *signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := hsm.CheckDigest(digest, opts); err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	if s.closed.Load() {
		return nil, fmt.Errorf("sign: %w", hsm.ErrClosed)
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), signTimeout, errSignTimeout)
	defer cancel()
	sum := [32]byte(digest)
	sig, err := do(ctx, s.module, nil, func(c *chip) ([]byte, error) { return c.sign(s.item, sum[:]) })
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return sig, nil
}

var errSignTimeout = fmt.Errorf("%w: not in %v", hsm.ErrTimeout, signTimeout)

// Close lets the chip forget the key, if it is the one that is loaded.
func (s *signer) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), signTimeout, errSignTimeout)
	defer cancel()
	err := s.module.submit(ctx, func(c *chip) {
		if c.loaded.handle != 0 && same(c.loaded.item, s.item) {
			c.unload()
		}
	})
	if errors.Is(err, hsm.ErrClosed) {
		return nil // closing the module did it
	}
	return err
}

func (c *chip) sign(item hsm.Item, digest []byte) ([]byte, error) {
	if err := c.load(item); err != nil {
		return nil, err
	}
	auth, err := c.auth(plain) // digest and signature are public
	if err != nil {
		return nil, err
	}
	params := append(sized(nil, digest), keysOwn...)
	params = words(params, tpm2.TPMSTHashCheck) // no proof that the digest was made here:
	params = sized(append(params, permanent(tpm2.TPMRHNull).name...), nil)
	_, out, err := c.ask(command{code: tpm2.TPMCCSign, handles: []entity{c.loaded.entity()}, auth: auth, params: params})
	if err != nil {
		return nil, err
	}
	return decodeSignature(out)
}

// decodeSignature reads a TPMT_SIGNATURE by ECDSA with SHA-256.
func decodeSignature(b []byte) ([]byte, error) {
	be := binary.BigEndian
	if len(b) < 4 || be.Uint16(b) != uint16(tpm2.TPMAlgECDSA) || be.Uint16(b[2:]) != uint16(tpm2.TPMAlgSHA256) {
		return nil, errors.New("the TPM made another kind of signature")
	}
	r, rest, err := unsized(b[4:])
	if err != nil {
		return nil, err
	}
	s, err := only(rest)
	if err != nil {
		return nil, err
	}
	return der(r, s)
}

// der is Ecdsa-Sig-Value (RFC 3279, 2.2.3).
func der(r, s []byte) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(new(big.Int).SetBytes(r))
		b.AddASN1BigInt(new(big.Int).SetBytes(s))
	})
	return b.Bytes()
}
