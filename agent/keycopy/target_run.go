package keycopy

// One connection of the Target: HELLO out, HELLO_ACK in, PROOF out, GRANT and
// ITEMs in, RECEIPT out, CLOSE in.

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"

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

// newRun computes HELLO: the one call under the security code, and our share.
func (t *Target) newRun(ctx context.Context, ch transport.KeycopyChannel) (*targetRun, error) {
	r := &targetRun{target: t, channel: ch, state: targetHello}
	if !t.Usable() {
		return r, fail(transport.KeycopyNotArmed, errors.New("the code typed here is used up or too old"))
	}
	if err := r.checkIdentity(); err != nil {
		return r, err
	}
	m := transport.KeycopyHello{KeycopyHelloBody: transport.KeycopyHelloBody{Version: transport.KeycopyVersion, Mode: transport.KeycopyPAKE,
		Suite: transport.KeycopyCPace21, CodeID: t.cfg.Code.ID, Target: t.cfg.Device, Want: transport.TransferCopy, Select: t.cfg.Select}}
	var err error
	if r.fleet, err = newFleetKeys(ctx, t.cfg.Code, m.Mode, &ch); err != nil {
		return r, fail(transport.KeycopyAborted, err)
	}
	password := r.fleet.password(t.code)
	defer clear(password)
	if r.pace, err = startCPace(t.cfg.Random, password, channelID(m.Mode, m.Suite, &ch), sessionID(&ch)); err != nil {
		return r, fail(transport.KeycopyAborted, err)
	}
	if _, err = io.ReadFull(t.cfg.Random, m.Nonce[:]); err != nil {
		return r, fail(transport.KeycopyAborted, err)
	}
	m.Share = &r.pace.share
	body, err := transport.Marshal(m.KeycopyHelloBody)
	if err != nil {
		return r, fail(transport.KeycopyAborted, err)
	}
	m.Admit = r.fleet.admitTarget(body)
	if r.hello, err = transport.EncodeKeycopy(&m); err != nil {
		return r, fail(transport.KeycopyAborted, err)
	}
	return r, nil
}

// checkIdentity finds out early if the receipt's signature would not do.
func (r *targetRun) checkIdentity() error {
	signer := r.target.cfg.Identity
	if signer == nil {
		return nil
	}
	spki, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil {
		return fail(transport.KeycopyAborted, fmt.Errorf("identity key: %w", err))
	}
	if !bytes.Equal(spki, r.channel.TargetKey) {
		return fail(transport.KeycopyAborted, errors.New("the identity key is not the one shown in TLS"))
	}
	return nil
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

// consumeAck finishes CPace and counts the attempt: PROOF lets whoever is
// there test one guess against our code.
func (r *targetRun) consumeAck(ctx context.Context, f transport.KeycopyFrame) error {
	m, cfg := &r.ack, &r.target.cfg
	if err := transport.DecodeKeycopy(f, m); err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	body, err := transport.Marshal(m.KeycopyHelloAckBody)
	if err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	if !same(m.Admit, r.fleet.admitSource(r.hello.Body, body)) {
		return fail(transport.KeycopyAuthFailed, errors.New("the peer does not hold our security code"))
	}
	if err := sameDevice(r.channel.Peer, r.channel.SourceKey, m.Source); err != nil {
		return err
	}
	if m.Source == cfg.Device {
		return fail(transport.KeycopyProtocol, errors.New("this terminal is fetching from itself"))
	}
	ada, adb := sha256.Sum256(r.hello.Body), sha256.Sum256(f.Body)
	isk, err := r.pace.initiate(ada[:], m.Share, adb[:])
	if err != nil {
		return fail(transport.KeycopyAuthFailed, err)
	}
	if r.keys, err = newRunKeys(transport.KeycopyPAKE, &r.channel, isk, r.fleet, r.hello.Body, f.Body); err != nil {
		return fail(transport.KeycopyAborted, err)
	}
	r.keys.txn = m.Txn
	if err := cfg.Attempts.Count(ctx, r.target.code); err != nil {
		return fail(transport.KeycopyAborted, fmt.Errorf("count the attempt: %w", err))
	}
	r.state = targetProof
	return nil
}

// consumeGrant checks the Source's tag before it reads anything else.
func (r *targetRun) consumeGrant(ctx context.Context, f transport.KeycopyFrame) error {
	var m transport.KeycopyGrant
	cfg := &r.target.cfg
	if err := transport.DecodeKeycopy(f, &m); err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	r.keys.manifest = sha256.Sum256(m.Manifest)
	if !same(m.Tag, r.keys.sourceTag(r.keys.targetTag())) {
		return fail(transport.KeycopyAuthFailed, errors.New("the peer does not know the operator code"))
	}
	if err := cfg.Attempts.Succeed(ctx); err != nil {
		return fail(transport.KeycopyStoreFailed, fmt.Errorf("count the attempt: %w", err))
	}
	manifest, err := transport.DecodeKeycopyManifest(m.Manifest)
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
