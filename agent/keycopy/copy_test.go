package keycopy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
)

// Both ends hold the security code, the same operator code is on both: the
// keys arrive, and both operator codes are destroyed.
// req: C1, C2, C5
func TestCopy(t *testing.T) {
	for _, n := range []int{1, 100, 1000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			r := newRig(t, n)
			sourceErr, targetErr := r.copyOnce(t)
			if sourceErr != nil || targetErr != nil {
				t.Fatal(sourceErr, targetErr)
			}
			r.wantInstalled(t, r.records)
			r.wantWiped(t)
			if got := r.ended(t); got.Reason != EndDelivered || len(got.Transaction.Taken()) != n || got.Transaction.Peer != r.targetConfig.Device {
				t.Errorf("outcome %+v", got)
			}
			if r.target.Usable() || r.sourceLedger.failures()+r.targetLedger.failures() != 0 {
				t.Error("something is left of the code or its attempt")
			}
			want := []EventKind{EventGranted, EventInstalled, EventInstalled, EventClosed, EventClosed, EventGranted}
			kinds := slices.DeleteFunc(r.kinds(), func(k EventKind) bool { return k == EventItem })
			slices.Sort(want)
			slices.Sort(kinds)
			if !slices.Equal(kinds, want) {
				t.Errorf("events %v", kinds)
			}
		})
	}
}

// When each durable write comes, and what is destroyed by then.
// req: C5
func TestOrderOfWritesAndDestruction(t *testing.T) {
	r := newRig(t, 3)
	source, target := r.secrets[0], r.secrets[1]
	gone := func(b []byte) bool { return bytes.Equal(b, make([]byte, len(b))) }
	r.targetLedger.onWrite = func(what string) {
		if what != "closed" && gone(target) {
			t.Errorf("the Target's code was gone before %s", what)
		}
	}
	r.sourceLedger.onWrite = func(what string) {
		if gone(source) {
			t.Errorf("the Source's code was gone before %s", what)
		}
		if (what == "done") != gone(target) {
			t.Errorf("at %s the Target's code is gone: %v", what, gone(target))
		}
	}
	var frames []string
	sc, tc := newChannels()
	sourceErr, targetErr := r.pump(t.Context(), sc, tc, func(h hop) transport.KeycopyFrame {
		frames = append(frames, h.frame.Type.String())
		if h.frame.Type == transport.KeycopyTypeClose && !gone(source) {
			t.Error("CLOSE was sent before the Source's code was destroyed")
		}
		return h.frame
	})
	if sourceErr != nil || targetErr != nil {
		t.Fatal(sourceErr, targetErr)
	}
	for what, lists := range map[string][2][]string{
		"source": {r.sourceLedger.writes, {"count", "succeed", "offered", "done"}},
		"target": {r.targetLedger.writes, {"count", "succeed", "started", "staged", "closed"}},
		"frames": {frames, {"HELLO", "HELLO_ACK", "PROOF", "GRANT", "ITEM", "ITEM", "ITEM", "RECEIPT", "CLOSE"}},
	} {
		if !slices.Equal(lists[0], lists[1]) {
			t.Errorf("%s: %v, want %v", what, lists[0], lists[1])
		}
	}
}

// After a copy both ends still hold their keys and security codes; a further
// copy needs a new operator code and nothing else.
// req: C9
func TestFurtherCopy(t *testing.T) {
	r := newRig(t, 2)
	for i := range 3 {
		if sourceErr, targetErr := r.copyOnce(t); sourceErr != nil || targetErr != nil {
			t.Fatal(sourceErr, targetErr)
		}
		if len(r.targetLedger.received) != 2*(i+1) {
			t.Fatalf("%d keys after %d copies", len(r.targetLedger.received), i+1)
		}
		if _, targetErr := r.copyOnce(t); targetErr == nil {
			t.Fatal("a used code served a second copy")
		}
		r.arm(fmt.Sprintf("1234567%d", i), fmt.Sprintf("1234567%d", i))
	}
}

// One code, one transaction: a second Target with the right code is refused.
func TestUsedCodeServesNobody(t *testing.T) {
	r := newRig(t, 1)
	if sourceErr, targetErr := r.copyOnce(t); sourceErr != nil || targetErr != nil {
		t.Fatal(sourceErr, targetErr)
	}
	r.target = NewTarget(r.targetConfig, r.typed("12345678"))
	sourceErr, targetErr := r.copyOnce(t)
	wantFault(t, "source", sourceErr, transport.KeycopyNotArmed, false)
	wantFault(t, "target", targetErr, transport.KeycopyNotArmed, true)
}

