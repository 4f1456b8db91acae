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
	attrRestricted      = 1 << 16
	attrDecrypt         = 1 << 17
	attrSign            = 1 << 18

	attrOurs = attrFixedTPM | attrFixedParent | attrUserWithAuth | attrNoDA
)

// An area is a TPMT_PUBLIC up to the key itself (unique), which is the chip's.
type area []byte

// newArea is one with the numbers that its kind of object has for parameters.
func newArea(kind uint16, attributes uint32, policy []byte, parameters ...uint16) area {
	be := binary.BigEndian
	b := be.AppendUint16(be.AppendUint16(nil, kind), algSHA256)
	b = sized(be.AppendUint32(b, attributes), policy)
	for _, p := range parameters {
		b = be.AppendUint16(b, p)
	}
	return b
}

// sealedArea is data; dataMAC an HMAC key.
func sealedArea(attributes uint32, policy []byte) area {
	return newArea(algKeyedHash, attributes, policy, algNull)
}

func macArea(attributes uint32) area {
	return newArea(algKeyedHash, attributes|attrSign, nil, algHMAC, algSHA256)
}

// signArea is an ECDSA key over P-256 for digests of SHA-256. It encrypts
// nothing, and has no KDF.
func signArea(attributes uint32) area {
	return newArea(algECC, attributes|attrSign, nil, algNull, algECDSA, algSHA256, curveP256, algNull)
}

// rootArea is the storage root key of TCG's provisioning guidance (7.5.1): P-256,
// AES-128-CFB for what lies under it.
func rootArea() area {
	return newArea(algECC, attrOurs|attrOrigin|attrRestricted|attrDecrypt, nil,
		algAES, 8*cfbKeySize, algCFB, algNull, curveP256, algNull)
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
func (a area) kind() uint16 { return binary.BigEndian.Uint16(a) }

// fits tells whether a whole public area is this one, whatever the key in it.
func (a area) fits(public []byte) bool {
	unique, ok := bytes.CutPrefix(public, a)
	if !ok {
		return false
	}
	if a.kind() == algKeyedHash {
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
	return append([]byte{0x00, algSHA256}, sum[:]...)
}
