package keycopy

// What the Target does once the codes match: it records that it can go on
// without an operator, takes the items, stores them and says so. What moves it
// puts to use when the Source has disabled it. Each write comes before the frame
// that depends on it (docs/keycopy.md).

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/kagimori/kagimori/transport"
)

// granted looks at what is offered, now that the Source has proven the codes,
// and records that it is on its way, before an item is opened.
func (r *targetRun) granted(ctx context.Context, encoded []byte) error {
	cfg := &r.target.cfg
	manifest, err := transport.DecodeKeycopyManifest(encoded)
	if err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	t := newTransaction(transport.KeycopyTarget, r.ack.Txn, r.mode, r.ack.Source, &r.channel, cfg.Clock().Date, manifest)
	r.deal = t
	if err := acceptable(t.Items, cfg.Want); err != nil {
		cfg.tell(r.event(EventGranted, Event{Items: len(t.Items)}))
		return fail(transport.KeycopyManifestRejected, err)
	}
	begun := t.in(transport.KeycopyStarted)
	begun.Resume = r.keys.resume
	if err := cfg.Journal.Advance(ctx, begun, 0); err != nil {
		return fail(transport.KeycopyStoreFailed, fmt.Errorf("record the copy: %w", err))
	}
	r.deal = begun.shown()
	cfg.tell(r.event(EventGranted, Event{Items: len(t.Items)}))
	r.expectItems()
	return nil
}

// acceptable refuses an offer that breaks the rules of the credentials in it.
func acceptable(entries []transport.KeycopyEntry, want transport.Transfer) error {
	if len(entries) == 0 {
		return errors.New("the old terminal offers no credential")
	}
	for _, e := range entries {
		if e.Transfer != transport.TransferCopy && (e.Transfer != transport.TransferMove || want == transport.TransferCopy) {
			return fmt.Errorf("credential %s may not be taken: transfer is %q", e.ID, e.Transfer)
		}
	}
	return nil
}

func (r *targetRun) expectItems() {
	r.records = make([]transport.CredentialRecord, 0, len(r.deal.Items))
	r.state = targetItems
}

// consumeItem takes an item, and with the last one stores all. A Source that
// knows the keys and sends what it did not announce would do so another time:
// then the transaction is over.
func (r *targetRun) consumeItem(ctx context.Context, f transport.KeycopyFrame) error {
	err := r.openItem(f)
	if err == nil && len(r.records) == len(r.deal.Items) {
		err = r.stage(ctx)
	}
	if err == nil || errors.Is(err, transport.KeycopyStoreFailed) || errors.Is(err, transport.KeycopyTxnConflict) {
		return err
	}
	t, _, failed := record(ctx, r.target.cfg.Journal, r.deal.ID, func(t *Transaction) (*Transaction, error) {
		if t.Phase != transport.KeycopyStarted {
			return t, nil
		}
		return t.ended(), nil
	})
	if failed != nil {
		return errors.Join(err, failed)
	}
	r.deal = t
	return err
}

func (r *targetRun) openItem(f transport.KeycopyFrame) error {
	var m transport.KeycopyItem
	if err := transport.DecodeKeycopy(f, &m); err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	n := len(r.records)
	entry := r.deal.Items[n]
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
	if !announced(record, len(plain), entry) {
		return fail(transport.KeycopyProtocol, fmt.Errorf("item %d is not what was announced", n))
	}
	r.target.cfg.tell(r.event(EventItem, Event{Item: n + 1, Items: len(r.deal.Items), ID: entry.ID}))
	return nil
}

// announced says whether a record is what its entry said, and may travel: what
// may be copied may be announced to move, never the reverse.
func announced(r *transport.CredentialRecord, length int, entry transport.KeycopyEntry) bool {
	e := transport.NewKeycopyEntry(r, length)
	if e.Transfer == transport.TransferCopy && entry.Transfer == transport.TransferMove {
		e.Transfer = transport.TransferMove
	}
	return e == entry && r.State == transport.CredentialActive && r.Secret.Form != transport.SecretTPM &&
		(!r.ChipOnly || r.Secret.Form == transport.SecretDuplicate)
}

// stage stores the credentials durably, and then destroys the operator code
// (req: C5). Another connection of the same transaction may have done so.
func (r *targetRun) stage(ctx context.Context) error {
	cfg := &r.target.cfg
	before, err := cfg.Journal.Find(ctx, r.deal.ID)
	if err != nil {
		return notFound(err)
	}
	defer before.Resume.Wipe()
	staged := before
	var refused map[transport.Name]string
	switch {
	case before.Phase == transport.KeycopyStarted:
		staged, refused, err = cfg.Journal.Stage(ctx, before, r.records)
	case before.Phase != transport.KeycopyStaged && before.Phase != transport.KeycopyActive:
		err = ErrOtherPhase
	}
	WipeRecords(r.records)
	switch {
	case errors.Is(err, ErrOtherPhase):
		return fail(transport.KeycopyTxnConflict, err)
	case errors.Is(err, transport.KeycopyManifestRejected):
		return fail(transport.KeycopyManifestRejected, err)
	case err != nil:
		return fail(transport.KeycopyStoreFailed, fmt.Errorf("store the credentials: %w", err))
	}
	r.target.code.Wipe()
	r.keys.discard()
	r.deal = staged.shown()
	r.state = targetReceipt
	cfg.tell(r.event(EventInstalled, Event{Items: len(r.deal.Taken()), Refused: refused}))
	return nil
}

