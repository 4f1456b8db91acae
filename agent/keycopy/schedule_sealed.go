package keycopy

// What modes direct and kek have in place of CPace (docs/keycopy.md, figures 4 and
// 5 of the patent): the operator code itself crosses the wire, sealed under the
// security code, and in kek a key-encryption key as well. Both keys serve one
// message each, so the nonce is zero.

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/kagimori/kagimori/transport"
)

const (
	// paddedCode is how many bytes an operator code has when it is sealed.
	paddedCode = 32
	// sealedSize is that of a sealed code or KEK, in bytes.
	sealedSize = paddedCode + chacha20poly1305.Overhead
)

var errSealed = errors.New("it does not open")

// codeKey is X of direct, and of kek's confirm keys: HMAC-SHA512(scp("code"), OC).
func (k *fleetKeys) codeKey(code *OperatorCode) []byte {
	m := hmac.New(sha512.New, k.code)
	m.Write(code.digits.Bytes())
	return m.Sum(nil)
}

// padded is the code, zeros after it. The caller wipes it.
func (c *OperatorCode) padded() []byte {
	out := make([]byte, paddedCode)
	copy(out, c.digits.Bytes())
	return out
}

// sealCode encrypts the operator code; hello is HELLO less sealed code and MAC.
func (k *fleetKeys) sealCode(code *OperatorCode, hello []byte) ([]byte, error) {
	plain := code.padded()
	defer clear(plain)
	h := sha256.Sum256(hello)
	return wrap(k.codeWrap, plain, h[:])
}

// openCode decrypts it, padded. The caller wipes it.
func (k *fleetKeys) openCode(sealed, hello []byte) ([]byte, error) {
	h := sha256.Sum256(hello)
	return unwrap(k.codeWrap, sealed, h[:])
}

// sealKEK encrypts the key-encryption key for the run of this transcript.
func (k *fleetKeys) sealKEK(kek []byte, transcript [sha256.Size]byte) ([]byte, error) {
	return wrap(k.kekWrap, kek, transcript[:])
}

// openKEK decrypts it. The caller wipes it.
func (k *fleetKeys) openKEK(sealed []byte, transcript [sha256.Size]byte) ([]byte, error) {
	return unwrap(k.kekWrap, sealed, transcript[:])
}

func wrap(key, plain, ad []byte) ([]byte, error) {
	aead, err := chacha20poly1305.New(key)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return aead.Seal(nil, make([]byte, aead.NonceSize()), plain, ad), nil
}

func unwrap(key, sealed, ad []byte) ([]byte, error) {
	aead, err := chacha20poly1305.New(key)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	plain, err := aead.Open(nil, make([]byte, aead.NonceSize()), sealed, ad)
	if err != nil || len(plain) != paddedCode {
		return nil, errSealed
	}
	return plain, nil
}

// takeKEK derives all but the confirm keys from the key-encryption key: X is KEK
// ‖ 0^32. It keeps kek, until discard.
func (k *runKeys) takeKEK(ch *transport.KeycopyChannel, kek []byte, fleet *fleetKeys) error {
	k.kek = kek
	x := append(bytes.Clone(kek), make([]byte, keySize)...)
	defer clear(x)
	return k.derive(ch, x, fleet, k.labels())
}
