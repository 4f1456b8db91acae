package transport

import (
	"crypto/sha256"
	"fmt"
	"slices"
)

// The bodies of the key copy's frames. What a MAC covers is a type of its own
// (KeycopyHelloBody, ...), so that "the body less its MAC" is one encoding too.

// KeycopyTag is a MAC or hash inside a message: 32 bytes.
type KeycopyTag [sha256.Size]byte

// KeycopyPoint is an encoded element of ristretto255 (RFC 9496).
type KeycopyPoint [32]byte

// A KeycopyMessage is the body of one type of frame.
type KeycopyMessage interface {
	// Frame is the frame's type.
	Frame() KeycopyType
	// check refuses what CBOR alone lets through.
	check() error
}

var (
	_ KeycopyMessage = (*KeycopyHello)(nil)
	_ KeycopyMessage = (*KeycopyHelloAck)(nil)
	_ KeycopyMessage = (*KeycopyProof)(nil)
	_ KeycopyMessage = (*KeycopyGrant)(nil)
	_ KeycopyMessage = (*KeycopyItem)(nil)
	_ KeycopyMessage = (*KeycopyReceipt)(nil)
	_ KeycopyMessage = (*KeycopyCommit)(nil)
	_ KeycopyMessage = (*KeycopyActivated)(nil)
	_ KeycopyMessage = (*KeycopyClose)(nil)
	_ KeycopyMessage = (*KeycopyResume)(nil)
	_ KeycopyMessage = (*KeycopyResumed)(nil)
	_ KeycopyMessage = (*KeycopyError)(nil)
)

// EncodeKeycopy makes the frame of m.
func EncodeKeycopy(m KeycopyMessage) (KeycopyFrame, error) {
	if err := m.check(); err != nil {
		return KeycopyFrame{}, fmt.Errorf("encode %s: %w", m.Frame(), err)
	}
	body, err := Marshal(m)
	if err != nil {
		return KeycopyFrame{}, fmt.Errorf("encode %s: %w", m.Frame(), err)
	}
	if limit := KeycopyLimit(m.Frame()); len(body) > limit {
		return KeycopyFrame{}, fmt.Errorf("encode %s: %d bytes, the limit is %d", m.Frame(), len(body), limit)
	}
	return KeycopyFrame{m.Frame(), body}, nil
}

// DecodeKeycopy reads a frame into m, whose type it must have. Every failure
// is ErrMalformed.
func DecodeKeycopy(f KeycopyFrame, m KeycopyMessage) error {
	if f.Type != m.Frame() {
		return fmt.Errorf("%w: %s where %s was expected", ErrMalformed, f.Type, m.Frame())
	}
	if err := Unmarshal(f.Body, m, KeycopyLimit(f.Type)); err != nil {
		return fmt.Errorf("%s: %w", f.Type, err)
	}
	if err := m.check(); err != nil {
		return fmt.Errorf("%s: %w: %w", f.Type, ErrMalformed, err)
	}
	return nil
}

// KeycopyLimit is the largest body of a type of frame, in bytes.
func KeycopyLimit(t KeycopyType) int {
	switch t {
	case KeycopyTypeGrant:
		return MaxKeycopyGrant
	case KeycopyTypeItem:
		return MaxKeycopyItem
	}
	return MaxKeycopyHandshake
}

// KeycopyCodeID says which security code an end uses: the group it was made
// for, and its epoch.
type KeycopyCodeID struct {
	Group Name   `cbor:"1,keyasint"`
	Epoch uint32 `cbor:"2,keyasint"`
}

func (c KeycopyCodeID) String() string { return fmt.Sprintf("%s/%d", c.Group, c.Epoch) }

// KeycopyHelloBody is HELLO less its MAC. Select lists credential ids; empty
// is all. Share is set in mode pake, Code in the other two.
type KeycopyHelloBody struct {
	Version uint8         `cbor:"1,keyasint"`
	Mode    KeycopyMode   `cbor:"2,keyasint"`
	Suite   KeycopySuite  `cbor:"3,keyasint"`
	CodeID  KeycopyCodeID `cbor:"4,keyasint"`
	Target  DeviceID      `cbor:"5,keyasint"`
	Nonce   [32]byte      `cbor:"6,keyasint"`
	Want    Transfer      `cbor:"7,keyasint"` // copy or move
	Select  []Name        `cbor:"8,keyasint"`
	Share   *KeycopyPoint `cbor:"9,keyasint,omitempty"`
	Code    []byte        `cbor:"10,keyasint,omitempty"` // the sealed operator code of direct and kek
	// Parent is where keys that live in a chip may go; nil without a chip.
	Parent *KeycopyParent `cbor:"12,keyasint,omitempty"`
}

// A KeycopyParent is the storage key of the Target's TPM, and the fleet's word
// that it is one (docs/tpm.md).
type KeycopyParent struct {
	Public   []byte `cbor:"1,keyasint"` // TPMT_PUBLIC
	Approval []byte `cbor:"2,keyasint"` // the fleet key's signature for it
}

