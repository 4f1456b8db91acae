package hsm

// What is inside a Blob. Both modules share one fixed layout, so that a blob in
// the wrong hands is told apart from garbage:
//
//	version 1 | kind 1 | purpose 1 | owner 32 | len 2, public | len 2, sealed
//
// Lengths are big endian; nothing may follow. Only modules look inside.

import (
	"encoding/binary"
	"fmt"
)

// Kind is the sort of module that made a blob.
type Kind byte

// The kinds of module. The list only grows: blobs outlive versions.
const (
	KindFile Kind = 1
	KindTPM  Kind = 2
)

// String is the name that configuration uses.
func (k Kind) String() string {
	switch k {
	case KindFile:
		return "file"
	case KindTPM:
		return "tpm"
	}
	return fmt.Sprintf("kind %d", byte(k))
}

// Purpose is what a blob is good for; one is never taken for another.
type Purpose byte

// The purposes of a blob. The list only grows.
const (
	PurposeSeal Purpose = 1
	PurposeKey  Purpose = 2
	PurposeMAC  Purpose = 3
	// PurposeCounter finds a counter, PurposePIN and PurposeBoot are secrets that
	// open by a PIN or under measurements, PurposeAttest is an attestation key.
	PurposeCounter Purpose = 4
	PurposePIN     Purpose = 5
	PurposeBoot    Purpose = 6
	PurposeAttest  Purpose = 7
	// PurposeMigrate is a signing key that may go to another chip (Migrator).
	PurposeMigrate Purpose = 8
)

// String names the purpose in errors.
func (p Purpose) String() string {
	switch p {
	case PurposeSeal:
		return "sealed secret"
	case PurposeKey:
		return "signing key"
	case PurposeMAC:
		return "MAC key"
	case PurposeCounter:
		return "counter"
	case PurposePIN:
		return "secret behind a PIN"
	case PurposeBoot:
		return "secret sealed to a boot"
	case PurposeAttest:
		return "attestation key"
	case PurposeMigrate:
		return "signing key that may move to another chip"
	}
	return fmt.Sprintf("purpose %d", byte(p))
}

// OwnerSize is the length of an owner's id in bytes.
const OwnerSize = 32

const (
	blobVersion = 1
	fixedSize   = 3 + OwnerSize
	// The longest sealed part is a TPM2B_PRIVATE around MaxSealed bytes, under
	// 300 bytes; the longest public part belongs to a secret sealed to the boot:
	// MaxBootPCRs values, a P-256 key and a TPMT_PUBLIC, under 420.
	maxPart = 480
)

// An Item is a decoded Blob.
type Item struct {
	Kind    Kind
	Purpose Purpose
	// Owner is the id of the one TPM or device secret that can open it: the
	// digest in the Name of the storage root key, or a hash of the secret.
	Owner  [OwnerSize]byte
	Public []byte // not secret: a TPMT_PUBLIC, or the point of a public key
	Sealed []byte // opens under the owner only
}

// Header is the encoding up to the sealed part: what that part must be bound to.
func (i Item) Header() []byte {
	b := make([]byte, 0, fixedSize+4+len(i.Public)+len(i.Sealed))
	b = append(b, blobVersion, byte(i.Kind), byte(i.Purpose))
	b = append(b, i.Owner[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(i.Public)))
	return append(b, i.Public...)
}

// Encode is the Blob of i.
func (i Item) Encode() (Blob, error) {
	if len(i.Public) > maxPart || len(i.Sealed) > maxPart {
		return nil, fmt.Errorf("encode blob: parts of %d and %d bytes, the limit is %d", len(i.Public), len(i.Sealed), maxPart)
	}
	b := binary.BigEndian.AppendUint16(i.Header(), uint16(len(i.Sealed)))
	return append(b, i.Sealed...), nil
}

// Decode takes b apart. Garbage is ErrBlob. The parts of the Item are b's own
// memory.
func Decode(b Blob) (Item, error) {
	if len(b) > MaxBlob {
		return Item{}, fmt.Errorf("%w: %d bytes, the limit is %d", ErrBlob, len(b), MaxBlob)
	}
	if len(b) < fixedSize {
		return Item{}, fmt.Errorf("%w: only %d bytes", ErrBlob, len(b))
	}
	if b[0] != blobVersion {
		return Item{}, fmt.Errorf("%w: version %d, this program knows %d", ErrBlob, b[0], blobVersion)
	}
	i := Item{Kind: Kind(b[1]), Purpose: Purpose(b[2]), Owner: [OwnerSize]byte(b[3:fixedSize])}
	if i.Kind != KindFile && i.Kind != KindTPM || i.Purpose < PurposeSeal || i.Purpose > PurposeMigrate {
		return Item{}, fmt.Errorf("%w: %v, %v", ErrBlob, i.Kind, i.Purpose)
	}
	var ok bool
	rest := []byte(b[fixedSize:])
	if i.Public, rest, ok = part(rest); !ok {
		return Item{}, fmt.Errorf("%w: bad public part", ErrBlob)
	}
	if i.Sealed, rest, ok = part(rest); !ok || len(rest) != 0 {
		return Item{}, fmt.Errorf("%w: bad sealed part", ErrBlob)
	}
	return i, nil
}

// part splits a length-prefixed part off b.
func part(b []byte) (p, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, nil, false
	}
	n := int(binary.BigEndian.Uint16(b))
	if n > maxPart || n > len(b)-2 {
		return nil, nil, false
	}
	return b[2 : 2+n : 2+n], b[2+n:], true
}

// DecodeFor is Decode for a module of the given kind that wants a blob for one
// purpose. Another kind of module is ErrReplaced, another purpose ErrBlob.
func DecodeFor(b Blob, kind Kind, purpose Purpose) (Item, error) {
	i, err := Decode(b)
	if err != nil {
		return Item{}, err
	}
	if i.Kind != kind {
		return Item{}, fmt.Errorf("%w: made by key storage %q, this is %q; configure %[2]q again or enroll anew",
			ErrReplaced, i.Kind, kind)
	}
	if i.Purpose != purpose {
		return Item{}, fmt.Errorf("%w: a %v, not a %v", ErrBlob, i.Purpose, purpose)
	}
	return i, nil
}
