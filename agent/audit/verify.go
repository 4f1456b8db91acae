package audit

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

// A Report is what Verify found.
type Report struct {
	// Sound: there is no Break. Gaps are no proof of anything; look at them.
	Sound   bool   `json:"sound"`
	Break   *Break `json:"break,omitempty"`
	Gaps    []Gap  `json:"gaps,omitempty"`
	Entries int    `json:"entries"`
	// First and Last are sequence numbers of what is here; what came before
	// First was removed for its age.
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
	// Anchored is the last entry that key storage has signed for, at Epoch of the
	// store and at AnchoredAt; Unanchored are the entries after it.
	Anchored   uint64    `json:"anchored"`
	AnchoredAt time.Time `json:"anchored_at,omitzero"`
	Epoch      uint64    `json:"anchor_epoch"`
	StoreEpoch uint64    `json:"store_epoch"`
	Unanchored int       `json:"unanchored"`
	Anchors    int       `json:"anchors"`
	// Earlier is how many of them are by keys that this device had before its
	// chip was replaced: this device's own cover what those were for, too.
	Earlier int       `json:"anchors_by_earlier_keys,omitempty"`
	Since   time.Time `json:"anchored_since,omitzero"` // of the oldest anchor
	Proof   *Proof    `json:"proof,omitempty"`
}

// A Break is the first thing that is wrong.
type Break struct {
	Seq    uint64 `json:"seq"` // of the entry at which it shows
	Reason string `json:"reason"`
}

// A Gap is a run of store epochs without anchor: key storage could not sign at
// the time, or the log was cut back.
type Gap struct {
	After  uint64 `json:"after_epoch"`
	Before uint64 `json:"before_epoch"`
	// Loss: the log tells, after the last anchor before it, of a loss of the store
	// that leaves such a run: a fall back, an older file accepted, a recovery.
	Loss bool `json:"after_loss,omitempty"`
}

// Proof is the newest anchor for a foreign eye: Signature is ECDSA with SHA-256
// over Message, by the key in PublicKey (PEM).
type Proof struct {
	Message   []byte `json:"message"`
	Signature []byte `json:"signature"`
	PublicKey string `json:"public_key"`
}

// lag is how many epochs an anchor may be behind: it is written after the change
// that it is for, and the power may fail in between.
const lag = 1

// young is by which epoch a log has its first anchor: a store begins at epoch 1,
// and the first start makes keys before it can sign with them.
const young = 4

// maxGaps is how many gaps a report lists.
const maxGaps = 32

// errBroken ends a walk at the first break.
var errBroken = errors.New("broken")

// Verify reads the whole log. identity is the device's public key; epoch is the
// store's.
func Verify(tx *store.Tx, device transport.DeviceID, identity crypto.PublicKey, epoch uint64) (*Report, error) {
	v := &verifier{tx: tx, device: device, report: Report{StoreEpoch: epoch}}
	var ok bool
	if v.identity, ok = identity.(*ecdsa.PublicKey); !ok {
		return nil, fmt.Errorf("verify audit log: a %T is no identity key", identity)
	}
	err := v.run()
	if err != nil && !errors.Is(err, errBroken) {
		return nil, fmt.Errorf("verify audit log: %w", err)
	}
	v.report.Sound = err == nil
	return &v.report, nil
}

type verifier struct {
	tx       *store.Tx
	device   transport.DeviceID
	identity *ecdsa.PublicKey
	report   Report
	anchors  []Anchor // by epoch, and so by Seq
	last     uint64   // epoch of the last anchor or base that has been seen
	loss     bool     // the log tells of one since then
	earlier  map[transport.DeviceID]*ecdsa.PublicKey
}

func (v *verifier) broken(seq uint64, format string, args ...any) error {
	v.report.Break = &Break{Seq: seq, Reason: fmt.Sprintf(format, args...)}
	return errBroken
}

func (v *verifier) run() error {
	if err := v.loadSigners(); err != nil {
		return err
	}
	at, err := v.base()
	if err != nil {
		return err
	}
	if err := v.loadAnchors(at); err != nil {
		return err
	}
	if at, err = v.walk(at); err != nil {
		return err
	}
	var end head
	if _, err := v.tx.Get(bucketState, keyHead, &end); err != nil {
		return v.damaged(at.Seq, err)
	}
	switch {
	case at.Seq < end.Seq:
		return v.broken(at.Seq+1, "the entries from here to %d were removed", end.Seq)
	case end != at:
		return v.broken(at.Seq, "the end of the log is not what was written last")
	case len(v.anchors) > 0:
		return v.broken(v.anchors[0].Statement.Seq, "key storage has signed that the log reached to here; it ends at %d", at.Seq)
	}
	v.report.Unanchored = int(at.Seq - v.report.Anchored)
	v.gap(v.report.Epoch, v.report.StoreEpoch) // 0: this device has signed for nothing yet
	return nil
}

// damaged makes a break of a record that does not open.
func (v *verifier) damaged(seq uint64, err error) error {
	if errors.Is(err, store.ErrDamaged) || errors.Is(err, transport.ErrMalformed) {
		return v.broken(seq, "the record was replaced or is damaged")
	}
	return err
}

