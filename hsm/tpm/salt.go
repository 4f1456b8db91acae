package tpm

// The salt of a session: the other half of the key agreement with the storage
// root key.

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// newSalt makes a salt, and the form of it that only the holder of a P-256 key
// can open: a TPMS_ECC_POINT (Part 1, C.6.1).
func newSalt(to *ecdsa.PublicKey) (salt, encrypted []byte, err error) {
	key, err := to.ECDH()
	if err != nil {
		return nil, nil, fmt.Errorf("make salt: %w", err)
	}
	mine, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make salt: %w", err)
	}
	z, err := mine.ECDH(key)
	if err != nil {
		return nil, nil, fmt.Errorf("make salt: %w", err)
	}
	defer clear(z)
	u, v := mine.PublicKey().Bytes()[1:], key.Bytes()[1:] // x then y
	salt = tpm2.KDFe(crypto.SHA256, z, "SECRET", u[:coordinate], v[:coordinate], 8*sha256.Size)
	return salt, sized(sized(nil, u[:coordinate]), u[coordinate:]), nil
}
