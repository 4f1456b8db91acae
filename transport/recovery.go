package transport

import (
	"crypto/hpke"
	"errors"
	"fmt"
)

// Recovery of a store key (DESIGN D5). The server has a recovery key pair and
// gives terminals its public half; a terminal keeps its store key under that, as
// a wrap, beside the store. When its chip was cleared or exchanged, or a boot
// was measured that nobody approved, the terminal enrolls anew and asks for the
// key of its earlier store:
//
//	→ TerminalState             ← TerminalNoted, with the key to wrap for
//	→ RecoveryRequest           ← RecoveryState{asked}, until an administrator decides
//	                            ← RecoveryRelease, or RecoveryState{denied}
//	→ RecoveryTaken             ← RecoveryState{taken}
//
// The request is repeated, unchanged, until it ends; a release that was lost is
// sent again to the same recipient. Wrap and release are HPKE (RFC 9180, base
// mode) with MLKEM768X25519, HKDF-SHA256 and ChaCha20-Poly1305: a wrap lies on a
// flash for years, so whoever copies it today must not open it with a quantum
// computer later.

// Sizes in bytes.
const (
	StoreKeySize      = 32   // of a store key
	RecoveryKeySize   = 1216 // of a public recovery or recipient key
	recoverySeedSize  = 32   // of the private half
	recoveryEncSize   = 1120 // what HPKE puts before the ciphertext
	recoveryTagSize   = 16
	RecoverySealed    = recoveryEncSize + StoreKeySize + recoveryTagSize
	recoveryWrapInfo  = "kagimori recovery wrap/1"
	recoveryGiveInfo  = "kagimori recovery release/1"
	MaxRecoveryRecord = 2 << 10 // of an encoded RecoveryWrap
)

// ErrRecovery is a wrap or release that does not open: made for another key, by
// another device, for another deployment, or damaged.
var ErrRecovery = errors.New("it does not open under this recovery key for this device, store and deployment")

// TerminalState is what a terminal says of its store on every connection.
type TerminalState struct {
	// Incarnation grows when the store lost what it had: it fell back to its
	// second copy, or an administrator had it take an older file.
	Incarnation uint32 `cbor:"1,keyasint"`
	// Recovery is the version of the recovery key that this store's key is
	// wrapped for; 0: none.
	Recovery uint32 `cbor:"2,keyasint"`
	// Report is there once after the incarnation grew: all that the terminal
	// holds. What the server believes it to hold besides, it has lost.
	Report *TerminalReport `cbor:"3,keyasint,omitempty"`
}

// MaxReport is how many credentials a report may name.
const MaxReport = 512

// TerminalReport names the credentials that a terminal holds, at most MaxReport.
type TerminalReport struct {
	Holds []Name `cbor:"1,keyasint"`
}

// TerminalNoted answers it. Key is the public recovery key if the terminal has
// no wrap for it yet; Recovery is its version.
type TerminalNoted struct {
	Recovery uint32 `cbor:"1,keyasint"`
	Key      []byte `cbor:"2,keyasint,omitempty"`
}

// RecoveryWrap is a store key under a recovery key. All but Sealed is in clear
// and authenticated by it.
type RecoveryWrap struct {
	Version    uint32   `cbor:"1,keyasint"` // of the recovery key
	Deployment Name     `cbor:"2,keyasint"`
	Device     DeviceID `cbor:"3,keyasint"` // that made it
	Store      ID       `cbor:"4,keyasint"` // whose key it is
	Sealed     []byte   `cbor:"5,keyasint"`
}

// RecoveryRequest asks for the key in a wrap, to be sealed to Recipient. ID is
// drawn by the terminal, for one wrap and recipient.
type RecoveryRequest struct {
	ID        ID           `cbor:"1,keyasint"`
	Wrap      RecoveryWrap `cbor:"2,keyasint"`
	Recipient []byte       `cbor:"3,keyasint"`
}

// A RecoveryProgress is how far a request is.
type RecoveryProgress string

// How far a request may be.
const (
	RecoveryAsked    RecoveryProgress = "asked"    // an administrator has to decide
	RecoveryApproved RecoveryProgress = "approved" // to be released when the terminal asks next
	RecoveryDenied   RecoveryProgress = "denied"
	RecoveryReleased RecoveryProgress = "released" // sent at least once, to the one recipient
	RecoveryDone     RecoveryProgress = "taken"    // the terminal has it; it is not sent again
)

// RecoveryState says how far a request is.
type RecoveryState struct {
	ID    ID               `cbor:"1,keyasint"`
	State RecoveryProgress `cbor:"2,keyasint"`
}

// RecoveryRelease is the key, sealed to the recipient of the request.
type RecoveryRelease struct {
	ID     ID     `cbor:"1,keyasint"`
	Sealed []byte `cbor:"2,keyasint"`
}