// Bounds of a KeycopyParent, in bytes.
const (
	maxKeycopyParent   = 512
	maxKeycopyApproval = 256
)

// KeycopyHello opens a run. Admit proves the security code.
type KeycopyHello struct {
	KeycopyHelloBody
	Admit KeycopyTag `cbor:"11,keyasint"`
}

// KeycopyHelloAckBody is HELLO_ACK less its MAC.
type KeycopyHelloAckBody struct {
	Source DeviceID     `cbor:"1,keyasint"`
	Nonce  [32]byte     `cbor:"2,keyasint"`
	Txn    ID           `cbor:"3,keyasint"`
	Share  KeycopyPoint `cbor:"4,keyasint"`
}

// KeycopyHelloAck answers HELLO. Admit proves the security code.
type KeycopyHelloAck struct {
	KeycopyHelloAckBody
	Admit KeycopyTag `cbor:"5,keyasint"`
}

// KeycopyProof proves the operator code.
type KeycopyProof struct {
	Tag KeycopyTag `cbor:"1,keyasint"`
}

// KeycopyGrant proves the operator code in turn and says what comes. Manifest
// is an encoded KeycopyManifest; Tag covers its SHA-256. Ack and Admit are there
// in modes direct and kek, which have no HELLO_ACK; KEK in mode kek, the sealed
// key-encryption key.
type KeycopyGrant struct {
	Tag      KeycopyTag       `cbor:"1,keyasint"`
	Manifest []byte           `cbor:"2,keyasint"`
	Ack      *KeycopyGrantAck `cbor:"3,keyasint,omitempty"`
	Admit    *KeycopyTag      `cbor:"4,keyasint,omitempty"`
	KEK      []byte           `cbor:"5,keyasint,omitempty"`
}

// KeycopyGrantAck stands in GRANT for the HELLO_ACK that modes direct and kek
// do not have.
type KeycopyGrantAck struct {
	Source DeviceID `cbor:"1,keyasint"`
	Nonce  [32]byte `cbor:"2,keyasint"`
	Txn    ID       `cbor:"3,keyasint"`
}

// KeycopyGrantHead is GRANT less tag, manifest and KEK: what modes direct and
// kek have in their transcript in place of HELLO_ACK.
type KeycopyGrantHead struct {
	Ack   KeycopyGrantAck `cbor:"3,keyasint"`
	Admit KeycopyTag      `cbor:"4,keyasint"`
}

// KeycopyItem is one CredentialRecord, sealed. Seq counts from 0.
type KeycopyItem struct {
	Seq    uint32 `cbor:"1,keyasint"`
	ID     Name   `cbor:"2,keyasint"`
	Sealed []byte `cbor:"3,keyasint"`
}

// KeycopyReceiptBody is RECEIPT less MAC and signature. Bit n of Status (least
// significant first) says that item n is durably installed.
type KeycopyReceiptBody struct {
	Txn      ID         `cbor:"1,keyasint"`
	Manifest KeycopyTag `cbor:"2,keyasint"`
	Status   []byte     `cbor:"3,keyasint"`
}

// KeycopyReceipt says what the Target has installed. Signature is by the
// Target's identity key, and there exactly if it showed an identity.
type KeycopyReceipt struct {
	KeycopyReceiptBody
	MAC       KeycopyTag `cbor:"4,keyasint"`
	Signature []byte     `cbor:"5,keyasint,omitempty"`
}

// KeycopyStepBody is COMMIT, ACTIVATED or CLOSE less MAC and signature.
type KeycopyStepBody struct {
	Txn ID `cbor:"1,keyasint"`
}

// KeycopyCommit says that the Source has the receipt and uses what moves no
// more: the Target may.
type KeycopyCommit struct {
	KeycopyStepBody
	MAC KeycopyTag `cbor:"2,keyasint"`
}

// KeycopyActivated says that the Target uses what moves: the Source may destroy
// it. Signature is as in RECEIPT.
type KeycopyActivated struct {
	KeycopyStepBody
	MAC       KeycopyTag `cbor:"2,keyasint"`
	Signature []byte     `cbor:"3,keyasint,omitempty"`
}

// KeycopyClose says that the Source has nothing left to do.
type KeycopyClose struct {
	KeycopyStepBody
	MAC KeycopyTag `cbor:"2,keyasint"`
}

// KeycopyResumeBody is RESUME or RESUMED less its MAC. Phase is the sender's.
type KeycopyResumeBody struct {
	Txn   ID           `cbor:"1,keyasint"`
	Phase KeycopyPhase `cbor:"2,keyasint"`
	Nonce [32]byte     `cbor:"3,keyasint"`
}

// KeycopyResume opens a connection that goes on with a transaction. MAC is
// under the transaction's resume key, which both ends keep.
type KeycopyResume struct {
	KeycopyResumeBody
	MAC KeycopyTag `cbor:"4,keyasint"`
}

