package keycopy

// Keys that change hands, and transactions of both kinds.

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/kagimori/kagimori/transport"
)

// The order of frames and durable writes when something moves, and who uses the
// key at each.
func TestMove(t *testing.T) {
	for _, mixed := range []bool{false, true} {
		r := newRig(t, 3)
		r.moving(mixed)
		var frames []string
		sc, tc := newChannels()
		check := r.neverTwo(t)
		sourceErr, targetErr := r.pump(t.Context(), sc, tc, func(h hop) transport.KeycopyFrame {
			frames = append(frames, h.frame.Type.String())
			return check(h)
		})
		if sourceErr != nil || targetErr != nil {
			t.Fatal(sourceErr, targetErr)
		}
		r.wantFinished(t)
		r.wantWiped(t)
		for what, lists := range map[string][2][]string{
			"source": {r.sourceLedger.writes, {"count", "succeed", "offered", "committed", "done"}},
			"target": {r.targetLedger.writes, {"count", "succeed", "started", "staged", "active", "closed"}},
			"frames": {frames, {"HELLO", "HELLO_ACK", "PROOF", "GRANT", "ITEM", "ITEM", "ITEM", "RECEIPT", "COMMIT", "ACTIVATED", "CLOSE"}},
		} {
			if !slices.Equal(lists[0], lists[1]) {
				t.Errorf("%s: %v, want %v", what, lists[0], lists[1])
			}
		}
		if o := r.ended(t); o.Reason != EndDelivered || o.Transaction.Phase != transport.KeycopyDone {
			t.Errorf("%+v", o)
		}
		kinds := slices.DeleteFunc(r.kinds(), func(k EventKind) bool { return k == EventItem })
		if want := []EventKind{EventGranted, EventGranted, EventInstalled, EventInstalled, EventActive, EventClosed, EventClosed}; !slices.Equal(kinds, want) {
			t.Errorf("events %v", kinds)
		}
	}
}

// What may be copied moves if the offer says so, never the reverse; the policy
// in the record stays what it was.
func TestStricterOffer(t *testing.T) {
	r := newRig(t, 4)
	r.records[1].Transfer = transport.TransferMove
	r.records[2].Transfer = transport.TransferNever
	r.sourceConfig.Move = true
	r.arm("12345678", "12345678")
	if sourceErr, targetErr := r.copyOnce(t); sourceErr != nil || targetErr != nil {
		t.Fatal(sourceErr, targetErr)
	}
	r.wantFinished(t)
	if deal := r.txn(t); len(deal.Moving()) != 3 || len(deal.Withheld) != 1 {
		t.Errorf("%+v", deal.KeycopyManifest)
	}
	r.wantInstalled(t, []transport.CredentialRecord{r.records[0], r.records[1], r.records[3]})
}

// A Target that wants copies only gets none of what moves, and refuses a Source
// that sends it all the same.
func TestCopiesOnly(t *testing.T) {
	r := newRig(t, 3)
	r.moving(true)
	r.targetConfig.Want = transport.TransferCopy
	r.arm("12345678", "12345678")
	if sourceErr, targetErr := r.copyOnce(t); sourceErr != nil || targetErr != nil {
		t.Fatal(sourceErr, targetErr)
	}
	r.wantInstalled(t, r.records[1:2])
	want := []transport.KeycopyWithheld{{ID: "cr-0000", Reason: transport.KeycopyMoveOnly}, {ID: "cr-0002", Reason: transport.KeycopyMoveOnly}}
	if deal := r.txn(t); !slices.Equal(deal.Withheld, want) {
		t.Errorf("%v", deal.Withheld)
	}
	// The Source did not listen.
	r = newRig(t, 1)
	r.moving(false)
	r.target.cfg.Want = transport.TransferCopy
	sc, tc := newChannels()
	s := r.source.newRun(sc)
	g, err := (&Target{cfg: r.targetConfig, code: r.target.code}).newRun(t.Context(), tc)
	if err != nil {
		t.Fatal(err)
	}
	g.target = r.target // after HELLO has said "move"
	sourceErr, targetErr := pumpRuns(t.Context(), s, g, asSent)
	wantFault(t, "target", targetErr, transport.KeycopyManifestRejected, false)
	wantFault(t, "source", sourceErr, transport.KeycopyManifestRejected, true)
	if deal := r.offered(); deal.Phase != transport.KeycopyAbandoned || len(r.targetLedger.journal) != 0 {
		t.Errorf("%s, %d at the Target", deal.Phase, len(r.targetLedger.journal))
	}
}

