package file

// Secrets behind a PIN. Inside the blob, which is sealed as any other, lies
// what opens under the PIN only:
//
//	public: Argon2id's parameters | sealed: nonce, XChaCha20-Poly1305 box
//
// So a blob that somebody altered is told apart from a wrong PIN, and whoever
// has the blob but not the root key cannot try PINs at all. Wrong ones are
// counted in a file beside the device secret:
//
//	magic 8 | count 4 | HMAC-SHA256 of all before 32
//
// It holds back whoever asks the daemon, not whoever can write the disk.

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/kagimori/kagimori/hsm"
)

const (
	// maxTries wrong PINs lock; one is forgotten after forgetTry of run time.
	maxTries  = 32
	forgetTry = 2 * time.Hour

	triesMagic = "KGTRIES1"
	triesSize  = len(triesMagic) + 4 + sha256.Size
)

// tries counts wrong PINs.
type tries struct {
	mu     sync.Mutex // held while a PIN is tried: one at a time
	wrong  uint32     // guarded by mu; what this process knows, the file may know more
	forget time.Time  // guarded by mu; the last time that one was forgotten or counted
}

// SealPIN keeps 1 to hsm.MaxSealed bytes behind a PIN.
func (m *Module) SealPIN(ctx context.Context, secret, pin *hsm.Secret) (hsm.Blob, error) {
	if err := errors.Join(hsm.CheckSealed(secret), hsm.CheckPIN(pin)); err != nil {
		return nil, fmt.Errorf("seal behind PIN: %w", err)
	}
	m.tries.mu.Lock() // Argon2id's memory
	defer m.tries.mu.Unlock()
	a := newArgon()
	key, err := m.pinKey(ctx, a, pin)
	if err != nil {
		return nil, fmt.Errorf("seal behind PIN: %w", err)
	}
	defer key.Wipe()
	nonce := make([]byte, hsm.BoxNonceSize)
	rand.Read(nonce)
	public := a.encode()
	inner, err := hsm.SealBox(key, nonce, nonce, secret.Bytes(), public)
	var blob hsm.Blob
	if err == nil {
		blob, err = m.wrap(ctx, hsm.PurposePIN, public, inner)
	}
	if err != nil {
		return nil, fmt.Errorf("seal behind PIN: %w", err)
	}
	return blob, nil
}

// UnsealPIN opens what SealPIN kept. A right PIN clears the count of wrong ones.
func (m *Module) UnsealPIN(ctx context.Context, sealed hsm.Blob, pin *hsm.Secret) (secret *hsm.Secret, err error) {
	if err := hsm.CheckPIN(pin); err != nil {
		return nil, fmt.Errorf("unseal by PIN: %w", err)
	}
	inner, public, err := m.unwrap(ctx, hsm.PurposePIN, sealed)
	if err != nil {
		return nil, fmt.Errorf("unseal by PIN: %w", err)
	}
	defer inner.Wipe()
	a, err := decodeArgon(public)
	if err == nil && inner.Len() < hsm.BoxNonceSize {
		err = fmt.Errorf("%w: bad sealed part", hsm.ErrBlob)
	}
	if err != nil {
		return nil, fmt.Errorf("unseal by PIN: %w", err)
	}
	m.tries.mu.Lock()
	defer m.tries.mu.Unlock()
	err = m.place.locked(func() error {
		secret, err = m.tryPIN(ctx, a, inner.Bytes(), pin)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("unseal by PIN: %w", err)
	}
	return secret, nil
}

// tryPIN is one try. m.tries.mu and the place are locked. A wrong PIN is on
// the disk before anybody is told that it was wrong.
func (m *Module) tryPIN(ctx context.Context, a argon, inner []byte, pin *hsm.Secret) (*hsm.Secret, error) {
	wrong, err := m.wrongPINs(ctx)
	if err != nil {
		return nil, err
	}
	if wrong >= maxTries {
		return nil, fmt.Errorf("%w: %d wrong PINs; one more try is free after %v of run time", hsm.ErrLockout, wrong,
			(forgetTry - time.Since(m.tries.forget)).Round(time.Minute))
	}
	key, err := m.pinKey(ctx, a, pin)
	if err != nil {
		return nil, err
	}
	defer key.Wipe()
	plain, err := hsm.OpenBox(key, inner[:hsm.BoxNonceSize], inner[hsm.BoxNonceSize:], a.encode())
	if err != nil && !errors.Is(err, hsm.ErrBox) {
		return nil, err
	}
	ctx = context.WithoutCancel(ctx) // whoever leaves now is counted, too
	if err != nil {
		m.tries.wrong = wrong + 1 // counts here even if the disk is full
		if wrong == 0 {
			m.tries.forget = time.Now()
		}
		if err := m.writeTries(ctx, m.tries.wrong); err != nil {
			return nil, fmt.Errorf("count a wrong PIN: %w", err)
		}
		return nil, fmt.Errorf("%w; wrong ones until this key storage locks: %d", hsm.ErrPIN, maxTries-m.tries.wrong)
	}
	if wrong > 0 {
		m.tries.wrong = 0
		// A count that cannot be cleared is too high: that costs tries, no more.
		_ = m.writeTries(ctx, 0)
	}
	return hsm.NewSecret(plain), nil
}

// wrongPINs is how many wrong PINs are not forgotten yet.
func (m *Module) wrongPINs(ctx context.Context) (uint32, error) {
	kept, err := m.readTries(ctx)
	if err != nil {
		return 0, err
	}
	wrong := max(kept, m.tries.wrong)
	if past := uint32(time.Since(m.tries.forget) / forgetTry); past > 0 {
		m.tries.forget = m.tries.forget.Add(time.Duration(past) * forgetTry)
		wrong -= min(past, wrong)
		m.tries.wrong = wrong
		if wrong < kept {
			err = m.writeTries(ctx, wrong)
		}
	}
	return wrong, err
}

func (m *Module) pinKey(ctx context.Context, a argon, pin *hsm.Secret) (*hsm.Secret, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	stretched := a.stretch(pin)
	defer stretched.Wipe()
	return m.mac(ctx, hsm.PurposePIN, "pin", stretched.Bytes())
}

// readTries reads the count; no file is no wrong PIN.
func (m *Module) readTries(ctx context.Context) (uint32, error) {
	path := m.place.path("tries")
	b, err := readSmall(path, triesSize)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("count wrong PINs: %w", err)
	}
	if len(b) == triesSize {
		n := binary.BigEndian.Uint32(b[len(triesMagic):])
		want, err := m.encodeTries(ctx, n)
		if err != nil {
			return 0, err
		}
		if hmac.Equal(b, want) {
			return n, nil
		}
	}
	return 0, fmt.Errorf("%w: %s, the count of wrong PINs, is damaged; remove it after you have found out why", hsm.ErrBlob, path)
}

func (m *Module) writeTries(ctx context.Context, n uint32) error {
	b, err := m.encodeTries(ctx, n)
	if err != nil {
		return err
	}
	return hsm.WriteFile(m.place.path("tries"), b, 0o600)
}

func (m *Module) encodeTries(ctx context.Context, n uint32) ([]byte, error) {
	b := binary.BigEndian.AppendUint32([]byte(triesMagic), n)
	sum, err := m.mac(ctx, hsm.PurposePIN, "tries", b)
	if err != nil {
		return nil, err
	}
	return append(b, sum.Bytes()...), nil
}
