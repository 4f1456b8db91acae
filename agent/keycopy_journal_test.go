package agent

import (
	"crypto/rand"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

// dealsOf gives what a terminal has on record of its copies.
func dealsOf(t testing.TB, a *Agent) (list []dealRecord) {
	t.Helper()
	err := a.vault.store.View(func(tx *store.Tx) error {
		return eachDeal(tx, func(d *dealRecord) error {
			list = append(list, *d)
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// dealOf is a transaction about records, as a Target has it when it begins.
func dealOf(records ...transport.CredentialRecord) *keycopy.Transaction {
	d := &keycopy.Transaction{ID: transport.NewID(rand.Reader), Side: transport.KeycopyTarget, Phase: transport.KeycopyStarted, Mode: transport.KeycopyPAKE,
		Peer: transport.DeviceID{1}, Remote: "192.0.2.7:8885", At: time.Now().Unix(), Resume: slices.Repeat(transport.Sensitive{1}, 32)}
	for i := range records {
		d.Items = append(d.Items, transport.NewKeycopyEntry(&records[i], 1000))
	}
	return d
}

// By the time that the new terminal learns that the codes match, the old one
// has durably on record who gets which keys: should its power fail now, it
// still knows. req: C9
func TestCopyIsOnRecordBeforeKeysLeave(t *testing.T) {
	r := newCopyRig(t, "maps-1", "tiles-1")
	o, code := r.arm()
	want := []transport.Name{"maps-1", "tiles-1"}
	granted := false
	_, err := r.new.fetch(t.Context(), fetchOrder{address: o.chosen.Listen, typed: code}, func(ev KeycopyEvent) {
		if ev.Step != "granted" {
			return
		}
		granted = true
		list := dealsOf(t, r.old)
		if len(list) != 1 {
			t.Fatalf("%d copies on record at the grant", len(list))
		}
		if c := &list[0].Deal; c.Side != transport.KeycopySource || c.Phase != transport.KeycopyOffered || c.Peer != r.new.vault.device || !slices.Equal(offeredIDs(c), want) || len(c.Taken()) != 0 {
			t.Errorf("on record at the grant: %+v", c)
		}
	})
	if err != nil || !granted {
		t.Fatalf("granted %v, %v", granted, err)
	}
	<-o.done
	if list := dealsOf(t, r.old); len(list) != 1 || list[0].Deal.Phase != transport.KeycopyDone || !slices.Equal(list[0].Deal.Taken(), want) {
		t.Errorf("on record after the receipt: %+v", list)
	}
}

// The old terminal's disk fails before each of the commits that precede the
// grant: the attempt, the success, the record of the copy. No verdict goes out
// that is not counted, and no key that is not on record. req: C3, C9
func TestDiskFailsBeforeTheGrant(t *testing.T) {
	for k := range 3 {
		for _, right := range []bool{true, false} {
			r := newCopyRig(t, "maps-1")
			o, code := r.arm()
			cutsAt(r.old.vault, k, false)
			want := transport.KeycopyStoreFailed
			if !right {
				if code = wrong(t, code); k > 0 {
					want = transport.KeycopyAuthFailed // it is counted
				}
			}
			_, steps, err := r.fetch(o, code)
			if !errors.Is(err, want) {
				t.Errorf("commit %d, right %v: %v, want %v", k+1, right, err, want)
			}
			if slices.ContainsFunc(steps, func(ev KeycopyEvent) bool { return ev.Step == "granted" }) || len(ids(t, r.new)) != 0 {
				t.Errorf("commit %d, right %v: granted", k+1, right)
			}
			r.old.disarm()
		}
	}
}