func TestSelectedKeysOnly(t *testing.T) {
	r := newRig(t, 5)
	r.targetConfig.Select = []transport.Name{"cr-0003", "cr-0001", "cr-9999"}
	r.arm("12345678", "12345678")
	if sourceErr, targetErr := r.copyOnce(t); sourceErr != nil || targetErr != nil {
		t.Fatal(sourceErr, targetErr)
	}
	r.wantInstalled(t, []transport.CredentialRecord{r.records[1], r.records[3]})
	deal := r.targetLedger.deals[0]
	if want := []transport.KeycopyWithheld{{ID: "cr-9999", Reason: transport.KeycopyNotHeld}}; !slices.Equal(deal.Withheld, want) {
		t.Errorf("withheld %v", deal.Withheld)
	}
}

// What may not be copied stays, and both ends' people are told why.
func TestWithheldKeys(t *testing.T) {
	r := newRig(t, 9)
	r.records[7].Subject = "Not A Name"
	r.records[8].ID, r.records[8].State = "Nor This", transport.CredentialInvalid
	r.targetConfig.Want = transport.TransferCopy
	r.arm("12345678", "12345678")
	r.records[1].Transfer = transport.TransferMove
	r.records[2].Transfer = transport.TransferNever
	r.records[3].ChipOnly = true
	r.records[4].State = transport.CredentialInvalid
	r.records[5].Expires = r.now.Wall.Unix()
	r.records[6].Transfer = "something new"
	if sourceErr, targetErr := r.copyOnce(t); sourceErr != nil || targetErr != nil {
		t.Fatal(sourceErr, targetErr)
	}
	r.wantInstalled(t, r.records[:1])
	want := []transport.KeycopyWithheld{{ID: "cr-0001", Reason: transport.KeycopyMoveOnly}, {ID: "cr-0002", Reason: transport.KeycopyNeverTransfer},
		{ID: "cr-0003", Reason: transport.KeycopyChipOnly}, {ID: "cr-0004", Reason: transport.KeycopyInvalid}, {ID: "cr-0005", Reason: transport.KeycopyExpired},
		{ID: "cr-0006", Reason: transport.KeycopyNeverTransfer}, {ID: "cr-0007", Reason: transport.KeycopyDamaged}}
	for _, deal := range []*Transaction{r.sourceLedger.deals[0], r.targetLedger.deals[0]} {
		if !slices.Equal(deal.Withheld, want) || deal.More != 1 {
			t.Errorf("withheld %v and %d more", deal.Withheld, deal.More)
		}
	}
}

func TestNothingToCopy(t *testing.T) {
	r := newRig(t, 1)
	r.targetConfig.Want = transport.TransferCopy
	r.arm("12345678", "12345678")
	r.records[0].Transfer = transport.TransferMove
	sourceErr, targetErr := r.copyOnce(t)
	wantFault(t, "source", sourceErr, transport.KeycopyManifestRejected, true)
	wantFault(t, "target", targetErr, transport.KeycopyManifestRejected, false)
	r.wantInstalled(t, nil)
	r.wantWiped(t)
	if o := r.ended(t); o.Reason != EndAborted || len(o.Transaction.Withheld) != 1 {
		t.Errorf("%+v", o)
	}
}

