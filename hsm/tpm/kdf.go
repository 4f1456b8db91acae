package tpm

// The key derivations of Part 1, 11.4.10: KDFa is a counter mode KDF with HMAC
// (SP 800-108), KDFe makes a key from an ECDH secret (SP 800-56A). Both with
// SHA-256, for as many bytes as one or two rounds give.

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// kdfA derives n bytes from a key.
func kdfA(key []byte, label string, contextU, contextV []byte, n int) []byte {
	var out []byte
	for counter := uint32(1); len(out) < n; counter++ {
		mac := hmac.New(sha256.New, key)
		mac.Write(binary.BigEndian.AppendUint32(nil, counter))
		mac.Write(append([]byte(label), 0))
		mac.Write(contextU)
		mac.Write(contextV)
		mac.Write(binary.BigEndian.AppendUint32(nil, uint32(8*n)))
		out = mac.Sum(out)
	}
	return out[:n]
}

// kdfE derives 32 bytes from z, the x coordinate of an ECDH secret.
func kdfE(z []byte, label string, partyU, partyV []byte) []byte {
	h := sha256.New()
	h.Write(binary.BigEndian.AppendUint32(nil, 1))
	h.Write(z)
	h.Write(append([]byte(label), 0))
	h.Write(partyU)
	h.Write(partyV)
	return h.Sum(nil)
}

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
	salt = kdfE(z, "SECRET", u[:coordinate], v[:coordinate])
	return salt, sized(sized(nil, u[:coordinate]), u[coordinate:]), nil
}
