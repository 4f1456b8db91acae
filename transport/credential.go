package transport

import (
	"crypto/sha256"
	"fmt"
)

// CredentialKind is what a credential consists of (req: L2).
type CredentialKind string

// The kinds. The list only grows. All but KindCertificate have no Chain; which
// forms of secret a kind takes is in its comment.
const (
	KindCertificate CredentialKind = "certificate" // X.509 with its private key: pkcs8 or, in a chip, tpm
	KindSymmetric   CredentialKind = "symmetric"   // a key for authentication by challenge: hmac or raw
	KindKeyPair     CredentialKind = "key-pair"    // a bare key pair: pkcs8 or tpm
	KindLogin       CredentialKind = "login"       // login and password: password
	KindEncryption  CredentialKind = "encryption"  // a key for encryption: raw
)

// Usage is which end of a connection a certificate proves.
type Usage string

const (
	UsageClient Usage = "client" // a terminal towards a service
	UsageServer Usage = "server" // a gate towards terminals
)

// Transfer is what may happen to a credential when its terminal is replaced.
type Transfer string

const (
	TransferCopy  Transfer = "copy"  // both terminals hold it afterwards
	TransferMove  Transfer = "move"  // only the new one does
	TransferNever Transfer = "never" // it stays where it was made
)

// CredentialState says whether a credential may be used.
type CredentialState string

const (
	CredentialActive  CredentialState = "active"
	CredentialInvalid CredentialState = "invalid"
)

// SecretForm is how CredentialSecret.Bytes is encoded.
type SecretForm string

// The forms of a secret. The list only grows.
const (
	SecretPKCS8    SecretForm = "pkcs8"    // a PKCS#8 private key in DER
	SecretRaw      SecretForm = "raw"      // 16 to 64 bytes of a symmetric key
	SecretHMAC     SecretForm = "hmac"     // 32 to 64 bytes of an HMAC key
	SecretPassword SecretForm = "password" // login, LF, password; UTF-8
	// SecretTPM is an hsm.Blob: the key is in this terminal's chip. It is
	// useless elsewhere and never on the wire.
	SecretTPM SecretForm = "tpm"
	// SecretDuplicate is such a key on its way to another chip: what TPM2_Import
	// takes, padded to a fixed length. It opens in that chip alone.
	SecretDuplicate SecretForm = "tpm2-dup"
)

// CredentialSecret is the part of a credential that must not be seen.
type CredentialSecret struct {
	Form  SecretForm `cbor:"1,keyasint"`
	Bytes Sensitive  `cbor:"2,keyasint"`
}

// A CredentialRecord is a credential whole: all that a terminal needs to reach
// the service. It is what the agent stores, sealed, and what a key copy carries.
type CredentialRecord struct {
	ID         Name             `cbor:"1,keyasint"`
	Kind       CredentialKind   `cbor:"2,keyasint"`
	Service    Name             `cbor:"3,keyasint"`
	Subject    Name             `cbor:"4,keyasint"` // the place registered at the service
	Usage      Usage            `cbor:"5,keyasint"`
	ServerName string           `cbor:"6,keyasint"` // the name the service's certificate must carry
	Endpoints  []string         `cbor:"7,keyasint"` // host:port, tried in this order
	Anchors    [][]byte         `cbor:"8,keyasint"` // DER roots for this service only (req: L18)
	Chain      [][]byte         `cbor:"9,keyasint"` // DER, leaf first
	Secret     CredentialSecret `cbor:"10,keyasint"`
	Expires    int64            `cbor:"11,keyasint"` // Unix seconds
	State      CredentialState  `cbor:"12,keyasint"`
	Transfer   Transfer         `cbor:"13,keyasint"`
	ChipOnly   bool             `cbor:"14,keyasint"`
}

// CommandIssue is the kind of command whose body is a CredentialOrder.
const CommandIssue = "credential.issue"

