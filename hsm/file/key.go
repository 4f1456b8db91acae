package file

// Signing keys: ECDSA P-256, the scalar sealed in the blob, in memory while a
// Signer is open.

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/kagimori/kagimori/hsm"
)

// NewKey makes an ECDSA P-256 key. Its point is in the blob, in clear.
func (m *Module) NewKey(ctx context.Context) (hsm.Blob, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	scalar, err := key.Bytes()
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	defer clear(scalar)
	point, err := key.PublicKey.Bytes()
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	b, err := m.wrap(ctx, hsm.PurposeKey, point, scalar)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return b, nil
}

// Signer takes a key into use.
func (m *Module) Signer(ctx context.Context, blob hsm.Blob) (hsm.Signer, error) {
	scalar, point, err := m.unwrap(ctx, hsm.PurposeKey, blob)
	if err != nil {
		return nil, fmt.Errorf("open key: %w", err)
	}
	defer scalar.Wipe()
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar.Bytes())
	if err != nil {
		return nil, fmt.Errorf("open key: %w: %w", hsm.ErrBlob, err)
	}
	if p, err := key.PublicKey.Bytes(); err != nil || !bytes.Equal(p, point) {
		return nil, fmt.Errorf("open key: %w: its halves do not fit", hsm.ErrBlob)
	}
	s := &signer{module: m, public: &key.PublicKey}
	s.key.Store(key)
	return s, nil
}

type signer struct {
	module *Module
	public *ecdsa.PublicKey
	key    atomic.Pointer[ecdsa.PrivateKey] // nil after Close
}

func (s *signer) Public() crypto.PublicKey { return s.public }

// Sign makes an ASN.1 signature of a SHA-256 digest.
func (s *signer) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := hsm.CheckDigest(digest, opts); err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	s.module.mu.RLock()
	defer s.module.mu.RUnlock()
	key := s.key.Load()
	if s.module.closed || key == nil {
		return nil, fmt.Errorf("sign: %w", hsm.ErrClosed)
	}
	sig, err := key.Sign(random, digest, opts)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return sig, nil
}

// Close forgets the key; the blob opens again.
func (s *signer) Close() error {
	s.key.Store(nil)
	return nil
}
