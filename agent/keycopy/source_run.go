package keycopy

// One connection of the Source: HELLO in, HELLO_ACK out, PROOF in
// (source_handshake.go), GRANT and ITEMs out, RECEIPT in, CLOSE out.

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/kagimori/kagimori/transport"
)

// sourceState is what a run of the Source does next. Moving adds states for
// COMMIT and ACTIVATED between receipt and close, resuming one beside hello.
type sourceState uint8

const (
	sourceHello    sourceState = iota + 1 // takes HELLO
	sourceAck                             // gives HELLO_ACK
	sourceProof                           // takes PROOF
	sourceGranting                        // gives GRANT; from here on the code is this run's
	sourceItems                           // gives ITEMs
	sourceReceipt                         // takes RECEIPT
	sourceClose                           // gives CLOSE
	sourceClosed                          // done
)

func (s sourceState) String() string {
	names := [...]string{"new", "hello", "ack", "proof", "granting", "items", "receipt", "close", "closed"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

type sourceRun struct {
	source   *Source
	channel  transport.KeycopyChannel
	state    sourceState
	admitted bool // the peer has the security code
	judged   bool // its operator code was wrong
	received bool // the receipt is recorded

	hello  transport.KeycopyHello
	fleet  *fleetKeys
	keys   *runKeys
	txn    transport.ID
	ack    transport.KeycopyFrame
	answer transport.KeycopyTag // Ta
	grant  transport.KeycopyFrame
	offer  *Offer
	next   int // item to send
	deal   *Transaction
}

func (s *Source) newRun(ch transport.KeycopyChannel) *sourceRun {
	return &sourceRun{source: s, channel: ch, state: sourceHello}
}

// expects is the type of frame that consume takes now; 0 when it is our turn.
func (r *sourceRun) expects() transport.KeycopyType {
	switch r.state {
	case sourceHello:
		return transport.KeycopyTypeHello
	case sourceProof:
		return transport.KeycopyTypeProof
	case sourceReceipt:
		return transport.KeycopyTypeReceipt
	}
	return 0
}

func (r *sourceRun) finished() bool { return r.state == sourceClosed }

// consume takes the peer's frame.
func (r *sourceRun) consume(ctx context.Context, f transport.KeycopyFrame) error {
	if err := refusal(f, r.expects()); err != nil {
		return err
	}
	switch r.state {
	case sourceHello:
		return r.consumeHello(ctx, f)
	case sourceProof:
		return r.consumeProof(ctx, f)
	case sourceReceipt:
		return r.consumeReceipt(ctx, f)
	}
	return fail(transport.KeycopyProtocol, fmt.Errorf("%s in state %s", f.Type, r.state))
}

// create gives our next frame, and whether another follows before the peer's.
func (r *sourceRun) create() (f transport.KeycopyFrame, more bool, err error) {
	switch r.state {
	case sourceAck:
		r.state = sourceProof
		return r.ack, false, nil
	case sourceGranting:
		r.state = sourceItems
		if len(r.offer.Items) == 0 {
			r.state = sourceReceipt
		}
		return r.grant, r.state == sourceItems, nil
	case sourceItems:
		return r.createItem()
	case sourceClose:
		return r.createClose()
	}
	return f, false, fail(transport.KeycopyProtocol, fmt.Errorf("nothing to send in state %s", r.state))
}

// prepareGrant loads what may be copied, records durably that it will leave,
// and makes GRANT.
func (r *sourceRun) prepareGrant(ctx context.Context) error {
	cfg := &r.source.cfg
	records, err := cfg.Records(ctx)
	if err != nil {
		return fail(transport.KeycopyStoreFailed, fmt.Errorf("read credentials: %w", err))
	}
	defer WipeRecords(records)
	now := cfg.Clock().Date
	if r.offer, err = Choose(records, r.hello.Select, now); err != nil {
		return fail(transport.KeycopyStoreFailed, err)
	}
	manifest, err := transport.Marshal(r.offer.KeycopyManifest)
	if err != nil {
		return fail(transport.KeycopyAborted, err)
	}
	if err := r.sealGrant(manifest); err != nil {
		return err
	}
	r.deal = newTransaction(transport.KeycopySource, r.txn, r.hello.Target, &r.channel, now, &r.offer.KeycopyManifest)
	if err := cfg.Journal.Offered(ctx, r.deal); err != nil {
		return fail(transport.KeycopyStoreFailed, fmt.Errorf("record the offer: %w", err))
	}
	r.source.note(r.deal)
	cfg.tell(r.event(EventGranted, Event{Items: len(r.offer.Items)}))
	return nil
}

func (r *sourceRun) createItem() (f transport.KeycopyFrame, more bool, err error) {
	if err := r.source.serving(); err != nil {
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
	if !same(m.MAC, r.keys.receiptTag(body)) || m.Txn != r.txn || m.Manifest != r.keys.manifest {
		return fail(transport.KeycopyAuthFailed, errors.New("the receipt is not of this copy"))
	}
	if err := r.checkSignature(&m, body); err != nil {
		return err
	}
	if err := checkStatus(m.Status, len(r.deal.Items)); err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	r.deal = r.deal.with(m.Status)
	r.source.note(r.deal)
	cfg := &r.source.cfg
	if err := cfg.Journal.Received(ctx, r.deal); err != nil {
		return fail(transport.KeycopyStoreFailed, fmt.Errorf("record the receipt: %w", err))
	}
	r.source.received()
	r.received = true
	r.state = sourceClose
	cfg.tell(r.event(EventInstalled, Event{Items: len(r.deal.Taken())}))
	return nil
}

// checkSignature wants a signature by the Target's identity exactly if it
// showed one.
func (r *sourceRun) checkSignature(m *transport.KeycopyReceipt, body []byte) error {
	if r.channel.Peer == "" {
		if len(m.Signature) > 0 {
			return fail(transport.KeycopyProtocol, errors.New("a signature without identity"))
		}
		return nil
	}
	public, err := x509.ParsePKIXPublicKey(r.channel.TargetKey)
	if err != nil {
		return fail(transport.KeycopyProtocol, fmt.Errorf("identity key: %w", err))
	}
	key, ok := public.(*ecdsa.PublicKey)
	digest := r.keys.receiptDigest(body, m.MAC)
	if !ok || !ecdsa.VerifyASN1(key, digest[:], m.Signature) {
		return fail(transport.KeycopyAuthFailed, errors.New("the receipt's signature is not the identity's"))
	}
	return nil
}

func (r *sourceRun) createClose() (f transport.KeycopyFrame, more bool, err error) {
	m := transport.KeycopyClose{KeycopyStepBody: transport.KeycopyStepBody{Txn: r.txn}}
	body, err := transport.Marshal(m.KeycopyStepBody)
	if err != nil {
		return f, false, fail(transport.KeycopyAborted, err)
	}
	m.MAC = r.keys.closeTag(body)
	r.state = sourceClosed
	f, err = transport.EncodeKeycopy(&m)
	return f, false, err
}

// end wipes what the run holds and gives its place up.
func (r *sourceRun) end(err error) {
	r.fleet.wipe()
	r.keys.wipe()
	r.offer.Wipe()
	r.source.leave(r)
	switch tell := r.source.cfg.tell; {
	case err == nil:
		tell(r.event(EventClosed, Event{}))
	case r.judged:
	case r.state < sourceGranting:
		tell(r.event(EventTurned, Event{Err: err}))
	default:
		tell(r.event(EventAborted, Event{Err: err}))
	}
}

// event fills in who is at the other end.
func (r *sourceRun) event(kind EventKind, e Event) Event {
	e.Kind, e.Remote, e.Name, e.Transaction = kind, r.channel.Remote, r.channel.Peer, r.deal
	if r.admitted {
		e.Device = r.hello.Target
	}
	return e
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
