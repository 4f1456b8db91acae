package keycopy

// One connection of the Target: HELLO out, HELLO_ACK in, PROOF out
// (target_handshake.go), GRANT and ITEMs in, RECEIPT out, CLOSE in.

import (
	"context"
	"crypto"
	"errors"
	"fmt"

	"github.com/kagimori/kagimori/transport"
)

// targetState is what a run of the Target does next. Moving adds states for
// COMMIT and ACTIVATED between receipt and close, resuming one beside hello.
type targetState uint8

const (
	targetHello   targetState = iota + 1 // gives HELLO
	targetAck                            // takes HELLO_ACK
	targetProof                          // gives PROOF; the attempt is counted
	targetGrant                          // takes GRANT; from here on the code is used up
	targetItems                          // takes ITEMs
	targetReceipt                        // gives RECEIPT; the credentials are installed
	targetClose                          // takes CLOSE
	targetClosed                         // done
)

func (s targetState) String() string {
	names := [...]string{"new", "hello", "ack", "proof", "grant", "items", "receipt", "close", "closed"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

type targetRun struct {
	target  *Target
	channel transport.KeycopyChannel
	state   targetState

	fleet   *fleetKeys
	keys    *runKeys
	pace    *cpace
	hello   transport.KeycopyFrame
	ack     transport.KeycopyHelloAck
	entries []transport.KeycopyEntry
	records []transport.CredentialRecord
	deal    *Transaction // set once the Source has proven the codes
}

// expects is the type of frame that consume takes now; 0 when it is our turn.
func (r *targetRun) expects() transport.KeycopyType {
	switch r.state {
	case targetAck:
		return transport.KeycopyTypeHelloAck
	case targetGrant:
		return transport.KeycopyTypeGrant
	case targetItems:
		return transport.KeycopyTypeItem
	case targetClose:
		return transport.KeycopyTypeClose
	}
	return 0
}

func (r *targetRun) finished() bool { return r.state == targetClosed }

// consume takes the peer's frame.
func (r *targetRun) consume(ctx context.Context, f transport.KeycopyFrame) error {
	if err := refusal(f, r.expects()); err != nil {
		return err
	}
	switch r.state {
	case targetAck:
		return r.consumeAck(ctx, f)
	case targetGrant:
		return r.consumeGrant(ctx, f)
	case targetItems:
		return r.consumeItem(ctx, f)
	case targetClose:
		return r.consumeClose(f)
	}
	return fail(transport.KeycopyProtocol, fmt.Errorf("%s in state %s", f.Type, r.state))
}

// create gives our next frame; another never follows before the peer's.
func (r *targetRun) create() (f transport.KeycopyFrame, more bool, err error) {
	switch r.state {
	case targetHello:
		r.state = targetAck
		return r.hello, false, nil
	case targetProof:
		r.state = targetGrant
		f, err = transport.EncodeKeycopy(&transport.KeycopyProof{Tag: r.keys.targetTag()})
		return f, false, err
	case targetReceipt:
		f, err = r.createReceipt()
		return f, false, err
	}
	return f, false, fail(transport.KeycopyProtocol, fmt.Errorf("nothing to send in state %s", r.state))
}

// granted looks at what is offered, now that the Source has proven the codes.
func (r *targetRun) granted(encoded []byte) error {
	cfg := &r.target.cfg
	manifest, err := transport.DecodeKeycopyManifest(encoded)
	if err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	r.entries = manifest.Items
	r.deal = newTransaction(transport.KeycopyTarget, r.ack.Txn, r.ack.Source, &r.channel, cfg.Clock().Date, manifest)
	cfg.tell(r.event(EventGranted, Event{Items: len(r.entries)}))
	if len(r.entries) == 0 {
		return fail(transport.KeycopyManifestRejected, errors.New("the old terminal offers no credential"))
	}
	for i := range r.entries {
		if e := &r.entries[i]; e.Transfer != transport.TransferCopy || e.ChipOnly {
			return fail(transport.KeycopyManifestRejected, fmt.Errorf("credential %s may not be copied", e.ID))
		}
	}
	r.records = make([]transport.CredentialRecord, 0, len(r.entries))
	r.state = targetItems
	return nil
}

func (r *targetRun) consumeItem(ctx context.Context, f transport.KeycopyFrame) error {
	var m transport.KeycopyItem
	if err := transport.DecodeKeycopy(f, &m); err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	n := len(r.records)
	entry := r.entries[n]
	if int(m.Seq) != n || m.ID != entry.ID {
		return fail(transport.KeycopyProtocol, fmt.Errorf("item %d %s where %d %s was announced", m.Seq, m.ID, n, entry.ID))
	}
	plain, err := r.keys.open(m.Seq, m.ID, m.Sealed)
	if err != nil {
		return fail(transport.KeycopyAuthFailed, fmt.Errorf("item %d does not open", n))
	}
	defer clear(plain)
	r.records = append(r.records, transport.CredentialRecord{})
	record := &r.records[n]
	if err := transport.Unmarshal(plain, record, transport.MaxKeycopyRecord); err != nil {
		return fail(transport.KeycopyProtocol, fmt.Errorf("item %d: %w", n, err))
	}
	if transport.NewKeycopyEntry(record, len(plain)) != entry || record.State != transport.CredentialActive {
		return fail(transport.KeycopyProtocol, fmt.Errorf("item %d is not what was announced", n))
	}
	r.target.cfg.tell(r.event(EventItem, Event{Item: n + 1, Items: len(r.entries), ID: entry.ID}))
	if len(r.records) == len(r.entries) {
		return r.install(ctx)
	}
	return nil
}

// install stores the credentials durably, and then destroys the operator code
// (req: C5).
func (r *targetRun) install(ctx context.Context) error {
	cfg := &r.target.cfg
	if err := cfg.Install(ctx, r.deal, r.records); err != nil {
		return fail(transport.KeycopyStoreFailed, fmt.Errorf("install: %w", err))
	}
	WipeRecords(r.records)
	r.target.code.Wipe()
	r.deal = r.deal.with(r.status())
	r.state = targetReceipt
	cfg.tell(r.event(EventInstalled, Event{Items: len(r.entries)}))
	return nil
}

// status says that all items are installed.
func (r *targetRun) status() []byte {
	status := make([]byte, (len(r.entries)+7)/8)
	for n := range r.entries {
		status[n/8] |= 1 << (n % 8)
	}
	return status
}

func (r *targetRun) createReceipt() (transport.KeycopyFrame, error) {
	m := transport.KeycopyReceipt{KeycopyReceiptBody: transport.KeycopyReceiptBody{Txn: r.ack.Txn, Manifest: r.keys.manifest, Status: r.deal.Status}}
	body, err := transport.Marshal(m.KeycopyReceiptBody)
	if err != nil {
		return transport.KeycopyFrame{}, fail(transport.KeycopyAborted, err)
	}
	m.MAC = r.keys.receiptTag(body)
	if signer := r.target.cfg.Identity; signer != nil {
		digest := r.keys.receiptDigest(body, m.MAC)
		if m.Signature, err = signer.Sign(r.target.cfg.Random, digest[:], crypto.SHA256); err != nil {
			return transport.KeycopyFrame{}, fail(transport.KeycopyAborted, fmt.Errorf("sign the receipt: %w", err))
		}
	}
	r.state = targetClose
	return transport.EncodeKeycopy(&m)
}

func (r *targetRun) consumeClose(f transport.KeycopyFrame) error {
	var m transport.KeycopyClose
	if err := transport.DecodeKeycopy(f, &m); err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	body, err := transport.Marshal(m.KeycopyStepBody)
	if err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	if !same(m.MAC, r.keys.closeTag(body)) || m.Txn != r.ack.Txn {
		return fail(transport.KeycopyAuthFailed, errors.New("CLOSE is not of this copy"))
	}
	r.state = targetClosed
	r.target.cfg.tell(r.event(EventClosed, Event{}))
	return nil
}

// end wipes what the run holds. The code survives only a failure before PROOF
// was sent: afterwards the Source has judged it.
func (r *targetRun) end() {
	r.fleet.wipe()
	r.keys.wipe()
	r.pace.wipe()
	WipeRecords(r.records)
	if r.state >= targetGrant {
		r.target.code.Wipe()
	}
}

// event fills in who is at the other end.
func (r *targetRun) event(kind EventKind, e Event) Event {
	e.Kind, e.Remote, e.Name, e.Transaction = kind, r.channel.Remote, r.channel.Peer, r.deal
	if r.deal != nil {
		e.Device = r.deal.Peer
	}
	return e
}
