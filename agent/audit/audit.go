// Package audit is a daemon's own log of what happened to its keys, made so that
// tampering shows (issue "Key storage that survives the field"). START HERE:
// entries and their chain; anchor.go signs the head of the chain; verify.go
// finds the first thing that is wrong; list.go reads.
//
// # What it shows, and what it does not
//
// Each entry holds the hash of the one before it, and is written in the
// transaction of the effect that it tells of: there is no effect without entry
// and no entry without effect. Whoever has the disk but not the store key can
// remove entries or put older ones in their place; the chain shows either.
// Whoever has the store key as well can write another chain; it then contradicts
// the last anchor, a signature by the device's identity key, which does not
// leave key storage. Entries after the last anchor are protected by the chain
// only, and whoever controls the running daemon controls what it writes next.
//
// # Bounds
//
// The oldest entries are removed in blocks of Block once there are more than
// Kept. A signed base takes their place, so that the rest still verifies.
package audit

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

// Bounds, in entries and in bytes.
const (
	// Kept is how many entries are never removed; Block how many go at a time.
	Kept  = 2048
	Block = 256

	maxSubject = 128
	maxDetail  = 256
)

const (
	bucketEntries = "audit"         // sequence number, 16 hex digits → Entry
	bucketAnchors = "audit-anchors" // likewise, of the entry that is signed → Anchor
	bucketSigners = "audit-signers" // device, in hex → signer
	bucketState   = "audit-state"
	keyHead       = "head" // head
	keyBase       = "base" // Anchor: what the oldest entry follows
)

// Separators of what is hashed and signed from everything else that is.
const (
	entryPrefix     = "kagimori audit entry/1\x00"
	statementPrefix = "kagimori audit anchor/1\x00"
)

// A Kind is what an entry is about. The list only grows.
type Kind string

// What is logged.
const (
	Started         Kind = "started" // the log begins
	Provisioned     Kind = "provisioned"
	Enrolled        Kind = "enrolled"         // also: the identity certificate was renewed
	Installed       Kind = "installed"        // a credential was issued to this device
	Enabled         Kind = "enabled"          // it may be used again
	Invalidated     Kind = "invalidated"      // it may not be used any more
	Erased          Kind = "erased"           // its key is destroyed
	RuleSet         Kind = "rule-set"         // another rule says whether it may be copied or moved
	CopyOffered     Kind = "copy-offered"     // an operator code was made
	CopyGiven       Kind = "copy-given"       // keys left this device
	CopyDelivered   Kind = "copy-delivered"   // and the other one has confirmed them
	CopyReceived    Kind = "copy-received"    // keys came to this device
	CopyCommitted   Kind = "copy-committed"   // the other one has what moves: it is disabled here
	CopyActivated   Kind = "copy-activated"   // what moved here is in use
	CopyDone        Kind = "copy-done"        // both ends know that it is over; what moved is destroyed at the old one
	CopyReclaimed   Kind = "copy-reclaimed"   // an administrator took back what moved
	CopyAbandoned   Kind = "copy-abandoned"   // it ended without a receipt, nothing has changed here
	CopyDropped     Kind = "copy-dropped"     // it ended, what was staged is destroyed
	CopyConflict    Kind = "copy-conflict"    // both ends use what moved: an administrator was wrong about one
	CopyFailed      Kind = "copy-failed"      // a wrong code, counted
	CopyLocked      Kind = "copy-locked"      // too many of them
	CopyUnlocked    Kind = "copy-unlocked"    // an administrator forgave them
	Recovered       Kind = "recovered"        // the store key came from a recovery wrap
	RecoverySet     Kind = "recovery-set"     // a recovery wrap was made
	FellBack        Kind = "fell-back"        // the second copy of the store is in use
	OlderAccepted   Kind = "older-accepted"   // an administrator let an older store in
	PINSet          Kind = "pin-set"          // key copies ask for a PIN from now on
	PINCleared      Kind = "pin-cleared"      //
	PINWrong        Kind = "pin-wrong"        //
	Passphrase      Kind = "passphrase"       // key storage's passphrase was set, changed or removed
	BootPrepared    Kind = "boot-prepared"    // a second boot slot was made
	BootConfirmed   Kind = "boot-confirmed"   // and the old one removed
	LockoutSet      Kind = "lockout-set"      // the TPM's guard against guessing has new limits
	LockoutReset    Kind = "lockout-reset"    // and forgot what it had counted
	SelfRevoked     Kind = "self-revoked"     // this device gave its own credential up
	SecurityCode    Kind = "security-code"    // another epoch of it is held, or one is retired
	GatesRevoked    Kind = "gates-revoked"    // another list of gates that may not be talked to
	IdentityCreated Kind = "identity-created" // the device's own key was made
	ChipApproved    Kind = "chip-approved"    // keys that live in a chip may come to this one
	Imported        Kind = "imported"         // an administrator brought a credential
)

// Kinds lists all that is logged.
func Kinds() []Kind {
	return []Kind{
		Started, Provisioned, Enrolled, Installed, Enabled, Invalidated, Erased, RuleSet, CopyOffered,
		CopyGiven, CopyDelivered, CopyReceived, CopyCommitted, CopyActivated, CopyDone, CopyReclaimed,
		CopyAbandoned, CopyDropped, CopyConflict, CopyFailed, CopyLocked, CopyUnlocked, Recovered, RecoverySet,
		FellBack, OlderAccepted, PINSet, PINCleared, PINWrong, Passphrase, BootPrepared, BootConfirmed,
		LockoutSet, LockoutReset, SelfRevoked, SecurityCode, GatesRevoked, IdentityCreated, ChipApproved, Imported,
	}
}

// An Entry is one line of the log. It holds nothing secret.
type Entry struct {
	Seq  uint64 `cbor:"1,keyasint"` // from 1, without gaps
	Time int64  `cbor:"2,keyasint"` // Unix seconds; 0: the clock was not plausible
	Kind Kind   `cbor:"3,keyasint"`
	// Subject is whom or what it is about: a credential, a terminal, a device.
	Subject string   `cbor:"4,keyasint"`
	Detail  string   `cbor:"5,keyasint"`
	Prev    [32]byte `cbor:"6,keyasint"` // hash of the entry before; zeros in the first
}

// hash is what the next entry holds.
func (e *Entry) hash() ([32]byte, error) {
	b, err := transport.Marshal(e)
	if err != nil {
		return [32]byte{}, fmt.Errorf("hash audit entry: %w", err)
	}
	return sha256.Sum256(append([]byte(entryPrefix), b...)), nil
}

// head is the last entry, so that appending reads nothing else.
type head struct {
	Seq  uint64   `cbor:"1,keyasint"`
	Hash [32]byte `cbor:"2,keyasint"`
}

func key(seq uint64) string { return fmt.Sprintf("%016x", seq) }

// Append writes an entry into a transaction. at is in Unix seconds, 0 if nobody
// knows the time. Subject and detail are cut to what an entry holds.
func Append(tx *store.Tx, at int64, kind Kind, subject, detail string) error {
	var h head
	if _, err := tx.Get(bucketState, keyHead, &h); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	e := Entry{Seq: h.Seq + 1, Time: at, Kind: kind, Subject: cut(subject, maxSubject), Detail: cut(detail, maxDetail), Prev: h.Hash}
	hash, err := e.hash()
	if err != nil {
		return err
	}
	if err := tx.Put(bucketEntries, key(e.Seq), &e); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	if err := tx.Put(bucketState, keyHead, &head{Seq: e.Seq, Hash: hash}); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return nil
}

// cut makes s valid text of at most n bytes.
func cut(s string, n int) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
