package keycopy

// What the Source does once the codes match: it records who gets what, sends
// it, and takes the receipt. What moves it disables on the receipt and destroys
// when the Target says that it uses it. Each write comes before the frame that
// depends on it (docs/keycopy.md).

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/kagimori/kagimori/transport"
)

// prepareGrant loads what may go, records durably that it will, and makes GRANT.
func (r *sourceRun) prepareGrant(ctx context.Context) error {
	cfg := &r.source.cfg
	records, withheld, err := cfg.Records(ctx, r.hello.Select, r.hello.Parent)
	if err != nil {
		return fail(transport.KeycopyStoreFailed, fmt.Errorf("read credentials: %w", err))
	}
	defer WipeRecords(records)
	now := cfg.Clock().Date
	r.offer, err = Choose(records, Choice{Select: r.hello.Select, Want: r.hello.Want, Move: cfg.Move, Now: now, Withheld: withheld})
	if err != nil {
		return fail(transport.KeycopyStoreFailed, err)
	}
	manifest, err := transport.Marshal(r.offer.KeycopyManifest)
	if err != nil {
		return fail(transport.KeycopyAborted, err)
	}
	if err := r.sealGrant(manifest); err != nil {
		return err
	}
	t := newTransaction(transport.KeycopySource, r.txn, r.hello.Mode, r.hello.Target, &r.channel, now, &r.offer.KeycopyManifest)
	if len(t.Items) > 0 { // else there is nothing to go on with
		t.Phase, t.Resume, t.Parent = transport.KeycopyOffered, r.keys.resume, r.hello.Parent
		if err := cfg.Journal.Advance(ctx, t, 0); err != nil {
			return fail(transport.KeycopyStoreFailed, fmt.Errorf("record the offer: %w", err))
		}
	}
	r.note(t.shown())
	if err := r.source.serving(r); err != nil { // it was called off meanwhile
		return errors.Join(err, r.abandon(ctx))
	}
	cfg.tell(r.event(EventGranted, Event{Items: len(t.Items)}))
	return nil
}

// abandon ends the transaction unless it has come to a receipt.
func (r *sourceRun) abandon(ctx context.Context) error {
	if r.deal.Phase == 0 {
		return nil
	}
	t, _, err := record(ctx, r.source.cfg.Journal, r.txn, giveUp)
	if err == nil {
		r.note(t)
	}
	return err
}

// note keeps the transaction as it is on record by now.
func (r *sourceRun) note(t *Transaction) {
	r.deal = t
	r.source.note(t)
}

func (r *sourceRun) createItem() (f transport.KeycopyFrame, more bool, err error) {
	if err := r.source.serving(r); err != nil {
		return f, false, err
	}
	n, id := r.next, r.offer.Items[r.next].ID
	record := r.offer.take(n)
	defer record.Wipe()
	f, err = transport.EncodeKeycopy(&transport.KeycopyItem{Seq: uint32(n), ID: id, Sealed: r.keys.seal(uint32(n), id, record)})
	if err != nil {
		return f, false, fail(transport.KeycopyAborted, err)
	}
	r.next++
	r.source.cfg.tell(r.event(EventItem, Event{Item: r.next, Items: len(r.offer.Items), ID: id}))
	if r.next == len(r.offer.Items) {
		r.state = sourceReceipt
	}
	return f, r.state == sourceItems, nil
}

func (r *sourceRun) consumeReceipt(ctx context.Context, f transport.KeycopyFrame) error {
	var m transport.KeycopyReceipt
	if err := transport.DecodeKeycopy(f, &m); err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	body, err := transport.Marshal(m.KeycopyReceiptBody)
	if err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	if !same(m.MAC, r.keys.stepTag(r.keys.receipt, body)) || m.Txn != r.txn || m.Manifest != r.keys.manifest {
		return fail(transport.KeycopyAuthFailed, errors.New("the receipt is not of this copy"))
	}
	if err := r.checkSignature(r.keys.receiptDigest(body, m.MAC), m.Signature); err != nil {
		return err
	}
	if err := checkStatus(m.Status, len(r.deal.Items)); err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	t, changed, err := record(ctx, r.source.cfg.Journal, r.txn, receive(&m, transport.KeycopySigned(r.keys.transcript, body, m.MAC)))
	if err != nil {
		return err
	}
	r.note(t)
	r.source.received(r)
	r.keys.discard()
	r.state = sourceClose
	if t.moves() {
		r.state = sourceCommit
	}
	if changed {
		r.source.cfg.tell(r.event(EventInstalled, Event{Items: len(t.Taken())}))
	}
	return nil
}

// receive books a receipt, whose signature is over signed. The same one again
// changes nothing.
func receive(m *transport.KeycopyReceipt, signed []byte) transition {
	return func(t *Transaction) (*Transaction, error) {
		switch t.Phase {
		case transport.KeycopyOffered:
			after := t.in(transport.KeycopyDone)
			after.Status = m.Status
			if len(m.Signature) > 0 {
				after.Signature, after.Signed = m.Signature, signed
			}
			if after.moves() {
				after.Phase = transport.KeycopyCommitted
			}
			return after, nil
		case transport.KeycopyCommitted, transport.KeycopyDone:
			if bytes.Equal(t.Status, m.Status) {
				return t, nil
			}
		}
		return nil, fail(transport.KeycopyTxnConflict, fmt.Errorf("a receipt for a copy that is %s here", t.Phase))
	}
}

