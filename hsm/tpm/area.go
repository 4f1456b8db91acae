package tpm

// Public areas (TPMT_PUBLIC, Part 2, 12.2.4), as bytes: all of ours have SHA-256
// for their Names and no policy, or one of 32 bytes.

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
)

// TPMA_OBJECT (Part 2, 8.3).
const (
	attrFixedTPM        = 1 << 1
	attrFixedParent     = 1 << 4
	attrOrigin          = 1 << 5 // sensitiveDataOrigin: the chip made it
	attrUserWithAuth    = 1 << 6
	attrAdminWithPolicy = 1 << 7
	attrNoDA            = 1 << 10
	attrEncryptedDup    = 1 << 11 // it leaves wrapped twice, or not at all
	attrRestricted      = 1 << 16
	attrDecrypt         = 1 << 17
	attrSign            = 1 << 18

	attrOurs = attrFixedTPM | attrFixedParent | attrUserWithAuth | attrNoDA
)

// curveP256 is a number among the parameters of a key, as algorithms are.
const curveP256 = tpm2.TPMAlgID(tpm2.TPMECCNistP256)

// An area is a TPMT_PUBLIC up to the key itself (unique), which is the chip's.
type area []byte

// newArea is one with the numbers that its kind of object has for parameters.
func newArea(kind tpm2.TPMAlgID, attributes uint32, policy []byte, parameters ...tpm2.TPMAlgID) area {
	b := binary.BigEndian.AppendUint32(words(nil, kind, tpm2.TPMAlgSHA256), attributes)
	return words(sized(b, policy), parameters...)
}

// sealedArea is data; dataMAC an HMAC key.
func sealedArea(attributes uint32, policy []byte) area {
	return newArea(tpm2.TPMAlgKeyedHash, attributes, policy, tpm2.TPMAlgNull)
}

func macArea(attributes uint32) area {
	return newArea(tpm2.TPMAlgKeyedHash, attributes|attrSign, nil, tpm2.TPMAlgHMAC, tpm2.TPMAlgSHA256)
}

// signArea is an ECDSA key over P-256 for digests of SHA-256. It encrypts
// nothing, and has no KDF.
func signArea(attributes uint32, policy ...byte) area {
	return newArea(tpm2.TPMAlgECC, attributes|attrSign, policy, tpm2.TPMAlgNull, tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256, curveP256, tpm2.TPMAlgNull)
}

// rootArea is the storage root key of TCG's provisioning guidance (7.5.1): P-256,
// AES-128-CFB for what lies under it.
func rootArea() area {
	return newArea(tpm2.TPMAlgECC, attrOurs|attrOrigin|attrRestricted|attrDecrypt, nil,
		tpm2.TPMAlgAES, 8*cfbKeySize, tpm2.TPMAlgCFB, tpm2.TPMAlgNull, curveP256, tpm2.TPMAlgNull)
}

// template is the area of a purpose. All are bound to this chip and this parent,
// and none counts wrong guesses (NoDA).
func template(p hsm.Purpose) area {
	switch p {
	case hsm.PurposeMAC:
		return macArea(attrOurs)
	case hsm.PurposeKey:
		return signArea(attrOurs | attrOrigin)
	case hsm.PurposeAttest:
		return signArea(attrOurs | attrOrigin | attrRestricted) // signs what the chip itself states
	}
	return sealedArea(attrOurs, nil)
}

// kind is the type of the object.
func (a area) kind() tpm2.TPMAlgID { return tpm2.TPMAlgID(binary.BigEndian.Uint16(a)) }

// fits tells whether a whole public area is this one, whatever the key in it.
func (a area) fits(public []byte) bool {
	unique, ok := bytes.CutPrefix(public, a)
	if !ok {
		return false
	}
	if a.kind() == tpm2.TPMAlgKeyedHash {
		digest, err := only(unique)
		return err == nil && len(digest) == sha256.Size
	}
	x, rest, err := unsized(unique)
	if err != nil {
		return false
	}
	y, err := only(rest)
	return err == nil && len(x) <= coordinate && len(y) <= coordinate
}

// pointIn is the point of a P-256 key whose area fits. Chips may drop zeros at
// the beginning of a coordinate.
func (a area) pointIn(public []byte) (*ecdsa.PublicKey, error) {
	x, rest, err := unsized(public[len(a):])
	if err != nil {
		return nil, err
	}
	y, _, err := unsized(rest)
	if err != nil {
		return nil, err
	}
	point := make([]byte, 1+pointSize)
	point[0] = 4 // not compressed
	copy(point[1+coordinate-len(x):], x)
	copy(point[1+pointSize-len(y):], y)
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point) // on the curve
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	return key, nil
}

// nameOf is the Name of an object with a public area whose nameAlg is SHA-256
// (Part 1, 16).
func nameOf(public []byte) []byte {
	sum := sha256.Sum256(public)
	return append(words(nil, tpm2.TPMAlgSHA256), sum[:]...)
}
