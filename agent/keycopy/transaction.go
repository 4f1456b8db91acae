package keycopy

// A transaction is one run of the protocol after both ends have proven the
// codes. It outlives connections, programs and power: each end keeps it in a
// journal, and writes there before it says (docs/keycopy.md, docs/models).

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/kagimori/kagimori/transport"
)

// A Transaction is what an end has on record. It is never changed in place:
// others may be reading it.
type Transaction struct {
	ID     transport.ID           `cbor:"1,keyasint"`
	Side   transport.KeycopySide  `cbor:"2,keyasint"` // of the end that has this record
	Phase  transport.KeycopyPhase `cbor:"3,keyasint"`
	Mode   transport.KeycopyMode  `cbor:"4,keyasint"`
	Peer   transport.DeviceID     `cbor:"5,keyasint"` // as the other end says, under both codes
	Name   transport.Name         `cbor:"6,keyasint"` // its terminal name, proven by identity certificate; else empty
	Remote string                 `cbor:"7,keyasint"` // its network address; at the Target where it was dialled
	At     int64                  `cbor:"8,keyasint"` // when the codes matched, Unix seconds
	// KeycopyManifest says what the Target was offered; an entry's Transfer is
	// what happens in this transaction.
	transport.KeycopyManifest `cbor:"9,keyasint"`
	// Status has bit n set if item n is durably at the Target: with
	// KeycopyStaged at the Target, with the receipt at the Source.
	Status []byte `cbor:"10,keyasint"`
	// Resume is k(resume), 32 bytes, of whoever has the record; empty once
	// nothing can be resumed any more.
	Resume transport.Sensitive `cbor:"11,keyasint"`
	// Parent is the Target's chip, if it named one; on the Source only.
	Parent *transport.KeycopyParent `cbor:"12,keyasint,omitempty"`
	// Signature is the receipt's, if the Target has an identity.
	Signature []byte `cbor:"13,keyasint,omitempty"`
	// Forced is set by reclaim and activate: a person said that the other end is
	// gone.
	Forced bool `cbor:"14,keyasint,omitempty"`
	// Signed is what Signature is over (transport.KeycopySigned), for whoever is
	// to judge it later; on the Source only.
	Signed []byte `cbor:"15,keyasint,omitempty"`
	// Conflict is set when the ends have met and both use what moved: somebody was
	// wrong about the other end's being gone. No key is destroyed over it.
	Conflict bool `cbor:"16,keyasint,omitempty"`
}

// Taken lists the items that are durably at the Target.
func (t *Transaction) Taken() []transport.Name {
	return t.taken(func(transport.KeycopyEntry) bool { return true })
}

// Moving lists those of them that the Source is to give up.
func (t *Transaction) Moving() []transport.Name {
	return t.taken(func(e transport.KeycopyEntry) bool { return e.Transfer == transport.TransferMove })
}

func (t *Transaction) taken(which func(transport.KeycopyEntry) bool) []transport.Name {
	var list []transport.Name
	for n, e := range t.Items {
		if n/8 < len(t.Status) && t.Status[n/8]>>(n%8)&1 == 1 && which(e) {
			list = append(list, e.ID)
		}
	}
	return list
}

// moves says whether a key changes hands, as far as is known here.
func (t *Transaction) moves() bool { return len(t.Moving()) > 0 }

// names lists all items.
func (t *Transaction) names() []transport.Name {
	list := make([]transport.Name, len(t.Items))
	for n, e := range t.Items {
		list[n] = e.ID
	}
	return list
}

// in is t in another phase.
func (t *Transaction) in(p transport.KeycopyPhase) *Transaction {
	after := *t
	after.Phase = p
	return &after
}

// shown is t without its secret, for everybody but the Journal.
func (t *Transaction) shown() *Transaction {
	after := *t
	after.Resume = nil
	return &after
}

