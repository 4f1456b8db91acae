package transport

import (
	"errors"
	"fmt"
	"time"
)

// A provisioning bundle (DESIGN D8) is how a device first learns whom to
// trust. It is a file sealed under a one-time passphrase (sealed.go).

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
	// Attest says that the terminal must prove its TPM at enrollment and gets the
	// security code then, wrapped to it: there is none in the bundle.
	Attest bool `cbor:"13,keyasint,omitempty"`
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

const bundleMagic = "KAGIMORI-BUNDLE-1\n"

// SealBundle gives the file's bytes and the passphrase that opens them, which
// is shown once and kept nowhere.
func SealBundle(b *Bundle) (file []byte, passphrase Sensitive, err error) {
	if file, passphrase, err = sealFile(bundleMagic, b); err != nil {
		return nil, nil, fmt.Errorf("seal bundle: %w", err)
	}
	return file, passphrase, nil
}

// OpenBundle reads a bundle file. It fails with ErrNotBundle or ErrPassphrase.
func OpenBundle(file []byte, passphrase Sensitive) (*Bundle, error) {
	var b Bundle
	err := openFile(bundleMagic, file, passphrase, &b, MaxBundle)
	if err == nil {
		if wrong := b.check(); wrong != nil {
			err = fmt.Errorf("%w (%w)", errNotSealed, wrong)
		}
	}
	switch {
	case err == nil:
		return &b, nil
	case errors.Is(err, errOpenSealed):
		err = ErrPassphrase
	case err == errNotSealed:
		err = ErrNotBundle
	case errors.Is(err, errNotSealed):
		err = fmt.Errorf("%w: %w", ErrNotBundle, err)
	}
	b.Wipe()
	return nil, err
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
	size := SecurityCodeSize
	if b.Attest {
		if size = 0; b.Kind != BundleTerminal {
			return fmt.Errorf("a %s bundle that asks for proof of a TPM", b.Kind)
		}
	}
	if len(b.SecurityCode) != size {
		return fmt.Errorf("security code of %d bytes", len(b.SecurityCode))
	}
	_, err := ParseChain([][]byte{b.Root})
	return err
}

// IssuedAt is a lower bound of the present time (DESIGN D12).
func (b *Bundle) IssuedAt() time.Time { return time.Unix(b.Issued, 0) }
