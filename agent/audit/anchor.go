package audit

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

// A Statement is what key storage signs about the log.
type Statement struct {
	Device transport.DeviceID `cbor:"1,keyasint"`
	Seq    uint64             `cbor:"2,keyasint"` // the log reached at least to here
	Hash   [32]byte           `cbor:"3,keyasint"` // and this was the hash of that entry
	// Epoch is the store's at that time: its key storage counts those, so a
	// store that is older than its log, or the other way round, shows.
	Epoch uint64 `cbor:"4,keyasint"`
	// Since is the epoch at which the daemon that signed this had opened the
	// store. Nothing is missing between two anchors if the epoch of the first is
	// no earlier than the Since of the second.
	Since uint64 `cbor:"5,keyasint"`
	Time  int64  `cbor:"6,keyasint"` // Unix seconds; 0: the clock was not plausible
	// Base: the entries up to Seq were removed for their age.
	Base bool `cbor:"7,keyasint"`
}

// Message is what is signed, with ECDSA over its SHA-256 digest: any program
// that knows the device's public key can check it.
func (s *Statement) Message() ([]byte, error) {
	b, err := transport.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("audit anchor: %w", err)
	}
	return append([]byte(statementPrefix), b...), nil
}

// An Anchor is a signed statement.
type Anchor struct {
	Statement Statement `cbor:"1,keyasint"`
	Signature []byte    `cbor:"2,keyasint"` // ASN.1 ECDSA by the identity key
}

// Sign signs a statement. A chip takes its time: do it outside of transactions.
func Sign(s Statement, identity crypto.Signer) (*Anchor, error) {
	message, err := s.Message()
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(message)
	signature, err := identity.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("sign audit anchor: %w", err)
	}
	return &Anchor{Statement: s, Signature: signature}, nil
}

// A signer is an identity key that anchors this log, or did before the chip was
// replaced.
type signer struct {
	Public []byte `cbor:"1,keyasint"` // DER, SubjectPublicKeyInfo
}

// Adopt takes note of the identity key that anchors the log from now on. It
// belongs into the transaction that keeps that key.
func Adopt(tx *store.Tx, identity crypto.PublicKey) error {
	spki, err := x509.MarshalPKIXPublicKey(identity)
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return tx.Put(bucketSigners, transport.NewDeviceID(spki).String(), &signer{Public: spki})
}

// Head gives what is to be signed next, for a store that is at epoch. due is
// false when the newest anchor says all of it already. Device, Since and Time
// are the caller's to set.
func Head(tx *store.Tx, epoch uint64) (next Statement, due bool, err error) {
	var h head
	found, err := tx.Get(bucketState, keyHead, &h)
	if err != nil || !found {
		return next, false, err
	}
	newest, err := newest(tx)
	if err != nil {
		return next, false, err
	}
	return Statement{Seq: h.Seq, Hash: h.Hash, Epoch: epoch}, newest == nil || newest.Statement.Epoch < epoch, nil
}

// newest gives the last anchor, or the base, or nil.
func newest(tx *store.Tx) (last *Anchor, err error) {
	var base Anchor
	found, err := tx.Get(bucketState, keyBase, &base)
	if err != nil {
		return nil, err
	}
	if found {
		last = &base
	}
	err = tx.Each(bucketAnchors, func(_ string, decode func(any) error) error {
		var a Anchor
		last = &a
		return decode(&a)
	})
	return last, err
}

// Keep writes an anchor. One that follows another of the same run for the same
// entry takes its place: it says the same and more.
func Keep(tx *store.Tx, a *Anchor) error {
	last, err := newest(tx)
	if err != nil {
		return err
	}
	if last != nil && !last.Statement.Base && last.Statement.Seq == a.Statement.Seq && last.Statement.Since == a.Statement.Since {
		if err := tx.Delete(bucketAnchors, key(last.Statement.Epoch)); err != nil {
			return err
		}
	}
	if err := tx.Put(bucketAnchors, key(a.Statement.Epoch), a); err != nil {
		return fmt.Errorf("keep audit anchor: %w", err)
	}
	return nil
}

// Old gives the statement with which the oldest entries may be removed; due is
// false while there are not enough of them.
func Old(tx *store.Tx) (base Statement, due bool, err error) {
	var h head
	if _, err := tx.Get(bucketState, keyHead, &h); err != nil {
		return base, false, err
	}
	var before Anchor
	if _, err := tx.Get(bucketState, keyBase, &before); err != nil {
		return base, false, err
	}
	base = before.Statement
	if h.Seq-base.Seq < Kept+Block {
		return base, false, nil
	}
	base.Seq, base.Base, base.Hash = base.Seq+Block, true, [32]byte{}
	var next Entry
	found, err := tx.Get(bucketEntries, key(base.Seq+1), &next)
	if err != nil || !found {
		return base, false, err // Verify says what is wrong
	}
	base.Hash = next.Prev
	err = tx.Each(bucketAnchors, func(_ string, decode func(any) error) error {
		var a Anchor
		if err := decode(&a); err != nil {
			return err
		}
		if a.Statement.Seq > base.Seq {
			return store.ErrStop
		}
		base.Epoch = max(base.Epoch, a.Statement.Epoch)
		return nil
	})
	return base, true, err
}

// Prune removes what the base stands for.
func Prune(tx *store.Tx, base *Anchor) error {
	var before Anchor
	if _, err := tx.Get(bucketState, keyBase, &before); err != nil {
		return err
	}
	if err := tx.Put(bucketState, keyBase, base); err != nil {
		return fmt.Errorf("prune audit log: %w", err)
	}
	for seq := before.Statement.Seq + 1; seq <= base.Statement.Seq; seq++ {
		if err := tx.Delete(bucketEntries, key(seq)); err != nil {
			return fmt.Errorf("prune audit log: %w", err)
		}
	}
	return tx.Each(bucketAnchors, func(key string, decode func(any) error) error {
		var a Anchor
		if err := decode(&a); err != nil {
			return err
		}
		if a.Statement.Seq > base.Statement.Seq {
			return store.ErrStop
		}
		return tx.Delete(bucketAnchors, key)
	})
}
