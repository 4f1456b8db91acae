package agent

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
)

// Private keys of credentials: in the store, sealed, or in the chip
// (docs/tpm.md). One in the chip is there for the moment of a signature; between
// two there is only its blob, so any number of them take no place there.
// chip_approval.go is about which chips keys may go to, chip_copy.go how they go.

// chipTime bounds one use of a key in the chip by who has no context to give.
const chipTime = time.Minute

// A chipKey signs with a key in the chip.
type chipKey struct {
	module hsm.Keys
	blob   hsm.Blob
	public crypto.PublicKey
}

var _ crypto.Signer = (*chipKey)(nil)

// Public gives the public half.
func (k *chipKey) Public() crypto.PublicKey { return k.public }

// Sign loads the key, signs and lets go of it.
func (k *chipKey) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), chipTime)
	defer cancel()
	s, err := k.module.Signer(ctx, k.blob)
	if err != nil {
		return nil, err
	}
	sig, err := s.Sign(random, digest, opts)
	return sig, errors.Join(err, s.Close())
}

// openChipKey asks the chip for the public half, which shows that the key is there.
func openChipKey(ctx context.Context, module hsm.Keys, blob hsm.Blob) (*chipKey, error) {
	s, err := module.Signer(ctx, blob)
	if err != nil {
		return nil, err
	}
	return &chipKey{module: module, blob: blob, public: s.Public()}, s.Close()
}

// signer opens the private key of a credential with a certificate. The chip is
// not asked.
func signer(module hsm.Keys, s *transport.CredentialSecret, leaf *x509.Certificate) (crypto.Signer, error) {
	if s.Form == transport.SecretTPM {
		return &chipKey{module: module, blob: bytes.Clone(s.Bytes), public: leaf.PublicKey}, nil
	}
	return privateKey(s)
}

// privateKey opens a private key that is not in a chip.
func privateKey(s *transport.CredentialSecret) (crypto.Signer, error) {
	if s.Form != transport.SecretPKCS8 {
		return nil, fmt.Errorf("key of unknown form %.20q: update this terminal", s.Form)
	}
	key, err := x509.ParsePKCS8PrivateKey(s.Bytes)
	if err != nil {
		return nil, errors.New("the private key is unreadable")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("the private key cannot sign")
	}
	return signer, nil
}

// keyFor makes the key that an order asks for: in software, as one that may
// travel without a chip must be (DESIGN D8), or in the chip. If it turns out
// that a key in the chip could go nowhere, the order says so from then on.
func (v *vault) keyFor(ctx context.Context, o *transport.CredentialOrder) (transport.CredentialSecret, crypto.Signer, error) {
	if o.ChipOnly {
		return v.chipKeyFor(ctx, o)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return transport.CredentialSecret{}, nil, fmt.Errorf("make key: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return transport.CredentialSecret{}, nil, fmt.Errorf("make key: %w", err)
	}
	return transport.CredentialSecret{Form: transport.SecretPKCS8, Bytes: pkcs8}, key, nil
}

func (v *vault) chipKeyFor(ctx context.Context, o *transport.CredentialOrder) (secret transport.CredentialSecret, key crypto.Signer, err error) {
	var blob hsm.Blob
	chip, ok := v.module.(hsm.Migrator)
	if ok && o.Transfer != transport.TransferNever && len(o.Fleet) > 0 {
		var fleet *ecdsa.PublicKey
		if fleet, err = transport.ParseFleetKey(o.Fleet); err == nil {
			blob, err = chip.NewMigratableKey(ctx, fleet)
		}
	} else {
		o.Transfer = transport.TransferNever // without an authority a key can never leave
		blob, err = v.module.NewKey(ctx)
	}
	if err != nil {
		return secret, nil, fmt.Errorf("make key: %w", err)
	}
	if key, err = openChipKey(ctx, v.module, blob); err != nil {
		return secret, nil, fmt.Errorf("make key: %w", err)
	}
	return transport.CredentialSecret{Form: transport.SecretTPM, Bytes: transport.Sensitive(blob)}, key, nil
}

// noChip says why a key cannot be kept in a chip here, "" if it can.
func (v *vault) noChip() string {
	if _, ok := v.module.(hsm.Migrator); ok {
		return ""
	}
	return fmt.Sprintf("this terminal has no chip, its key storage is %q: issue the credential without chip-only, or to a terminal with a TPM", v.module.Level())
}
