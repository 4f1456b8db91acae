// Package file keeps keys under a device secret: 32 random bytes in a 0600
// file beside the state, or a systemd credential. It is the choice for terminals
// without a chip. START HERE:
//
//   - open.go: where the root key comes from, with or without a passphrase
//     (keyring.go, argon.go), a file or a credential (secret.go, credential.go)
//   - file.go, key.go: what is kept under it
//   - counter.go, pin.go: files that count
//   - health.go: what it protects, and what not
//
// What it protects: a copy of the state, a backup, a card whose device secret
// is elsewhere. What it does not protect: a stolen terminal, unless a
// passphrase is set. Level and Health say so.
package file

import (
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/kagimori/kagimori/hsm"
)

// Module is a device secret in use.
type Module struct {
	id     [hsm.OwnerSize]byte // names the root key, reveals nothing of it
	source source
	place  place
	tries  tries

	mu      sync.RWMutex // guards all below: Close wipes it
	closed  bool
	guarded bool // a passphrase is set
	root    *hsm.Secret
	keys    map[hsm.Purpose]*hsm.Secret // one key per purpose
	macs    map[hsm.Purpose]*hsm.Secret // and one for what is only authenticated
}

var (
	_ hsm.Module      = (*Module)(nil)
	_ hsm.Counters    = (*Module)(nil)
	_ hsm.PINs        = (*Module)(nil)
	_ hsm.Examiner    = (*Module)(nil)
	_ hsm.Passphrases = (*Module)(nil)
)

// newModule makes the keys of every purpose out of the root key, which it takes
// over (HKDF, RFC 5869, SHA-256). The labels are part of the format of blobs.
func newModule(root *hsm.Secret, from source, at place) (*Module, error) {
	prk, err := hkdf.Extract(sha256.New, root.Bytes(), []byte("kagimori hsm file/1"))
	if err != nil {
		return nil, fmt.Errorf("derive keys: %w", err)
	}
	defer clear(prk)
	m := &Module{source: from, place: at, root: root, keys: map[hsm.Purpose]*hsm.Secret{}, macs: map[hsm.Purpose]*hsm.Secret{}}
	m.tries.forget = time.Now()
	id, err := hkdf.Expand(sha256.New, prk, "id", hsm.OwnerSize)
	if err != nil {
		return nil, fmt.Errorf("derive keys: %w", err)
	}
	m.id = [hsm.OwnerSize]byte(id)
	for _, k := range []struct {
		to      map[hsm.Purpose]*hsm.Secret
		purpose hsm.Purpose
		label   string
	}{
		{m.keys, hsm.PurposeSeal, "seal"}, {m.keys, hsm.PurposeKey, "key"}, {m.keys, hsm.PurposeMAC, "mac"},
		{m.keys, hsm.PurposeCounter, "counter"}, {m.keys, hsm.PurposePIN, "pin"},
		{m.macs, hsm.PurposeCounter, "counter mac"}, {m.macs, hsm.PurposePIN, "pin mac"},
	} {
		key, err := hkdf.Expand(sha256.New, prk, k.label, hsm.BoxKeySize)
		if err != nil {
			return nil, fmt.Errorf("derive keys: %w", err)
		}
		k.to[k.purpose] = hsm.NewSecret(key)
	}
	return m, nil
}

// Level says how well keys are protected here.
func (m *Module) Level() hsm.Level { return hsm.LevelFile }

// Close wipes the keys. Signers of the module stop as well.
func (m *Module) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	m.root.Wipe()
	for _, keys := range []map[hsm.Purpose]*hsm.Secret{m.keys, m.macs} {
		for _, key := range keys {
			key.Wipe()
		}
	}
	return nil
}

// Seal wraps 1 to hsm.MaxSealed bytes.
func (m *Module) Seal(ctx context.Context, secret *hsm.Secret) (hsm.Blob, error) {
	if err := hsm.CheckSealed(secret); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return m.wrap(ctx, hsm.PurposeSeal, nil, secret.Bytes())
}