// A choice keeps every limit of a transaction, and always fits its frame.
func TestChooseKeepsTheLimits(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	grant := func(o *Offer) int {
		t.Helper()
		manifest, err := transport.Marshal(o.KeycopyManifest)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := transport.DecodeKeycopyManifest(manifest); err != nil {
			t.Fatal(err)
		}
		if _, err := transport.EncodeKeycopy(&transport.KeycopyGrant{Manifest: manifest,
			Ack: &transport.KeycopyGrantAck{}, Admit: &transport.KeycopyTag{}, KEK: make([]byte, sealedSize)}); err != nil {
			t.Fatal(err)
		}
		return len(manifest)
	}
	many := someRecords(transport.MaxKeycopyItems + 300)
	o, err := Choose(many, Choice{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	if grant(o); len(o.Items) != transport.MaxKeycopyItems || len(o.Withheld) != transport.MaxKeycopyWithheld || o.More != 300-transport.MaxKeycopyWithheld {
		t.Errorf("%d offered, %d withheld, %d more", len(o.Items), len(o.Withheld), o.More)
	}
	long := transport.Name(strings.Repeat("x", transport.MaxName))
	for i := range many {
		many[i].ID = transport.Name(fmt.Sprintf("%063d", i))
		many[i].Subject, many[i].Service = long, long
	}
	if o, err = Choose(many, Choice{Now: now}); err != nil {
		t.Fatal(err)
	}
	if size := grant(o); len(o.Items) < 1500 || size < maxListed {
		t.Errorf("%d offered in %d bytes", len(o.Items), size)
	}
	large := someRecords(transport.MaxKeycopyTotal/transport.MaxKeycopyRecord + 10)
	for i := range large {
		large[i].Secret.Bytes = make([]byte, transport.MaxKeycopyRecord-1024)
	}
	large[0].Secret.Bytes = make([]byte, transport.MaxKeycopyRecord)
	if o, err = Choose(large, Choice{Now: now}); err != nil {
		t.Fatal(err)
	}
	if grant(o); len(o.Items) > len(large)-2 || o.Withheld[0] != (transport.KeycopyWithheld{ID: "cr-0000", Reason: transport.KeycopyTooLarge}) {
		t.Errorf("%d of %d offered, withheld %v", len(o.Items), len(large), o.Withheld)
	}
	if _, err := Choose([]transport.CredentialRecord{large[1], large[1]}, Choice{Now: now}); err == nil {
		t.Error("a credential twice")
	}
}

// A store that fails at any write leaves no half copy, and no unread key.
func TestFailedWrites(t *testing.T) {
	for _, tt := range []struct {
		end, write     string
		source, target transport.KeycopyFault
		atSource       bool // which end finds it
		frames         int  // that were sent, ERROR included
		installed      int
		spent          bool // both codes are gone
	}{
		{"source", "count", transport.KeycopyStoreFailed, transport.KeycopyStoreFailed, true, 4, 0, false},
		{"source", "succeed", transport.KeycopyStoreFailed, transport.KeycopyStoreFailed, true, 4, 0, false},
		{"source", "offered", transport.KeycopyStoreFailed, transport.KeycopyStoreFailed, true, 4, 0, true},
		{"source", "done", transport.KeycopyStoreFailed, transport.KeycopyStoreFailed, true, 8, 2, false},
		{"target", "count", transport.KeycopyAborted, transport.KeycopyAborted, false, 3, 0, false},
		{"target", "succeed", transport.KeycopyStoreFailed, transport.KeycopyStoreFailed, false, 7, 0, false},
		{"target", "started", transport.KeycopyStoreFailed, transport.KeycopyStoreFailed, false, 7, 0, false},
		{"target", "staged", transport.KeycopyStoreFailed, transport.KeycopyStoreFailed, false, 7, 0, false},
	} {
		t.Run(tt.end+" "+tt.write, func(t *testing.T) {
			r := newRig(t, 2)
			map[string]*ledger{"source": r.sourceLedger, "target": r.targetLedger}[tt.end].failOn = tt.write
			n := 0
			sc, tc := newChannels()
			sourceErr, targetErr := r.pump(t.Context(), sc, tc, func(h hop) transport.KeycopyFrame { n++; return h.frame })
			wantFault(t, "source", sourceErr, tt.source, !tt.atSource)
			wantFault(t, "target", targetErr, tt.target, tt.atSource)
			local := targetErr
			if tt.atSource {
				local = sourceErr
			}
			if !errors.Is(local, errDisk) || n != tt.frames || len(r.targetLedger.received) != tt.installed {
				t.Errorf("%v after %d frames, %d installed", local, n, len(r.targetLedger.received))
			}
			if state, _ := r.source.State(); (state == Ended) != tt.spent {
				t.Errorf("the Source is %s", state)
			}
			if tt.spent {
				r.wantWiped(t)
			}
			if tt.end == "target" && tt.write == "count" && !r.target.Usable() {
				t.Error("the Target gave its code up without having used it")
			}
		})
	}
}

// The security code's module fails: nobody is blamed, nothing is counted.
func TestModuleFails(t *testing.T) {
	broken := func(c SecurityCode) SecurityCode {
		c.MAC = func(context.Context, []byte) (*hsm.Secret, error) { return nil, errDisk }
		return c
	}
	r := newRig(t, 1)
	r.sourceConfig.Codes[0] = broken(r.sourceConfig.Codes[0])
	r.arm("12345678", "12345678")
	sourceErr, targetErr := r.copyOnce(t)
	wantFault(t, "source", sourceErr, transport.KeycopyAborted, false)
	wantFault(t, "target", targetErr, transport.KeycopyAborted, true)
	r = newRig(t, 1)
	r.targetConfig.Code = broken(r.targetConfig.Code)
	r.arm("12345678", "12345678")
	if _, targetErr = r.copyOnce(t); !errors.Is(targetErr, errDisk) || !r.target.Usable() {
		t.Errorf("%v", targetErr)
	}
	if r.sourceLedger.counted+r.targetLedger.counted != 0 {
		t.Error("counted")
	}
}