// RecoveryTaken says that the terminal has made use of a release, durably, or,
// with GivenUp, that it needs none any more.
type RecoveryTaken struct {
	ID      ID   `cbor:"1,keyasint"`
	GivenUp bool `cbor:"2,keyasint"` // the key came another way, or nobody wants it
}

// Type implements Body.
func (*TerminalState) Type() string   { return "terminal.state" }
func (*TerminalNoted) Type() string   { return "terminal.noted" }
func (*RecoveryRequest) Type() string { return "recovery.request" }
func (*RecoveryState) Type() string   { return "recovery.state" }
func (*RecoveryRelease) Type() string { return "recovery.release" }
func (*RecoveryTaken) Type() string   { return "recovery.taken" }

func recoveryKEM() hpke.KEM { return hpke.MLKEM768X25519() }

// NewRecoveryKey makes a key pair: a server's, or a request's recipient. The
// seed is the private half.
func NewRecoveryKey() (seed Sensitive, public []byte, err error) {
	key, err := recoveryKEM().GenerateKey()
	if err != nil {
		return nil, nil, fmt.Errorf("make recovery key: %w", err)
	}
	if seed, err = key.Bytes(); err != nil {
		return nil, nil, fmt.Errorf("make recovery key: %w", err)
	}
	if len(seed) != recoverySeedSize {
		return nil, nil, fmt.Errorf("make recovery key: a seed of %d bytes", len(seed))
	}
	return seed, key.PublicKey().Bytes(), nil
}

// CheckRecoveryKey says whether public is one.
func CheckRecoveryKey(public []byte) error {
	if len(public) != RecoveryKeySize {
		return fmt.Errorf("%w: a recovery key of %d bytes", ErrMalformed, len(public))
	}
	if _, err := recoveryKEM().NewPublicKey(public); err != nil {
		return fmt.Errorf("%w: recovery key: %w", ErrMalformed, err)
	}
	return nil
}

// Seal fills Sealed with key under the public recovery key of w.Version.
func (w *RecoveryWrap) Seal(public []byte, key Sensitive) error {
	info, err := w.info()
	if err != nil {
		return err
	}
	w.Sealed, err = recoverySeal(public, info, key)
	return err
}

// Open gives the store key, which the caller wipes.
func (w *RecoveryWrap) Open(seed Sensitive) (Sensitive, error) {
	info, err := w.info()
	if err != nil {
		return nil, err
	}
	return recoveryOpen(seed, info, w.Sealed)
}

func (w RecoveryWrap) info() ([]byte, error) {
	w.Sealed = nil
	body, err := Marshal(&w)
	return append([]byte(recoveryWrapInfo+"\x00"), body...), err
}

// A RecoveryGrant is whom a release is for, all of it authenticated.
type RecoveryGrant struct {
	ID         ID       `cbor:"1,keyasint"` // of the request
	Deployment Name     `cbor:"2,keyasint"`
	Terminal   Name     `cbor:"3,keyasint"`
	Device     DeviceID `cbor:"4,keyasint"` // that asks
	Origin     DeviceID `cbor:"5,keyasint"` // that made the wrap
	Store      ID       `cbor:"6,keyasint"`
}

// Seal seals key to the recipient of a request.
func (g RecoveryGrant) Seal(recipient []byte, key Sensitive) (*RecoveryRelease, error) {
	info, err := g.info()
	if err != nil {
		return nil, err
	}
	sealed, err := recoverySeal(recipient, info, key)
	if err != nil {
		return nil, err
	}
	return &RecoveryRelease{ID: g.ID, Sealed: sealed}, nil
}

// Open opens a release for this grant.
func (g RecoveryGrant) Open(seed Sensitive, r *RecoveryRelease) (Sensitive, error) {
	info, err := g.info()
	if err != nil {
		return nil, err
	}
	return recoveryOpen(seed, info, r.Sealed)
}

func (g RecoveryGrant) info() ([]byte, error) {
	body, err := Marshal(&g)
	return append([]byte(recoveryGiveInfo+"\x00"), body...), err
}

func recoverySeal(public, info []byte, key Sensitive) ([]byte, error) {
	if len(key) != StoreKeySize {
		return nil, fmt.Errorf("seal for recovery: a key of %d bytes", len(key))
	}
	if err := CheckRecoveryKey(public); err != nil {
		return nil, err
	}
	to, err := recoveryKEM().NewPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("seal for recovery: %w", err)
	}
	return hpke.Seal(to, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), info, key)
}

func recoveryOpen(seed Sensitive, info, sealed []byte) (Sensitive, error) {
	if len(seed) != recoverySeedSize || len(sealed) != RecoverySealed {
		return nil, ErrRecovery
	}
	private, err := recoveryKEM().NewPrivateKey(seed)
	if err != nil {
		return nil, ErrRecovery
	}
	key, err := hpke.Open(private, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), info, sealed)
	if err != nil || len(key) != StoreKeySize {
		return nil, ErrRecovery
	}
	return key, nil
}
