package agent

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

// Copies that earlier releases remember are taken in when the store opens, once.
func TestEarlierCopiesAreTakenIn(t *testing.T) {
	dir := t.TempDir()
	v := testVault(t, dir)
	old := []copyRecord{
		{Role: roleSource, Txn: transport.ID{1}, Peer: transport.DeviceID{1}, Name: "nav-002", Remote: "192.0.2.9:1", Time: 1e9, Items: []transport.Name{"a", "b"}, Taken: []transport.Name{"b"}},
		{Role: roleSource, Txn: transport.ID{2}, Peer: transport.DeviceID{1}, Remote: "192.0.2.9:1", Time: 2e9, Items: []transport.Name{"a"}},
		{Role: roleTarget, Txn: transport.ID{3}, Peer: transport.DeviceID{1}, Remote: "192.0.2.9:1", Time: 3e9, Items: []transport.Name{"c"}, Taken: []transport.Name{"c"}},
	}
	err := v.store.Update(func(tx *store.Tx) error {
		for i := range old {
			if _, err := tx.Append(bucketCopies, &old[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := v.close(); err != nil {
			t.Fatal(err)
		}
		v = testVault(t, dir)
		list := dealsOf(t, &Agent{vault: v})
		if len(list) != 3 {
			t.Fatalf("%d copies", len(list))
		}
		for n, want := range []struct {
			phase transport.KeycopyPhase
			taken []transport.Name
			words string
		}{
			{transport.KeycopyDone, []transport.Name{"b"}, "1 key copied to terminal nav-002 at 192.0.2.9:1; this terminal still holds it"},
			{transport.KeycopyAbandoned, nil, "nothing has changed here"},
			{transport.KeycopyClosed, []transport.Name{"c"}, "1 key copied from device"},
		} {
			d := &list[n]
			text, _ := inWords(d, "kagimori")
			if d.Deal.ID != old[n].Txn || d.Deal.Phase != want.phase || !slices.Equal(d.Deal.Taken(), want.taken) || !strings.Contains(text, want.words) || d.Deal.At != old[n].Time {
				t.Errorf("copy %d is %+v: %s", n, d, text)
			}
		}
		err := v.store.View(func(tx *store.Tx) error {
			return tx.Each(bucketReports, func(string, func(any) error) error {
				t.Error("what the server knows by claims is to be reported")
				return nil
			})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// As many items as a transaction can have fit into the store at every step, and
// only some of them are kept once it is over and known.
func TestLargestTransactionFits(t *testing.T) {
	v := testVault(t, t.TempDir())
	d := given(transport.MaxKeycopyItems, transport.TransferMove)
	if encoded, err := transport.Marshal(d.KeycopyManifest); err != nil || len(encoded) > transport.MaxKeycopyGrant {
		d.Items = d.Items[:transport.MaxKeycopyGrant/128] // no manifest is larger than GRANT
	}
	for n := range itemsKept {
		d.Withheld = append(d.Withheld, transport.KeycopyWithheld{ID: transport.Name(fmt.Sprintf("held-%d", n)), Reason: transport.KeycopyChipOnly})
	}
	items := len(d.Items)
	d = advance(t, v, d, transport.KeycopyOffered, nil)
	d = advance(t, v, d, transport.KeycopyCommitted, taken)
	found, err := journal{vault: v}.Find(t.Context(), d.ID)
	if err != nil || len(found.Items) != items || len(found.Moving()) != items || len(found.Resume) != 32 {
		t.Fatalf("found %d of %d items, %v", len(found.Items), items, err)
	}
	d = advance(t, v, d, transport.KeycopyDone, nil)
	forgotten := *d
	forgotten.Resume = nil
	if err := (journal{vault: v}).Advance(t.Context(), &forgotten, transport.KeycopyDone); err != nil {
		t.Fatal(err)
	}
	if _, err := (journal{vault: v}).Find(t.Context(), d.ID); !errors.Is(err, keycopy.ErrUnknownTransaction) {
		t.Errorf("without its resume key it is found: %v", err)
	}
	list := dealsOf(t, &Agent{vault: v})
	if len(list) != 1 || len(list[0].Deal.Items) != items {
		t.Errorf("trimmed before the server knows it")
	}
	err = v.update(func(tx *store.Tx) error { return errors.Join(tx.Delete(bucketReports, dealKey(d.ID)), prune(tx)) })
	if err != nil {
		t.Fatal(err)
	}
	list = dealsOf(t, &Agent{vault: v})
	if c := list[0].counts(); len(list[0].Deal.Items) != itemsKept || int(c.Items) != items || int(c.Moved) != items {
		t.Errorf("%d items kept, counts %+v", len(list[0].Deal.Items), c)
	}
}

// What is over is remembered for a while, and does not fill the disk.
func TestOldCopiesAreForgotten(t *testing.T) {
	v := testVault(t, t.TempDir())
	err := v.store.Update(func(tx *store.Tx) error {
		for n := range dealsKept + 3 {
			items := 1
			if n >= dealsKept-largeKept {
				items = itemsKept + 1
			}
			d := &dealRecord{Deal: *given(items, transport.TransferCopy)}
			d.Deal.At, d.Deal.Phase = int64(n), transport.KeycopyDone
			if err := errors.Join(reportLater(tx, &d.Deal), retire(tx, d)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	list := dealsOf(t, &Agent{vault: v})
	if len(list) != dealsKept || list[0].Deal.At != 3 {
		t.Fatalf("%d copies, the first of %d", len(list), list[0].Deal.At)
	}
	large := 0
	for i := range list {
		if len(list[i].Deal.Items) > itemsKept {
			large++
		}
	}
	if large != largeKept {
		t.Errorf("%d with all of their items", large)
	}
	waits := 0
	err = v.store.View(func(tx *store.Tx) error {
		return tx.Each(bucketReports, func(string, func(any) error) error { waits++; return nil })
	})
	if err != nil || waits != dealsKept {
		t.Errorf("%d reports wait (%v)", waits, err)
	}
}

// A step is made from the phase that it is for, or not at all; what is over stays
// over. Somebody else's step gets the journal's own answer.
func TestStepsAreComparedAndSet(t *testing.T) {
	v := testVault(t, t.TempDir())
	j := journal{vault: v}
	d := advance(t, v, given(1, transport.TransferMove), transport.KeycopyOffered, nil)
	for was, want := range map[transport.KeycopyPhase]error{0: keycopy.ErrOtherPhase, transport.KeycopyCommitted: keycopy.ErrOtherPhase} {
		next := *d
		next.Phase = transport.KeycopyCommitted
		if err := j.Advance(t.Context(), &next, was); !errors.Is(err, want) {
			t.Errorf("from %s: %v", was, err)
		}
	}
	if found, err := j.Find(t.Context(), d.ID); err != nil || found.Phase != transport.KeycopyOffered {
		t.Errorf("%v, %v", found, err)
	}
	other := *d
	other.ID, other.Phase = transport.ID{1}, transport.KeycopyCommitted
	if err := j.Advance(t.Context(), &other, transport.KeycopyOffered); !errors.Is(err, keycopy.ErrUnknownTransaction) {
		t.Errorf("one that is not there: %v", err)
	}
	// A new offer ends the earlier one, which can still be asked for.
	again := given(1, transport.TransferMove)
	advance(t, v, again, transport.KeycopyOffered, nil)
	if found, err := j.Find(t.Context(), d.ID); err != nil || found.Phase != transport.KeycopyAbandoned || len(found.Resume) == 0 {
		t.Errorf("%+v, %v", found, err)
	}
}

// A moved key does not come back by an older disk: its steps are key changes.
func TestOlderDiskIsRefusedAfterAMove(t *testing.T) {
	dir := t.TempDir()
	v := testVault(t, dir)
	ca := newAuthority(t)
	record := ca.record("maps-1")
	h := &holdingRecord{Record: record, Origin: OriginIssue}
	if err := v.update(func(tx *store.Tx) error { return hold(tx, h) }); err != nil {
		t.Fatal(err)
	}
	d := given(0, "")
	d.Items = []transport.KeycopyEntry{transport.NewKeycopyEntry(&record, 900)}
	d.Items[0].Transfer = transport.TransferMove
	d = advance(t, v, d, transport.KeycopyOffered, nil)
	before := map[string][]byte{}
	for _, name := range []string{storeFile, storeFile + ".copy"} {
		b, err := os.ReadFile(dir + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		before[name] = b
	}
	d = advance(t, v, d, transport.KeycopyCommitted, taken)
	advance(t, v, d, transport.KeycopyDone, nil)
	if err := v.close(); err != nil {
		t.Fatal(err)
	}
	for name, b := range before {
		if err := os.WriteFile(dir+"/"+name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log := testLog(t)
	if _, err := openVault(t.Context(), opener(dir, log), Remedy{}, v.clock, log); !errors.Is(err, store.ErrOlder) {
		t.Errorf("the disk of before the move: %v", err)
	}
}