// base is where the chain begins.
func (v *verifier) base() (at head, err error) {
	var base Anchor
	found, err := v.tx.Get(bucketState, keyBase, &base)
	if err != nil {
		return at, v.damaged(0, err)
	}
	if !found {
		return at, nil
	}
	s := &base.Statement
	if !s.Base {
		return at, v.broken(s.Seq, "the base is no base")
	}
	v.last = s.Epoch
	if s.Device == v.device {
		v.report.Anchored, v.report.Epoch = s.Seq, s.Epoch
	}
	return head{s.Seq, s.Hash}, v.signed(&base)
}

// signed checks an anchor's signature and takes note of it.
func (v *verifier) signed(a *Anchor) error {
	s := &a.Statement
	message, err := s.Message()
	if err != nil {
		return err
	}
	digest := sha256.Sum256(message)
	key := v.identity
	if s.Device != v.device {
		if key = v.earlier[s.Device]; key == nil {
			return v.broken(s.Seq, "the anchor at epoch %d is of another device", s.Epoch)
		}
	}
	if !ecdsa.VerifyASN1(key, digest[:], a.Signature) {
		return v.broken(s.Seq, "the anchor at epoch %d was not signed by this device's key storage", s.Epoch)
	}
	return nil
}

// loadSigners reads the keys that anchored this log before the present one.
func (v *verifier) loadSigners() error {
	v.earlier = map[transport.DeviceID]*ecdsa.PublicKey{}
	return v.tx.Each(bucketSigners, func(_ string, decode func(any) error) error {
		var r signer
		if err := decode(&r); err != nil {
			return v.damaged(0, err)
		}
		public, err := x509.ParsePKIXPublicKey(r.Public)
		if key, ok := public.(*ecdsa.PublicKey); ok && err == nil {
			v.earlier[transport.NewDeviceID(r.Public)] = key
		}
		return nil
	})
}

func (v *verifier) loadAnchors(base head) error {
	last, own := uint64(0), false
	return v.tx.Each(bucketAnchors, func(_ string, decode func(any) error) error {
		var a Anchor
		if err := decode(&a); err != nil {
			return v.damaged(base.Seq+1, err)
		}
		s := &a.Statement
		switch {
		case s.Base:
			return v.broken(s.Seq, "the anchor at epoch %d is none", s.Epoch)
		case s.Seq <= base.Seq:
			return nil // for what was removed; a crash came between
		case s.Seq < last, own && s.Device != v.device:
			return v.broken(s.Seq, "the anchors contradict each other")
		}
		own = s.Device == v.device
		last = s.Seq
		v.anchors = append(v.anchors, a)
		return v.signed(&a)
	})
}

// walk follows the chain from base to its end.
func (v *verifier) walk(at head) (head, error) {
	v.report.First, v.report.Last = at.Seq+1, at.Seq
	err := v.tx.Each(bucketEntries, func(k string, decode func(any) error) error {
		if k <= key(v.report.First-1) {
			return v.broken(v.report.First, "an entry from before the base is here again")
		}
		next := at.Seq + 1
		var e Entry
		if k != key(next) {
			return v.broken(next, "the entry was removed")
		}
		if err := decode(&e); err != nil {
			return v.damaged(next, err)
		}
		if e.Seq != next || e.Prev != at.Hash {
			return v.broken(next, "the entry does not follow the one before: one of the two was changed")
		}
		hash, err := e.hash()
		if err != nil {
			return err
		}
		at = head{next, hash}
		v.report.Entries, v.report.Last = v.report.Entries+1, next
		v.loss = v.loss || e.Kind == FellBack || e.Kind == OlderAccepted
		return v.anchored(at)
	})
	return at, err
}

// anchored compares what key storage signed for this entry.
func (v *verifier) anchored(at head) error {
	for len(v.anchors) > 0 && v.anchors[0].Statement.Seq == at.Seq {
		a := v.anchors[0]
		s := &a.Statement
		if s.Hash != at.Hash {
			return v.broken(at.Seq, "key storage signed for another entry at epoch %d: this one or one before it was rewritten", s.Epoch)
		}
		v.anchors = v.anchors[1:]
		if err := v.taken(&a); err != nil {
			return err
		}
	}
	return nil
}

func (v *verifier) taken(a *Anchor) error {
	s, r := &a.Statement, &v.report
	v.gap(v.last, s.Since)
	v.last, v.loss = s.Epoch, false
	if r.Anchors++; r.Since.IsZero() && s.Time > 0 {
		r.Since = time.Unix(s.Time, 0).UTC()
	}
	if s.Device != v.device {
		r.Earlier++
		return nil
	}
	message, err := s.Message()
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(v.identity)
	if err != nil {
		return err
	}
	r.Anchored, r.Epoch = s.Seq, s.Epoch
	if s.Time > 0 {
		r.AnchoredAt = time.Unix(s.Time, 0).UTC()
	}
	r.Proof = &Proof{Message: message, Signature: a.Signature, PublicKey: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))}
	return nil
}

// gap notes epochs that nothing was anchored at.
func (v *verifier) gap(after, before uint64) {
	most := uint64(lag)
	if v.last == 0 { // no anchor and no base so far
		most = young
	}
	if before > after && before-after > most && len(v.report.Gaps) < maxGaps {
		v.report.Gaps = append(v.report.Gaps, Gap{After: after, Before: before, Loss: v.loss})
	}
}
