package transport

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/chacha20poly1305"
)

// Files that people carry are sealed under a passphrase that is made with them
// and shown once: Argon2id, then XChaCha20-Poly1305 with the header as
// associated data. A first line in clear says what a file is: bundle.go,
// recovery_file.go.

const (
	// Argon2id's cost for new files: 19 MiB fits the smallest board that we
	// know (OWASP's second choice). The passphrase has 125 random bits, so the
	// cost is a second line of defence. A file may ask for at most the limits.
	argonTime, argonMemory       = 2, 19 << 10 // passes, KiB
	maxArgonTime, maxArgonMemory = 8, 64 << 10

	sealedSaltSize, sealedNonceSize = 16, chacha20poly1305.NonceSizeX
	passphraseBits                  = 125
)

type sealedHeader struct {
	Time   uint32                `cbor:"1,keyasint"`
	Memory uint32                `cbor:"2,keyasint"` // KiB
	Salt   [sealedSaltSize]byte  `cbor:"3,keyasint"`
	Nonce  [sealedNonceSize]byte `cbor:"4,keyasint"`
}

type sealedFile struct {
	Header Raw    `cbor:"1,keyasint"`
	Sealed []byte `cbor:"2,keyasint"`
}

// errNotSealed is a file that is not one of these; errOpenSealed a passphrase
// that does not fit.
var errNotSealed, errOpenSealed = errors.New("not such a file"), errors.New("another passphrase")

// sealFile encodes and seals v behind a first line.
func sealFile(magic string, v any) (file []byte, passphrase Sensitive, err error) {
	plain, err := Marshal(v)
	if err != nil {
		return nil, nil, err
	}
	defer clear(plain)
	h := sealedHeader{Time: argonTime, Memory: argonMemory}
	rand.Read(h.Salt[:])
	rand.Read(h.Nonce[:])
	header, err := Marshal(h)
	if err != nil {
		return nil, nil, err
	}
	passphrase = newPassphrase()
	aead, err := h.aead(passphrase)
	if err != nil {
		return nil, nil, err
	}
	body, err := Marshal(sealedFile{Header: header, Sealed: aead.Seal(nil, h.Nonce[:], plain, header)})
	if err != nil {
		return nil, nil, err
	}
	return append([]byte(magic), body...), passphrase, nil
}

// openFile is the way back, into v, which has secrets after errors too. It
// fails with errNotSealed or errOpenSealed.
func openFile(magic string, file []byte, passphrase Sensitive, v any, limit int) error {
	body, ok := bytes.CutPrefix(file, []byte(magic))
	if !ok {
		return errNotSealed
	}
	var f sealedFile
	var h sealedHeader
	if err := Unmarshal(body, &f, limit); err != nil {
		return fmt.Errorf("%w (%w)", errNotSealed, err)
	}
	if err := Unmarshal(f.Header, &h, len(f.Header)); err != nil {
		return fmt.Errorf("%w (%w)", errNotSealed, err)
	}
	if h.Time < 1 || h.Time > maxArgonTime || h.Memory < 1<<10 || h.Memory > maxArgonMemory {
		return fmt.Errorf("%w (it asks for %d passes over %d KiB)", errNotSealed, h.Time, h.Memory)
	}
	typed := normalPassphrase(passphrase)
	defer typed.Wipe()
	aead, err := h.aead(typed)
	if err != nil {
		return err
	}
	plain, err := aead.Open(nil, h.Nonce[:], f.Sealed, f.Header)
	if err != nil {
		return errOpenSealed
	}
	defer clear(plain)
	if err := Unmarshal(plain, v, limit); err != nil {
		return fmt.Errorf("%w (%w)", errNotSealed, err)
	}
	return nil
}

func (h *sealedHeader) aead(passphrase Sensitive) (interface {
	Seal(dst, nonce, plaintext, additionalData []byte) []byte
	Open(dst, nonce, ciphertext, additionalData []byte) ([]byte, error)
}, error) {
	key := argon2.IDKey(passphrase, h.Salt[:], h.Time, h.Memory, 1, chacha20poly1305.KeySize)
	defer clear(key)
	return chacha20poly1305.NewX(key)
}

// Crockford's base 32: no i, l, o, u. Five groups of five carry 125 bits.
const passphraseAlphabet = "0123456789abcdefghjkmnpqrstvwxyz"

func newPassphrase() Sensitive {
	random := make([]byte, passphraseBits/5)
	defer clear(random)
	if _, err := io.ReadFull(rand.Reader, random); err != nil {
		panic(err) // crypto/rand never fails
	}
	var p Sensitive
	for i, r := range random {
		if i > 0 && i%5 == 0 {
			p = append(p, '-')
		}
		p = append(p, passphraseAlphabet[r%32])
	}
	return p
}

// normalPassphrase forgives what people do to a passphrase that they read off a
// screen or paper: case, spaces, missing hyphens, o for 0, i and l for 1.
func normalPassphrase(typed Sensitive) Sensitive {
	var p Sensitive
	n := 0
	for _, c := range typed {
		switch {
		case c >= 'A' && c <= 'Z':
			c += 'a' - 'A'
		case c <= ' ' || c == '-':
			continue
		}
		switch c {
		case 'o':
			c = '0'
		case 'i', 'l':
			c = '1'
		}
		if n > 0 && n%5 == 0 {
			p = append(p, '-')
		}
		p = append(p, c)
		n++
	}
	return p
}
