package file

// The keyring keeps the root key, from which all others come, under the device
// secret and, if one is set, a passphrase. Another passphrase means another
// keyring around the same root key. Fixed size, big endian:
//
//	magic 8 | version 1 | guard 1 | Argon2id 21 | device secret's id 32 |
//	nonce 24 | XChaCha20-Poly1305 box of the root key 48 |
//	HMAC-SHA256 of all before, by the device secret 32
//
// guard is 0 (no passphrase, the parameters are zero) or 1. What is before the
// nonce is the box's associated data. The MAC tells damage from a wrong
// passphrase. Without a keyring the device secret is the root key.

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"

	"github.com/kagimori/kagimori/hsm"
)

const (
	keyringMagic   = "KGKEYRNG"
	keyringVersion = 1
	keyringHead    = len(keyringMagic) + 2 + argonSize + hsm.OwnerSize
	keyringBox     = secretSize + hsm.BoxOverhead
	keyringSize    = keyringHead + hsm.BoxNonceSize + keyringBox + sha256.Size
)

// keyring is the decoded file.
type keyring struct {
	guarded bool
	argon   argon // zero if not guarded
	secret  [hsm.OwnerSize]byte
	nonce   [hsm.BoxNonceSize]byte
	box     [keyringBox]byte
	sum     [sha256.Size]byte
}

// newKeyring wraps the root key; a nil passphrase is none.
func newKeyring(root, secret, passphrase *hsm.Secret) (*keyring, error) {
	id, err := secretID(secret)
	if err != nil {
		return nil, err
	}
	k := &keyring{guarded: passphrase != nil, secret: id}
	if k.guarded {
		k.argon = newArgon()
	}
	rand.Read(k.nonce[:])
	kek, err := k.kek(secret, passphrase)
	if err != nil {
		return nil, err
	}
	defer kek.Wipe()
	if _, err := hsm.SealBox(kek, k.box[:0], k.nonce[:], root.Bytes(), k.head()); err != nil {
		return nil, err
	}
	k.sum, err = k.mac(secret)
	return k, err
}

// open gives the root key. Another device secret is hsm.ErrReplaced, damage
// hsm.ErrBlob, a missing or wrong passphrase hsm.ErrPassphrase.
func (k *keyring) open(secret *hsm.Secret, passphrase func() (*hsm.Secret, error)) (*hsm.Secret, error) {
	if id, err := secretID(secret); err != nil || id != k.secret {
		return nil, errors.Join(err, fmt.Errorf("%w: the keyring was made with another device secret; put that one back", hsm.ErrReplaced))
	}
	if sum, err := k.mac(secret); err != nil || !hmac.Equal(sum[:], k.sum[:]) {
		return nil, errors.Join(err, fmt.Errorf("%w: the keyring is damaged; put a copy of it back", hsm.ErrBlob))
	}
	var p *hsm.Secret
	if k.guarded {
		var err error
		if p, err = passphrase(); err != nil {
			return nil, err
		}
		defer p.Wipe()
	}
	kek, err := k.kek(secret, p)
	if err != nil {
		return nil, err
	}
	defer kek.Wipe()
	root, err := hsm.OpenBox(kek, k.nonce[:], k.box[:], k.head())
	if errors.Is(err, hsm.ErrBox) {
		err = fmt.Errorf("%w: %w", hsm.ErrPassphrase, hsm.ErrWrongPassphrase)
	}
	if err != nil {
		return nil, err
	}
	return hsm.NewSecret(root), nil
}

// kek is HKDF-SHA256 over Argon2id's result, if there is one, and the device
// secret.
func (k *keyring) kek(secret, passphrase *hsm.Secret) (*hsm.Secret, error) {
	ikm := make([]byte, 0, 2*secretSize)
	if k.guarded {
		s := k.argon.stretch(passphrase)
		defer s.Wipe()
		ikm = append(ikm, s.Bytes()...)
	}
	ikm = append(ikm, secret.Bytes()...)
	defer clear(ikm)
	key, err := hkdf.Key(sha256.New, ikm, []byte("kagimori keyring/1"), "kek", hsm.BoxKeySize)
	if err != nil {
		return nil, fmt.Errorf("derive keyring's key: %w", err)
	}
	return hsm.NewSecret(key), nil
}

func (k *keyring) mac(secret *hsm.Secret) (sum [sha256.Size]byte, err error) {
	key, err := hkdf.Key(sha256.New, secret.Bytes(), []byte("kagimori keyring/1"), "mac", sha256.Size)
	if err != nil {
		return sum, fmt.Errorf("derive keyring's key: %w", err)
	}
	defer clear(key)
	h := hmac.New(sha256.New, key)
	h.Write(k.head())
	h.Write(k.nonce[:])
	h.Write(k.box[:])
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// secretID names a device secret and reveals nothing of it.
func secretID(secret *hsm.Secret) (id [hsm.OwnerSize]byte, err error) {
	b, err := hkdf.Key(sha256.New, secret.Bytes(), []byte("kagimori keyring/1"), "id", hsm.OwnerSize)
	if err != nil {
		return id, fmt.Errorf("name device secret: %w", err)
	}
	return [hsm.OwnerSize]byte(b), nil
}

func (k *keyring) head() []byte {
	b := make([]byte, 0, keyringSize)
	b = append(append(b, keyringMagic...), keyringVersion)
	if k.guarded {
		b = append(append(b, 1), k.argon.encode()...)
	} else {
		b = append(append(b, 0), make([]byte, argonSize)...)
	}
	return append(b, k.secret[:]...)
}

func (k *keyring) encode() []byte {
	b := append(k.head(), k.nonce[:]...)
	b = append(b, k.box[:]...)
	return append(b, k.sum[:]...)
}

// decodeKeyring takes exactly what encode makes; all else is hsm.ErrBlob.
func decodeKeyring(b []byte) (*keyring, error) {
	switch {
	case len(b) < len(keyringMagic)+1 || string(b[:len(keyringMagic)]) != keyringMagic:
		return nil, fmt.Errorf("%w: no keyring", hsm.ErrBlob)
	case b[len(keyringMagic)] != keyringVersion:
		return nil, fmt.Errorf("%w: a keyring of version %d, this program knows %d", hsm.ErrBlob, b[len(keyringMagic)], keyringVersion)
	case len(b) != keyringSize:
		return nil, fmt.Errorf("%w: a keyring of %d bytes, it must have %d", hsm.ErrBlob, len(b), keyringSize)
	}
	k := &keyring{}
	rest := b[len(keyringMagic)+1:]
	k.guarded, rest = rest[0] == 1, rest[1:]
	if k.guarded {
		var err error
		if k.argon, err = decodeArgon(rest[:argonSize]); err != nil {
			return nil, err
		}
	}
	rest = rest[argonSize:]
	rest = rest[copy(k.secret[:], rest):]
	rest = rest[copy(k.nonce[:], rest):]
	rest = rest[copy(k.box[:], rest):]
	copy(k.sum[:], rest)
	if !bytes.Equal(k.encode(), b) {
		return nil, fmt.Errorf("%w: a keyring with bytes that must be zero", hsm.ErrBlob)
	}
	return k, nil
}

// keyring reads the keyring of a place, nil if there is none.
func (p place) keyring() (*keyring, error) {
	path := p.path("keyring")
	b, err := readSmall(path, keyringSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	k, err := decodeKeyring(b)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return k, nil
}
