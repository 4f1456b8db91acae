package keycopy

// How a Source goes on with a transaction on a new connection: RESUME in,
// RESUMED out. The resume key stands for both codes.

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/kagimori/kagimori/transport"
)

// consumeResume looks the transaction up. Until the peer has proven the resume
// key, it learns nothing: an unknown transaction and a wrong key look the same.
func (r *sourceRun) consumeResume(ctx context.Context, f transport.KeycopyFrame) error {
	var m transport.KeycopyResume
	if err := transport.DecodeKeycopy(f, &m); err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	t, err := r.source.cfg.Journal.Find(ctx, m.Txn)
	if err != nil {
		return notFound(err)
	}
	defer t.Resume.Wipe()
	if t.Side != transport.KeycopySource || len(t.Resume) != keySize || t.Mode != r.channel.Mode {
		return fail(transport.KeycopyTxnUnknown, errors.New("nothing is left to resume in this mode"))
	}
	keys, err := newResumeKeys(t.Mode, t.Resume, &r.channel)
	if err != nil {
		return fail(transport.KeycopyAborted, err)
	}
	defer keys.wipe()
	body, err := transport.Marshal(m.KeycopyResumeBody)
	if err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	if !same(m.MAC, keys.targetTag(body)) {
		return fail(transport.KeycopyTxnUnknown, errors.New("the peer does not hold the resume key"))
	}
	if err := sameDevice(r.channel.Peer, r.channel.TargetKey, t.Peer); err != nil {
		return err
	}
	if t.Name != "" && r.channel.Peer == "" && t.Phase == transport.KeycopyOffered {
		return fail(transport.KeycopyModeRefused, fmt.Errorf("%s showed its identity when the copy began, and would give a receipt without it", t.Name))
	}
	r.admitted, r.proven, r.txn, r.deal = true, true, t.ID, t.shown()
	r.source.join(r, t.Phase)
	if err := r.reopen(ctx, t, m.Phase); err != nil {
		return err
	}
	return r.answerResume(t, keys, f.Body)
}

// reopen finds out what comes after RESUMED, by where the two ends stand.
func (r *sourceRun) reopen(ctx context.Context, t *Transaction, target transport.KeycopyPhase) (err error) {
	switch {
	case t.Phase == transport.KeycopyOffered && target == transport.KeycopyStarted:
		err = r.reload(ctx, t)
		r.then = sourceItems
	case t.Phase.Open() || t.Phase == transport.KeycopyDone:
		r.then = sourceReceipt
		if target == transport.KeycopyActive && t.Phase != transport.KeycopyOffered {
			r.then = sourceActivated // a receipt is here
		}
	case target == transport.KeycopyActive:
		err = r.conflict(ctx)
	}
	if !r.deal.Phase.Open() && r.deal.Phase != transport.KeycopyDone {
		r.then = sourceClosed
	} else if err == nil {
		r.source.cfg.tell(r.event(EventResumed, Event{Items: len(t.Items)}))
	}
	return err
}

// reload reads the items again. If they are not any more what was announced,
// the transaction ends here.
func (r *sourceRun) reload(ctx context.Context, t *Transaction) error {
	cfg := &r.source.cfg
	records, _, err := cfg.Records(ctx, t.names(), t.Parent)
	if err != nil {
		return fail(transport.KeycopyStoreFailed, fmt.Errorf("read credentials: %w", err))
	}
	defer WipeRecords(records)
	if r.offer, err = again(records, t.Items, cfg.Clock().Date); err == nil {
		return nil
	}
	return r.abandon(ctx)
}

// conflict notes that the Target uses what was taken back, or never left, here.
func (r *sourceRun) conflict(ctx context.Context) error {
	t, _, err := record(ctx, r.source.cfg.Journal, r.txn, func(t *Transaction) (*Transaction, error) { return t.conflicting(), nil })
	if err != nil {
		return err
	}
	r.note(t)
	r.source.cfg.tell(r.event(EventConflict, Event{}))
	return nil
}

// answerResume makes RESUMED, and the keys for what follows.
func (r *sourceRun) answerResume(t *Transaction, keys *resumeKeys, resume []byte) error {
	m := transport.KeycopyResumed{KeycopyResumeBody: transport.KeycopyResumeBody{Txn: t.ID, Phase: r.deal.Phase}}
	if _, err := io.ReadFull(r.source.cfg.Random, m.Nonce[:]); err != nil {
		return fail(transport.KeycopyAborted, err)
	}
	body, err := transport.Marshal(m.KeycopyResumeBody)
	if err != nil {
		return fail(transport.KeycopyAborted, err)
	}
	m.MAC = keys.sourceTag(resume, body)
	if r.resumed, err = transport.EncodeKeycopy(&m); err != nil {
		return fail(transport.KeycopyAborted, err)
	}
	if r.keys, err = newResumedKeys(t, &r.channel, resume, r.resumed.Body); err != nil {
		return fail(transport.KeycopyAborted, err)
	}
	r.state = sourceResumed
	return nil
}