func (r *targetRun) createReceipt() (f transport.KeycopyFrame, err error) {
	m := transport.KeycopyReceipt{KeycopyReceiptBody: transport.KeycopyReceiptBody{Txn: r.deal.ID, Manifest: r.keys.manifest, Status: r.deal.Status}}
	body, err := transport.Marshal(m.KeycopyReceiptBody)
	if err != nil {
		return f, fail(transport.KeycopyAborted, err)
	}
	m.MAC = r.keys.stepTag(r.keys.receipt, body)
	if m.Signature, err = r.sign(r.keys.receiptDigest(body, m.MAC)); err != nil {
		return f, err
	}
	r.state = targetClose
	if r.deal.moves() {
		r.state = targetCommit
	}
	return transport.EncodeKeycopy(&m)
}

// sign signs RECEIPT or ACTIVATED if we showed an identity.
func (r *targetRun) sign(digest [sha256.Size]byte) ([]byte, error) {
	cfg := &r.target.cfg
	if cfg.Identity == nil {
		return nil, nil
	}
	signature, err := cfg.Identity.Sign(cfg.Random, digest[:], crypto.SHA256)
	if err != nil {
		return nil, fail(transport.KeycopyAborted, fmt.Errorf("sign with the identity: %w", err))
	}
	return signature, nil
}

// consumeCommit puts to use what moved: the Source does not use it any more.
func (r *targetRun) consumeCommit(ctx context.Context, f transport.KeycopyFrame) error {
	var m transport.KeycopyCommit
	if err := transport.DecodeKeycopy(f, &m); err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	if err := r.checkStep(m.KeycopyStepBody, m.MAC, r.keys.commit, f.Type); err != nil {
		return err
	}
	changed, err := r.advance(ctx, transport.KeycopyStaged, transport.KeycopyActive)
	if err != nil {
		return err
	}
	r.state = targetActivated
	if changed {
		r.target.cfg.tell(r.event(EventActive, Event{}))
	}
	return nil
}

func (r *targetRun) createActivated() (f transport.KeycopyFrame, err error) {
	m := transport.KeycopyActivated{KeycopyStepBody: transport.KeycopyStepBody{Txn: r.deal.ID}}
	body, err := transport.Marshal(m.KeycopyStepBody)
	if err != nil {
		return f, fail(transport.KeycopyAborted, err)
	}
	m.MAC = r.keys.stepTag(r.keys.activated, body)
	if m.Signature, err = r.sign(r.keys.activatedDigest(body, m.MAC)); err != nil {
		return f, err
	}
	r.state = targetClose
	return transport.EncodeKeycopy(&m)
}

func (r *targetRun) consumeClose(ctx context.Context, f transport.KeycopyFrame) error {
	var m transport.KeycopyClose
	if err := transport.DecodeKeycopy(f, &m); err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	if err := r.checkStep(m.KeycopyStepBody, m.MAC, r.keys.close, f.Type); err != nil {
		return err
	}
	from := transport.KeycopyStaged
	if r.deal.moves() {
		from = transport.KeycopyActive
	}
	if _, err := r.advance(ctx, from, transport.KeycopyClosed); err != nil {
		return err
	}
	r.state = targetClosed
	r.target.cfg.tell(r.event(EventClosed, Event{}))
	return nil
}

func (r *targetRun) checkStep(body transport.KeycopyStepBody, mac transport.KeycopyTag, key []byte, typ transport.KeycopyType) error {
	encoded, err := transport.Marshal(body)
	if err != nil {
		return fail(transport.KeycopyProtocol, err)
	}
	if !same(mac, r.keys.stepTag(key, encoded)) || body.Txn != r.deal.ID {
		return fail(transport.KeycopyAuthFailed, fmt.Errorf("%s is not of this copy", typ))
	}
	return nil
}

// advance goes from one phase to the next, unless the transaction is there
// already.
func (r *targetRun) advance(ctx context.Context, from, to transport.KeycopyPhase) (changed bool, err error) {
	t, changed, err := record(ctx, r.target.cfg.Journal, r.deal.ID, func(t *Transaction) (*Transaction, error) {
		switch {
		case t.Phase == to:
			return t, nil
		case t.Phase != from:
			return nil, fail(transport.KeycopyTxnConflict, fmt.Errorf("it is %s here", t.Phase))
		}
		after := t.in(to)
		if !to.Open() {
			after.Resume = nil
		}
		return after, nil
	})
	if err == nil {
		r.deal = t
	}
	return changed, err
}