// manifestHash is H(manifest): the encoding is deterministic.
func (t *Transaction) manifestHash() ([sha256.Size]byte, error) {
	b, err := transport.Marshal(t.KeycopyManifest)
	if err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("encode manifest: %w", err)
	}
	return sha256.Sum256(b), nil
}

// What a Journal answers.
var (
	// ErrUnknownTransaction is an id that is not on record.
	ErrUnknownTransaction = errors.New("no such key copy is on record")
	// ErrOtherPhase is a transaction that is in another phase than expected.
	ErrOtherPhase = errors.New("the key copy is in another phase")
)

// A Journal keeps transactions, and does to the keys what a phase means, in one
// durable step. After a power cut it has all of a step or nothing.
type Journal interface {
	// Find looks a transaction up; ErrUnknownTransaction. The result is the
	// caller's, who wipes its Resume.
	Find(ctx context.Context, id transport.ID) (*Transaction, error)
	// Advance records t, whose phase was was before, 0 if it is new; if it is
	// another one by now nothing changes (ErrOtherPhase). t is lent. The phase may
	// stay: then only Conflict or Resume have changed. Otherwise, with it
	//   - KeycopyOffered ends every other transaction that is KeycopyOffered here
	//     (as KeycopyAbandoned), KeycopyStarted every other KeycopyStarted
	//     (as KeycopyDropped);
	//   - KeycopyCommitted disables t.Moving(), KeycopyReclaimed enables it again,
	//     KeycopyDone destroys it;
	//   - KeycopyActive puts to use what was staged; KeycopyDropped and
	//     KeycopyUnreceipted destroy what still is.
	Advance(ctx context.Context, t *Transaction, was transport.KeycopyPhase) error
}

// A Stager is the Journal of a Target.
type Stager interface {
	Journal
	// Stage goes from KeycopyStarted to KeycopyStaged: it checks each record,
	// stores those that this terminal can use (what is copied for use at once,
	// what moves for KeycopyActive), and gives t with Status and KeycopyStaged.
	// refused says why for the rest. If nothing can be taken it changes nothing
	// and gives an error: transport.KeycopyManifestRejected if it would be the same
	// another time, ErrOtherPhase, or what failed. The secrets are wiped when it
	// returns; the result's Resume is t's.
	Stage(ctx context.Context, t *Transaction, records []transport.CredentialRecord) (staged *Transaction, refused map[transport.Name]string, err error)
}

// A transition is what becomes of a transaction; t itself if there is nothing
// to do.
type transition func(t *Transaction) (*Transaction, error)

// recordTries is how often record starts anew after another connection of the
// same transaction was faster. A transaction has fewer phases.
const recordTries = 4

// record takes the transaction through next, durably, from where it stands by
// now. changed says whether that was this call. The result is fit to be shown.
func record(ctx context.Context, j Journal, id transport.ID, next transition) (t *Transaction, changed bool, err error) {
	for range recordTries {
		before, err := j.Find(ctx, id)
		if err != nil {
			return nil, false, notFound(err)
		}
		after, err := next(before)
		changed = err == nil && after != before
		if changed {
			err = j.Advance(ctx, after, before.Phase)
		}
		before.Resume.Wipe()
		switch {
		case err == nil:
			return after.shown(), changed, nil
		case errors.Is(err, ErrOtherPhase):
			continue
		}
		if _, ok := errors.AsType[*Error](err); !ok {
			err = fail(transport.KeycopyStoreFailed, fmt.Errorf("record the key copy: %w", err))
		}
		return nil, false, err
	}
	return nil, false, fail(transport.KeycopyTxnConflict, ErrOtherPhase)
}

// notFound is the fault of a transaction that could not be looked up.
func notFound(err error) error {
	if errors.Is(err, ErrUnknownTransaction) {
		return fail(transport.KeycopyTxnUnknown, err)
	}
	return fail(transport.KeycopyStoreFailed, fmt.Errorf("look up the key copy: %w", err))
}
