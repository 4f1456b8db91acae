package keycopy

// How a Target goes on with a transaction on a new connection: RESUME out,
// RESUMED in. What is unfinished decides what follows.

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/kagimori/kagimori/transport"
)

// resume computes RESUME, for the transaction as it is on record now.
func (t *Target) resume(ctx context.Context, ch transport.KeycopyChannel, id transport.ID) (*targetRun, error) {
	r := &targetRun{target: t, channel: ch, state: targetResume}
	if err := r.checkIdentity(); err != nil {
		return r, err
	}
	deal, err := t.cfg.Journal.Find(ctx, id)
	if err != nil {
		return r, notFound(err)
	}
	defer deal.Resume.Wipe()
	r.deal, r.mode = deal.shown(), deal.Mode
	if deal.Side != transport.KeycopyTarget || !deal.Phase.Open() || len(deal.Resume) != keySize {
		return r, fail(transport.KeycopyTxnConflict, fmt.Errorf("%w: it is %s here", ErrOtherPhase, deal.Phase))
	}
	if r.proof, err = newResumeKeys(deal.Mode, deal.Resume, &ch); err != nil {
		return r, fail(transport.KeycopyAborted, err)
	}
	m := transport.KeycopyResume{KeycopyResumeBody: transport.KeycopyResumeBody{Txn: id, Phase: deal.Phase}}
	if _, err := io.ReadFull(t.cfg.Random, m.Nonce[:]); err != nil {
		return r, fail(transport.KeycopyAborted, err)
	}
	body, err := transport.Marshal(m.KeycopyResumeBody)
	if err != nil {
		return r, fail(transport.KeycopyAborted, err)
	}
	m.MAC = r.proof.targetTag(body)
	if r.resume, err = transport.EncodeKeycopy(&m); err != nil {
		return r, fail(transport.KeycopyAborted, err)
	}
	return r, nil
}

// consumeResumed learns where the Source stands. Nothing else than this may end
// a transaction here without the operator.
func (r *targetRun) consumeResumed(ctx context.Context, f transport.KeycopyFrame) error {
	var m transport.KeycopyResumed
	if err := transport.DecodeKeycopy(f, &m); err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	body, err := transport.Marshal(m.KeycopyResumeBody)
	if err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	if !same(m.MAC, r.proof.sourceTag(r.resume.Body, body)) || m.Txn != r.deal.ID {
		return fail(transport.KeycopyAuthFailed, errors.New("the peer does not hold the resume key"))
	}
	if err := sameDevice(r.channel.Peer, r.channel.SourceKey, r.deal.Peer); err != nil {
		return err
	}
	if m.Phase == transport.KeycopyAbandoned || m.Phase == transport.KeycopyReclaimed {
		return r.sourceEnded(ctx)
	}
	before, err := r.target.cfg.Journal.Find(ctx, r.deal.ID)
	if err != nil {
		return notFound(err)
	}
	defer before.Resume.Wipe()
	if before.Phase != r.deal.Phase || len(before.Resume) != keySize { // another connection was faster
		return fail(transport.KeycopyTxnConflict, ErrOtherPhase)
	}
	if r.keys, err = newResumedKeys(before, &r.channel, r.resume.Body, f.Body); err != nil {
		return fail(transport.KeycopyAborted, err)
	}
	r.target.cfg.tell(r.event(EventResumed, Event{Items: len(r.deal.Items)}))
	return r.goOn(m.Phase)
}

// goOn chooses what follows RESUMED, by where the two ends stand.
func (r *targetRun) goOn(source transport.KeycopyPhase) error {
	switch r.deal.Phase {
	case transport.KeycopyStarted:
		if source != transport.KeycopyOffered {
			return fail(transport.KeycopyTxnConflict, fmt.Errorf("it is %s at the old terminal, and only begun here", source))
		}
		r.expectItems()
	case transport.KeycopyActive:
		r.state = targetActivated
		if source == transport.KeycopyOffered { // activated here by force: it has no receipt yet
			r.state = targetReceipt
		}
	default:
		r.state = targetReceipt
	}
	return nil
}

// sourceEnded obeys a Source that has ended the transaction: what was never used
// goes, what is in use stays. If that is something that moved, both use it.
func (r *targetRun) sourceEnded(ctx context.Context) error {
	t, _, err := record(ctx, r.target.cfg.Journal, r.deal.ID, func(t *Transaction) (*Transaction, error) {
		if !t.Phase.Open() {
			return t, nil
		}
		after := t.ended()
		if after.moves() {
			after = after.conflicting()
		}
		return after, nil
	})
	if err != nil {
		return err
	}
	r.deal = t
	r.state = targetClosed
	kind := EventEnded
	if t.Conflict {
		kind = EventConflict
	}
	r.target.cfg.tell(r.event(kind, Event{}))
	return nil
}
