package transport

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/chacha20poly1305"
)

// A provisioning bundle (DESIGN D8) is how a device first learns whom to
// trust. It is a file sealed under a one-time passphrase: Argon2id, then
// XChaCha20-Poly1305 with the header as associated data.

// BundleKind is what a bundle makes of the device that takes it in.
type BundleKind string

const (
	BundleSpare    BundleKind = "spare"    // a replacement box: it may fetch a key copy, and knows no server
	BundleTerminal BundleKind = "terminal" // a named terminal
	BundleGate     BundleKind = "gate"     // a named terminal that guards a service
)

// SecurityCodeSize is the length of a security code in bytes. It is 32 random
// bytes and nothing else: the key copy's first MAC tests it offline.
const SecurityCodeSize = 32

// A Bundle is what is inside. Terminal, Servers and CommonKey are empty in a
// spare bundle, Service is set in a gate's.
type Bundle struct {
	ID           ID         `cbor:"1,keyasint"`
	Kind         BundleKind `cbor:"2,keyasint"`
	Deployment   Name       `cbor:"3,keyasint"`
	Issued       int64      `cbor:"4,keyasint"` // Unix seconds
	Root         []byte     `cbor:"5,keyasint"` // DER certificate of the root CA
	Group        Name       `cbor:"6,keyasint"`
	Epoch        uint32     `cbor:"7,keyasint"` // of the security code
	SecurityCode Sensitive  `cbor:"8,keyasint"`
	Terminal     Name       `cbor:"9,keyasint"`
	Servers      []string   `cbor:"10,keyasint"` // host:port of MQTT over TLS
	CommonKey    Sensitive  `cbor:"11,keyasint"`
	Service      Name       `cbor:"12,keyasint"`
}

// Wipe overwrites the secrets.
func (b *Bundle) Wipe() {
	b.SecurityCode.Wipe()
	b.CommonKey.Wipe()
}

// What can be wrong with a bundle file.
var (
	ErrNotBundle  = errors.New("this file is not a provisioning bundle, or it is cut short")
	ErrPassphrase = errors.New("the passphrase does not open this bundle")
)

const (
	bundleMagic = "KAGIMORI-BUNDLE-1\n"

	// Argon2id's cost for new bundles: 19 MiB fits the smallest board that we
	// know (OWASP's second choice). The passphrase has 125 random bits, so the
	// cost is a second line of defence. A file may ask for at most the limits.
	argonTime, argonMemory         = 2, 19 << 10 // passes, KiB
	maxArgonTime, maxArgonMemory   = 8, 64 << 10
	bundleSaltSize, passphraseBits = 16, 125
)

type bundleHeader struct {
	Time   uint32   `cbor:"1,keyasint"`
	Memory uint32   `cbor:"2,keyasint"` // KiB
	Salt   [16]byte `cbor:"3,keyasint"`
	Nonce  [24]byte `cbor:"4,keyasint"`
}

type bundleFile struct {
	Header Raw    `cbor:"1,keyasint"`
	Sealed []byte `cbor:"2,keyasint"`
}

// SealBundle gives the file's bytes and the passphrase that opens them, which
// is shown once and kept nowhere.
func SealBundle(b *Bundle) (file []byte, passphrase Sensitive, err error) {
	plain, err := Marshal(b)
	if err != nil {
		return nil, nil, fmt.Errorf("encode bundle: %w", err)
	}
	defer clear(plain)
	h := bundleHeader{Time: argonTime, Memory: argonMemory}
	rand.Read(h.Salt[:])
	rand.Read(h.Nonce[:])
	header, err := Marshal(h)
	if err != nil {
		return nil, nil, fmt.Errorf("encode bundle: %w", err)
	}
	passphrase = newPassphrase()
	aead, err := h.aead(passphrase)
	if err != nil {
		return nil, nil, err
	}
	body, err := Marshal(bundleFile{Header: header, Sealed: aead.Seal(nil, h.Nonce[:], plain, header)})
	if err != nil {
		return nil, nil, fmt.Errorf("encode bundle: %w", err)
	}
	return append([]byte(bundleMagic), body...), passphrase, nil
}

// OpenBundle reads a bundle file. It fails with ErrNotBundle or ErrPassphrase.
func OpenBundle(file []byte, passphrase Sensitive) (*Bundle, error) {
	body, ok := strings.CutPrefix(string(file), bundleMagic)
	if !ok {
		return nil, ErrNotBundle
	}
	var f bundleFile
	var h bundleHeader
	if err := Unmarshal([]byte(body), &f, MaxBundle); err != nil {
		return nil, fmt.Errorf("%w (%w)", ErrNotBundle, err)
	}
	if err := Unmarshal(f.Header, &h, len(f.Header)); err != nil {
		return nil, fmt.Errorf("%w (%w)", ErrNotBundle, err)
	}
	if h.Time < 1 || h.Time > maxArgonTime || h.Memory < 1<<10 || h.Memory > maxArgonMemory {
		return nil, fmt.Errorf("%w (it asks for %d passes over %d KiB)", ErrNotBundle, h.Time, h.Memory)
	}
	aead, err := h.aead(normalPassphrase(passphrase))
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, h.Nonce[:], f.Sealed, f.Header)
	if err != nil {
		return nil, ErrPassphrase
	}
	defer clear(plain)
	var b Bundle
	if err := Unmarshal(plain, &b, MaxBundle); err != nil {
		return nil, fmt.Errorf("%w (%w)", ErrNotBundle, err)
	}
	if err := b.check(); err != nil {
		b.Wipe()
		return nil, fmt.Errorf("%w (%w)", ErrNotBundle, err)
	}
	return &b, nil
}

func (h *bundleHeader) aead(passphrase Sensitive) (interface {
	Seal(dst, nonce, plaintext, additionalData []byte) []byte
	Open(dst, nonce, ciphertext, additionalData []byte) ([]byte, error)
}, error) {
	key := argon2.IDKey(passphrase, h.Salt[:], h.Time, h.Memory, 1, chacha20poly1305.KeySize)
	defer clear(key)
	return chacha20poly1305.NewX(key)
}

func (b *Bundle) check() error {
	names := []Name{b.Deployment, b.Group}
	switch b.Kind {
	case BundleSpare:
		if b.Terminal != "" || len(b.Servers) > 0 || len(b.CommonKey) > 0 || b.Service != "" {
			return errors.New("a spare bundle names a terminal")
		}
	case BundleTerminal, BundleGate:
		names = append(names, b.Terminal)
		if b.Kind == BundleGate {
			names = append(names, b.Service)
		}
		if len(b.Servers) == 0 || len(b.CommonKey) != CommonKeySize {
			return errors.New("no server or no common key")
		}
	default:
		return fmt.Errorf("unknown kind %q", b.Kind)
	}
	for _, n := range names {
		if _, err := ParseName(string(n)); err != nil {
			return err
		}
	}
	if len(b.SecurityCode) != SecurityCodeSize {
		return fmt.Errorf("security code of %d bytes", len(b.SecurityCode))
	}
	_, err := ParseChain([][]byte{b.Root})
	return err
}

// IssuedAt is a lower bound of the present time (DESIGN D12).
func (b *Bundle) IssuedAt() time.Time { return time.Unix(b.Issued, 0) }

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