// CredentialOrder tells a terminal to make a key and ask for a certificate
// (req: L4). DNS is set for UsageServer only.
type CredentialOrder struct {
	Credential Name     `cbor:"1,keyasint"`
	Service    Name     `cbor:"2,keyasint"`
	Subject    Name     `cbor:"3,keyasint"`
	Usage      Usage    `cbor:"4,keyasint"`
	DNS        []string `cbor:"5,keyasint"`
	Transfer   Transfer `cbor:"6,keyasint"`
	ChipOnly   bool     `cbor:"7,keyasint"`
	// Fleet is the fleet key, a DER SubjectPublicKeyInfo, in an order for a key
	// that lives in a chip and may travel: it will say to which chips.
	Fleet []byte `cbor:"8,keyasint,omitempty"`
}

// CommandSet is the kind of command whose body is a CredentialSet.
const CommandSet = "credential.set"

// CredentialSet tells a terminal what may happen from now on to a credential
// that it holds, when it is replaced. Copies on other terminals are told by
// commands of their own.
type CredentialSet struct {
	Credential Name     `cbor:"1,keyasint"`
	Transfer   Transfer `cbor:"2,keyasint"`
}

// Check refuses what no server of ours sends.
func (m *CredentialSet) Check() error {
	if _, err := ParseName(string(m.Credential)); err != nil {
		return fmt.Errorf("credential: %w", err)
	}
	switch m.Transfer {
	case TransferCopy, TransferMove, TransferNever:
		return nil
	}
	return fmt.Errorf("unknown transfer rule %.20q", m.Transfer)
}

// CredentialRequest carries the PKCS#10 request for an order. The same request
// for the same command gets the same certificate: a reply may be lost.
type CredentialRequest struct {
	Command ID     `cbor:"1,keyasint"`
	CSR     []byte `cbor:"2,keyasint"`
}

// CredentialCertificate answers it. Remaining is in seconds.
type CredentialCertificate struct {
	Command    ID       `cbor:"1,keyasint"`
	Credential Name     `cbor:"2,keyasint"`
	Chain      [][]byte `cbor:"3,keyasint"`
	ServerName string   `cbor:"4,keyasint"`
	Endpoints  []string `cbor:"5,keyasint"`
	Anchors    [][]byte `cbor:"6,keyasint"`
	Remaining  int64    `cbor:"7,keyasint"`
}

// CredentialClaim reports a holding that did not come from the server, such as
// one that was copied, with proof (DESIGN D7): a signature by the credential's
// key (ECDSA, ASN.1) over ClaimDigest. Source is the device it came from. Txn
// and Transfer say by which key copy, and whether Source was to give it up; both
// are absent in claims from before there was such a record.
type CredentialClaim struct {
	Credential Name     `cbor:"1,keyasint"`
	Nonce      [32]byte `cbor:"2,keyasint"`
	Source     DeviceID `cbor:"3,keyasint"`
	Time       int64    `cbor:"4,keyasint"` // when it was copied, Unix seconds; 0: unknown
	Signature  []byte   `cbor:"5,keyasint"`
	Txn        *ID      `cbor:"6,keyasint,omitempty"`
	Transfer   Transfer `cbor:"7,keyasint,omitempty"` // copy or move
}

// CredentialClaimed says that the holding is in the inventory, and how its
// service is to be reached and judged, as CredentialCertificate does: what came
// with a copy is only the word of the terminal that it came from.
type CredentialClaimed struct {
	Credential Name     `cbor:"1,keyasint"`
	ServerName string   `cbor:"2,keyasint,omitempty"`
	Endpoints  []string `cbor:"3,keyasint,omitempty"`
	Anchors    [][]byte `cbor:"4,keyasint,omitempty"`
}

// Type implements Body.
func (*CredentialRequest) Type() string     { return "credential.request" }
func (*CredentialCertificate) Type() string { return "credential.certificate" }
func (*CredentialClaim) Type() string       { return "credential.claim" }
func (*CredentialClaimed) Type() string     { return "credential.claimed" }

// ClaimDigest is what a proof of holding signs: SHA-256 over a label, the
// server's nonce, the claiming device and the credential id.
func ClaimDigest(nonce [32]byte, device DeviceID, credential Name) [32]byte {
	h := sha256.New()
	h.Write([]byte("kagimori claim/1\x00"))
	h.Write(nonce[:])
	h.Write(device[:])
	h.Write([]byte(credential))
	return [32]byte(h.Sum(nil))
}