// Unseal opens what Seal wrapped.
func (m *Module) Unseal(ctx context.Context, sealed hsm.Blob) (*hsm.Secret, error) {
	secret, _, err := m.unwrap(ctx, hsm.PurposeSeal, sealed)
	if err != nil {
		return nil, fmt.Errorf("unseal: %w", err)
	}
	return secret, nil
}

// ImportMAC wraps a key of exactly hsm.MACKeySize bytes.
func (m *Module) ImportMAC(ctx context.Context, key *hsm.Secret) (hsm.Blob, error) {
	if err := hsm.CheckMACKey(key); err != nil {
		return nil, fmt.Errorf("import MAC key: %w", err)
	}
	return m.wrap(ctx, hsm.PurposeMAC, nil, key.Bytes())
}

// MAC is HMAC-SHA256 of message, of at most hsm.MaxMACMessage bytes: no more
// than a TPM takes, so that what works here works there.
func (m *Module) MAC(ctx context.Context, key hsm.Blob, message []byte) (*hsm.Secret, error) {
	if err := hsm.CheckMessage(message); err != nil {
		return nil, fmt.Errorf("compute MAC: %w", err)
	}
	k, _, err := m.unwrap(ctx, hsm.PurposeMAC, key)
	if err != nil {
		return nil, fmt.Errorf("compute MAC: %w", err)
	}
	defer k.Wipe()
	h := hmac.New(sha256.New, k.Bytes())
	h.Write(message)
	return hsm.NewSecret(h.Sum(nil)), nil
}

// wrap seals plain under the purpose's key, bound to everything before it.
func (m *Module) wrap(ctx context.Context, purpose hsm.Purpose, public, plain []byte) (hsm.Blob, error) {
	item := hsm.Item{Kind: hsm.KindFile, Purpose: purpose, Owner: m.id, Public: public}
	nonce := make([]byte, hsm.BoxNonceSize, hsm.BoxNonceSize+len(plain)+hsm.BoxOverhead)
	rand.Read(nonce) // 24 random bytes never repeat in practice
	err := m.use(ctx, func() (err error) {
		item.Sealed, err = hsm.SealBox(m.keys[purpose], nonce, nonce, plain, item.Header())
		return err
	})
	if err != nil {
		return nil, err
	}
	return item.Encode()
}

// unwrap opens a blob of that purpose, and lends its public part.
func (m *Module) unwrap(ctx context.Context, purpose hsm.Purpose, b hsm.Blob) (*hsm.Secret, []byte, error) {
	if err := m.use(ctx, func() error { return nil }); err != nil {
		return nil, nil, err
	}
	item, err := hsm.DecodeFor(b, hsm.KindFile, purpose)
	if err != nil {
		return nil, nil, err
	}
	if item.Owner != m.id {
		return nil, nil, fmt.Errorf("%w: put the device secret back that this state was made with", hsm.ErrReplaced)
	}
	if len(item.Sealed) < hsm.BoxNonceSize {
		return nil, nil, fmt.Errorf("%w: bad sealed part", hsm.ErrBlob)
	}
	nonce, box := item.Sealed[:hsm.BoxNonceSize], item.Sealed[hsm.BoxNonceSize:]
	var plain []byte
	err = m.use(ctx, func() (err error) {
		plain, err = hsm.OpenBox(m.keys[purpose], nonce, box, item.Header())
		return err
	})
	if errors.Is(err, hsm.ErrBox) {
		err = fmt.Errorf("%w: damaged or altered", hsm.ErrBlob)
	}
	if err != nil {
		return nil, nil, err
	}
	return hsm.NewSecret(plain), item.Public, nil
}

// mac is HMAC-SHA256 of a label and data, under the key of a purpose.
func (m *Module) mac(ctx context.Context, purpose hsm.Purpose, label string, data []byte) (sum *hsm.Secret, err error) {
	err = m.use(ctx, func() error {
		h := hmac.New(sha256.New, m.macs[purpose].Bytes())
		h.Write([]byte(label + "\x00"))
		h.Write(data)
		sum = hsm.NewSecret(h.Sum(nil))
		return nil
	})
	return sum, err
}

// use runs do while the keys stay, if ctx has not ended and the module is open.
func (m *Module) use(ctx context.Context, do func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return hsm.ErrClosed
	}
	return do()
}
