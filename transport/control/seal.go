// Secrets on the socket, sealed.

package control

import (
	"crypto/ecdh"
	"crypto/hpke"
	"encoding/base64"
	"fmt"

	"github.com/kagimori/kagimori/transport"
)

// Secrets cross the socket only sealed to a key that the reader made for this
// one exchange: HPKE (RFC 9180) with X25519, HKDF-SHA256, ChaCha20-Poly1305.
// What records the socket, a debug log or a core of a proxy in between, learns
// nothing. Against a false daemon the guard is the directory that the socket
// is in, not this.

// sealInfo separates this use of the keys from every other (RFC 9180 §8.1);
// the label follows it.
const sealInfo = "com.kagimori.control/1 "

// A Reader holds an ephemeral key to which the other side seals secrets. A
// verb passes Key in its parameters (by convention `reply_key`) and opens what
// comes back; the daemon keeps one for each connection.
type Reader struct{ key hpke.PrivateKey }

// NewReader makes a fresh key.
func NewReader() (*Reader, error) {
	key, err := kem().GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("make reply key: %w", err)
	}
	return &Reader{key: key}, nil
}

// Key is the public key in base64, as it goes into parameters.
func (r *Reader) Key() string {
	return base64.StdEncoding.EncodeToString(r.key.PublicKey().Bytes())
}

// Open returns a secret that SealTo sealed to this reader under the same label.
func (r *Reader) Open(label, sealed string) (transport.Sensitive, error) {
	if len(sealed) > base64.StdEncoding.EncodedLen(MaxSecret+256) {
		return nil, Problemf(BadInput, "", "sealed %s is too long", label)
	}
	data, err := base64.StdEncoding.Strict().DecodeString(sealed)
	if err != nil {
		return nil, Problemf(BadInput, "", "sealed %s: %w", label, err)
	}
	secret, err := hpke.Open(r.key, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), []byte(sealInfo+label), data)
	if err != nil {
		return nil, Problemf(BadInput, "", "sealed %s does not open: not sealed to this connection's key under this label", label)
	}
	return secret, nil
}

// SealTo seals secret, at most MaxSecret bytes, to a Reader's Key. The label
// names the secret and is authenticated: one sealed as "passphrase" does not
// open as "code".
func SealTo(key, label string, secret transport.Sensitive) (string, error) {
	if len(secret) > MaxSecret {
		return "", Problemf(BadInput, "", "%s has %d bytes, the limit is %d", label, len(secret), MaxSecret)
	}
	data, err := base64.StdEncoding.Strict().DecodeString(key)
	if err != nil {
		return "", Problemf(BadInput, "", "key for %s: %w", label, err)
	}
	public, err := kem().NewPublicKey(data)
	if err != nil {
		return "", Problemf(BadInput, "", "key for %s: %w", label, err)
	}
	sealed, err := hpke.Seal(public, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), []byte(sealInfo+label), secret)
	if err != nil {
		return "", Problemf(BadInput, "", "seal %s: %w", label, err)
	}
	return base64.StdEncoding.EncodeToString(sealed), nil
}

func kem() hpke.KEM { return hpke.DHKEM(ecdh.X25519()) }