// KeycopyResumed answers it, and says where the transaction stands at the
// Source: that alone may end it at the Target.
type KeycopyResumed struct {
	KeycopyResumeBody
	MAC KeycopyTag `cbor:"4,keyasint"`
}

// KeycopyError ends a connection.
type KeycopyError struct {
	Code KeycopyFault `cbor:"1,keyasint"`
}

// Frame implements KeycopyMessage.
func (*KeycopyHello) Frame() KeycopyType     { return KeycopyTypeHello }
func (*KeycopyHelloAck) Frame() KeycopyType  { return KeycopyTypeHelloAck }
func (*KeycopyProof) Frame() KeycopyType     { return KeycopyTypeProof }
func (*KeycopyGrant) Frame() KeycopyType     { return KeycopyTypeGrant }
func (*KeycopyItem) Frame() KeycopyType      { return KeycopyTypeItem }
func (*KeycopyReceipt) Frame() KeycopyType   { return KeycopyTypeReceipt }
func (*KeycopyCommit) Frame() KeycopyType    { return KeycopyTypeCommit }
func (*KeycopyActivated) Frame() KeycopyType { return KeycopyTypeActivated }
func (*KeycopyClose) Frame() KeycopyType     { return KeycopyTypeClose }
func (*KeycopyResume) Frame() KeycopyType    { return KeycopyTypeResume }
func (*KeycopyResumed) Frame() KeycopyType   { return KeycopyTypeResumed }
func (*KeycopyError) Frame() KeycopyType     { return KeycopyTypeError }

// maxKeycopySignature is the longest ASN.1 ECDSA P-256 signature, in bytes.
const maxKeycopySignature = 72

// keycopySealed is a sealed operator code (padded) or key-encryption key: 32
// bytes and the tag, 16.
const keycopySealed = 48

// check leaves version, mode and suite alone: those have answers of their own.
func (m *KeycopyHello) check() error {
	if m.Want != TransferCopy && m.Want != TransferMove {
		return fmt.Errorf("want %q", m.Want)
	}
	if (m.Mode == KeycopyPAKE) != (m.Share != nil) || (m.Mode == KeycopyPAKE) != (len(m.Code) == 0) ||
		m.Mode.SealsCode() && len(m.Code) != keycopySealed {
		return fmt.Errorf("wrong fields for mode %q", m.Mode)
	}
	if len(m.Select) > MaxKeycopySelect {
		return fmt.Errorf("%d ids selected, the limit is %d", len(m.Select), MaxKeycopySelect)
	}
	seen := map[Name]bool{}
	for _, id := range m.Select {
		if _, err := ParseName(string(id)); err != nil || seen[id] {
			return fmt.Errorf("selected id %q is not a name or there twice", id)
		}
		seen[id] = true
	}
	if p := m.Parent; p != nil && (len(p.Public) == 0 || len(p.Public) > maxKeycopyParent || len(p.Approval) == 0 || len(p.Approval) > maxKeycopyApproval) {
		return fmt.Errorf("parent of %d bytes with an approval of %d", len(p.Public), len(p.Approval))
	}
	_, err := ParseName(string(m.CodeID.Group))
	return err
}

func (*KeycopyHelloAck) check() error { return nil }
func (*KeycopyProof) check() error    { return nil }
func (*KeycopyCommit) check() error   { return nil }
func (*KeycopyClose) check() error    { return nil }
func (*KeycopyError) check() error    { return nil }

func (m *KeycopyGrant) check() error {
	if len(m.Manifest) == 0 {
		return fmt.Errorf("no manifest")
	}
	if (m.Ack == nil) != (m.Admit == nil) || len(m.KEK) > 0 && (m.Ack == nil || len(m.KEK) != keycopySealed) {
		return fmt.Errorf("fields of no mode")
	}
	return nil
}

func (m *KeycopyActivated) check() error { return checkSignature(m.Signature) }
func (m *KeycopyResume) check() error {
	return checkPhase(m.Phase, KeycopyStarted, KeycopyStaged, KeycopyActive)
}
func (m *KeycopyResumed) check() error {
	return checkPhase(m.Phase, KeycopyOffered, KeycopyCommitted, KeycopyDone, KeycopyReclaimed, KeycopyAbandoned)
}

func checkPhase(p KeycopyPhase, known ...KeycopyPhase) error {
	if !slices.Contains(known, p) {
		return fmt.Errorf("%s where one of %s was expected", p, known)
	}
	return nil
}

func checkSignature(signature []byte) error {
	if len(signature) > maxKeycopySignature {
		return fmt.Errorf("signature of %d bytes", len(signature))
	}
	return nil
}

func (m *KeycopyItem) check() error {
	if m.Seq >= MaxKeycopyItems {
		return fmt.Errorf("item %d, the limit is %d", m.Seq, MaxKeycopyItems)
	}
	_, err := ParseName(string(m.ID))
	return err
}

func (m *KeycopyReceipt) check() error {
	if len(m.Status) > MaxKeycopyItems/8 {
		return fmt.Errorf("status of %d bytes", len(m.Status))
	}
	return checkSignature(m.Signature)
}