// Keys in chips leave wrapped for another chip, or not at all.
func TestChipKeys(t *testing.T) {
	r := newRig(t, 5)
	r.records[0].Secret.Form = transport.SecretTPM
	r.records[1].Secret.Form, r.records[1].ChipOnly = transport.SecretTPM, true
	r.records[2].ChipOnly = true // and is PKCS#8
	r.records[3].Secret.Form, r.records[3].ChipOnly = transport.SecretDuplicate, true
	parent := &transport.KeycopyParent{Public: []byte{1}, Approval: []byte{2}}
	r.targetConfig.Parent = parent
	held := r.sourceConfig.Records
	asked := 0
	r.sourceConfig.Records = func(ctx context.Context, wanted []transport.Name, p *transport.KeycopyParent) ([]transport.CredentialRecord, []transport.KeycopyWithheld, error) {
		if p == nil || p.Public[0] != 1 {
			t.Errorf("parent %v", p)
		}
		asked++
		records, _, err := held(ctx, wanted, p)
		return records, []transport.KeycopyWithheld{{ID: "cr-1234", Reason: transport.KeycopyMoving}}, err
	}
	r.arm("12345678", "12345678")
	sc, tc := newChannels()
	_, _ = r.pump(t.Context(), sc, tc, func(h hop) transport.KeycopyFrame {
		if h.frame.Type == transport.KeycopyTypeItem {
			return transport.KeycopyFrame{}
		}
		return h.frame
	})
	if sourceErr, targetErr := r.resumeOnce(t, NewResponder(r.sourceConfig), asSent); sourceErr != nil || targetErr != nil {
		t.Fatal(sourceErr, targetErr)
	}
	r.wantInstalled(t, []transport.CredentialRecord{r.records[3], r.records[4]})
	want := []transport.KeycopyWithheld{{ID: "cr-0000", Reason: transport.KeycopyChipOnly}, {ID: "cr-0001", Reason: transport.KeycopyChipOnly},
		{ID: "cr-0002", Reason: transport.KeycopyChipOnly}, {ID: "cr-1234", Reason: transport.KeycopyMoving}}
	if deal := r.txn(t); !slices.Equal(deal.Withheld, want) || !deal.Items[0].ChipOnly || asked != 2 {
		t.Errorf("withheld %v, asked %d times", deal.Withheld, asked)
	}
}

// What the Target cannot use stays where it is.
func TestRefusedItems(t *testing.T) {
	r := newRig(t, 10)
	r.moving(true)
	r.targetLedger.refuse = map[transport.Name]string{"cr-0004": "no such thing here", "cr-0009": "nor this"}
	if sourceErr, targetErr := r.copyOnce(t); sourceErr != nil || targetErr != nil {
		t.Fatal(sourceErr, targetErr)
	}
	want := []transport.Name{"cr-0000", "cr-0002", "cr-0006", "cr-0008"}
	for _, deal := range []*Transaction{r.offered(), r.txn(t)} {
		if len(deal.Taken()) != 8 || !slices.Equal(deal.Moving(), want) {
			t.Errorf("taken %v, moving %v", deal.Taken(), deal.Moving())
		}
	}
	if !r.sourceLedger.uses("cr-0004") || r.sourceLedger.uses("cr-0002") || r.targetLedger.uses("cr-0004") {
		t.Error("a refused key moved, or one that was taken did not")
	}
	if e := r.last(EventInstalled); e.Items != 8 {
		t.Errorf("%+v", e)
	}
	if i := slices.IndexFunc(r.events, func(e Event) bool { return len(e.Refused) == 2 }); i < 0 || r.events[i].Kind != EventInstalled {
		t.Error("nobody was told what was refused")
	}
}

// A Target that takes nothing of what moves ends as a copy does.
func TestNothingOfWhatMovesIsTaken(t *testing.T) {
	r := newRig(t, 2)
	r.moving(true)
	r.targetLedger.refuse = map[transport.Name]string{"cr-0000": "no chip here"}
	if sourceErr, targetErr := r.copyOnce(t); sourceErr != nil || targetErr != nil {
		t.Fatal(sourceErr, targetErr)
	}
	if want := []string{"count", "succeed", "offered", "done"}; !slices.Equal(r.sourceLedger.writes, want) || !r.sourceLedger.uses("cr-0000") {
		t.Errorf("%v", r.sourceLedger.writes)
	}
}

// A set of records that the Target finds tampered with ends the transaction at
// both ends; a Target that could not store it comes back.
func TestRejectedRecords(t *testing.T) {
	r := newRig(t, 2)
	r.moving(false)
	r.targetLedger.reject = transport.KeycopyManifestRejected
	sourceErr, targetErr := r.copyOnce(t)
	wantFault(t, "target", targetErr, transport.KeycopyManifestRejected, false)
	wantFault(t, "source", sourceErr, transport.KeycopyManifestRejected, true)
	if s, g := r.offered(), r.txn(t); s.Phase != transport.KeycopyAbandoned || g.Phase != transport.KeycopyDropped {
		t.Errorf("%s and %s", s.Phase, g.Phase)
	}
	if o := r.ended(t); o.Reason != EndAborted || o.Transaction.Phase != transport.KeycopyAbandoned {
		t.Errorf("%+v", o)
	}
	r.wantWiped(t)
	r = newRig(t, 2)
	r.targetLedger.reject = errors.New("no room")
	_, targetErr = r.copyOnce(t)
	wantFault(t, "target", targetErr, transport.KeycopyStoreFailed, false)
	r.targetLedger.reject = nil
	if sourceErr, targetErr := r.resumeOnce(t, r.source, asSent); sourceErr != nil || targetErr != nil {
		t.Fatal(sourceErr, targetErr)
	}
	r.wantFinished(t)
}
