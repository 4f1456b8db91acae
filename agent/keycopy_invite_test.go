package agent

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport/control"
)

// The text of the QR code stands for the address, and pins the terminal: another
// one that answers there gets nothing, not even an attempt.
func TestInvitation(t *testing.T) {
	r := newCopyRig(t, "maps-1")
	o, code := r.arm()
	i, err := keycopy.ParseInvitation(o.chosen.Invitation)
	if err != nil || !slices.Equal([]string{i.Addresses[0].String()}, o.chosen.Addresses) || i.Addresses[0].String() != o.chosen.Listen || hex.EncodeToString(i.Key[:]) != o.chosen.KeyHash {
		t.Fatalf("%+v: %+v, %v", o.chosen, i, err)
	}
	if len(o.chosen.QR) < 21 || len(o.chosen.QR[0]) != len(o.chosen.QR) || strings.Contains(o.chosen.Invitation, strings.ReplaceAll(string(code), " ", "")) {
		t.Errorf("QR code of %d rows for %s", len(o.chosen.QR), o.chosen.Invitation)
	}
	other := *i
	other.Key[0]++
	_, err = r.new.fetch(t.Context(), fetchOrder{address: other.String(), typed: slices.Clone(code)}, nil)
	if !errors.Is(err, &control.Problem{Kind: control.Refused}) || !strings.Contains(control.AsProblem(err).Next, "QR") {
		t.Fatalf("another key: %v", err)
	}
	var log keycopy.AttemptLog
	if err := r.new.vault.store.View(func(tx *store.Tx) error { _, err := tx.Get(bucketAttempts, string(roleTarget), &log); return err }); err != nil || len(log.Failures) != 0 {
		t.Errorf("that cost an attempt: %+v, %v", log, err)
	}
	if _, err := r.new.fetch(t.Context(), fetchOrder{address: "kagimori-keycopy:?a=nav&k=1", typed: slices.Clone(code)}, nil); !errors.Is(err, &control.Problem{Kind: control.Usage}) {
		t.Errorf("half an invitation: %v", err)
	}
	// The first address is of a network that the new terminal is not on.
	i.Addresses = append([]netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}, i.Addresses...)
	var last *KeycopyEvent
	for give := time.Now().Add(10 * time.Second); time.Now().Before(give); { // the old terminal does not listen for a second
		last, err = r.new.fetch(t.Context(), fetchOrder{address: i.String(), typed: slices.Clone(code)}, func(KeycopyEvent) {})
		if !errors.Is(err, &control.Problem{Kind: control.Unavailable}) {
			break
		}
	}
	if err != nil || len(last.Keys) != 1 {
		t.Fatalf("%+v, %v", last, err)
	}
	<-o.done
}

// A Source without identity is known by the key that it makes for the offer.
func TestInvitationOfASpare(t *testing.T) {
	r := newCopyRig(t)
	spare := r.terminal("")
	r.old = spare
	r.give(r.ca.record("maps-1"))
	o, code := r.arm()
	if last, err := r.new.fetch(t.Context(), fetchOrder{address: o.chosen.Invitation, typed: code}, func(KeycopyEvent) {}); err != nil || len(last.Keys) != 1 {
		t.Fatalf("%+v, %v", last, err)
	}
	<-o.done
	first := o.chosen.KeyHash
	if o, _ = r.arm(); o.chosen.KeyHash == first {
		t.Error("two offers show the same key")
	}
	spare.disarm()
}