// consumeActivated destroys what moved: the Target uses it.
func (r *sourceRun) consumeActivated(ctx context.Context, f transport.KeycopyFrame) error {
	var m transport.KeycopyActivated
	if err := transport.DecodeKeycopy(f, &m); err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	body, err := transport.Marshal(m.KeycopyStepBody)
	if err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	if !same(m.MAC, r.keys.stepTag(r.keys.activated, body)) || m.Txn != r.txn {
		return fail(transport.KeycopyAuthFailed, errors.New("ACTIVATED is not of this copy"))
	}
	if err := r.checkSignature(r.keys.activatedDigest(body, m.MAC), m.Signature); err != nil {
		return err
	}
	t, _, err := record(ctx, r.source.cfg.Journal, r.txn, relinquish)
	if err != nil {
		return err
	}
	r.note(t)
	if t.Phase != transport.KeycopyDone { // reclaimed since RESUMED
		r.source.cfg.tell(r.event(EventConflict, Event{}))
		return fail(transport.KeycopyTxnConflict, errors.New("the keys were taken back here"))
	}
	r.state = sourceClose
	return nil
}

// relinquish gives up what moved.
func relinquish(t *Transaction) (*Transaction, error) {
	switch t.Phase {
	case transport.KeycopyCommitted:
		return t.in(transport.KeycopyDone), nil
	case transport.KeycopyDone:
		return t, nil
	case transport.KeycopyReclaimed:
		return t.conflicting(), nil
	}
	return nil, fail(transport.KeycopyTxnConflict, fmt.Errorf("ACTIVATED for a copy that is %s here", t.Phase))
}

// checkSignature wants a signature by the Target's identity exactly if it
// showed one.
func (r *sourceRun) checkSignature(digest [sha256.Size]byte, signature []byte) error {
	if r.channel.Peer == "" {
		if len(signature) > 0 {
			return fail(transport.KeycopyProtocol, errors.New("a signature without identity"))
		}
		return nil
	}
	public, err := x509.ParsePKIXPublicKey(r.channel.TargetKey)
	if err != nil {
		return fail(transport.KeycopyProtocol, fmt.Errorf("identity key: %w", err))
	}
	key, ok := public.(*ecdsa.PublicKey)
	if !ok || !ecdsa.VerifyASN1(key, digest[:], signature) {
		return fail(transport.KeycopyAuthFailed, errors.New("the signature is not the identity's"))
	}
	return nil
}

func (r *sourceRun) createCommit() (transport.KeycopyFrame, error) {
	m := transport.KeycopyCommit{KeycopyStepBody: transport.KeycopyStepBody{Txn: r.txn}}
	body, err := transport.Marshal(m.KeycopyStepBody)
	if err != nil {
		return transport.KeycopyFrame{}, fail(transport.KeycopyAborted, err)
	}
	m.MAC = r.keys.stepTag(r.keys.commit, body)
	r.state = sourceActivated
	return transport.EncodeKeycopy(&m)
}

func (r *sourceRun) createClose() (transport.KeycopyFrame, error) {
	m := transport.KeycopyClose{KeycopyStepBody: transport.KeycopyStepBody{Txn: r.txn}}
	body, err := transport.Marshal(m.KeycopyStepBody)
	if err != nil {
		return transport.KeycopyFrame{}, fail(transport.KeycopyAborted, err)
	}
	m.MAC = r.keys.stepTag(r.keys.close, body)
	r.state = sourceClosed
	return transport.EncodeKeycopy(&m)
}

// turnedDown looks at why the peer ended the connection: a Target that takes none
// of the items has ended the transaction.
func (r *sourceRun) turnedDown(ctx context.Context, err error) error {
	e, ok := errors.AsType[*Error](err)
	if !ok || !e.Remote || e.Fault != transport.KeycopyManifestRejected || r.deal == nil || r.deal.Phase != transport.KeycopyOffered {
		return err
	}
	return errors.Join(err, r.abandon(ctx))
}

// giveUp abandons what has come to no receipt, and leaves alone what has.
func giveUp(t *Transaction) (*Transaction, error) {
	if t.Phase != transport.KeycopyOffered {
		return t, nil
	}
	return Abandon(t)
}

// farewell forgets the resume key: the Target has closed the connection cleanly
// after CLOSE, which it does only when it has that on record.
func (r *sourceRun) farewell(ctx context.Context) error {
	_, _, err := record(ctx, r.source.cfg.Journal, r.txn, func(t *Transaction) (*Transaction, error) {
		if t.Phase != transport.KeycopyDone || len(t.Resume) == 0 {
			return t, nil
		}
		return Forget(t)
	})
	return err
}

// checkStatus refuses a status that is not of n items.
func checkStatus(status []byte, n int) error {
	if len(status) != (n+7)/8 {
		return fmt.Errorf("status of %d bytes for %d items", len(status), n)
	}
	if n%8 != 0 && status[n/8]>>(n%8) != 0 {
		return errors.New("status for items that are not there")
	}
	return nil
}
