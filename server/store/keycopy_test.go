package store

import (
	"errors"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// What a database of the schema before has of holdings is there afterwards, with
// the time at which those that had ended were written.
func TestHoldingsOfOlderSchemasAreKept(t *testing.T) {
	texts, err := migrations(migrationFiles)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s, err := connect(t.Context(), dir, quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if err := s.migrateTo(t.Context(), texts[:2]); err != nil {
		t.Fatal(err)
	}
	const rows = `
		INSERT INTO groups VALUES ('default', 1, 'a', 1);
		INSERT INTO devices (id, spki, level, actor, time) VALUES (x'` + id32 + `01', NULL, 'file', 'a', 1), (x'` + id32 + `02', NULL, 'file', 'a', 1);
		INSERT INTO terminals (name, kind, group_name, service, state, device, level, created, enrolled, seen, actor, time) VALUES
			('nav-001', 'terminal', 'default', '', 'enrolled', x'` + id32 + `01', 'file', 1, 1, 1, 'a', 1), ('gate-maps', 'gate', 'default', 'maps', 'expected', NULL, '', 1, 0, 0, 'a', 1);
		INSERT INTO services VALUES ('maps', 'gate-maps', '[]', 'a', 1);
		INSERT INTO credentials VALUES ('cr-1', 'certificate', 'maps', 'nav-001', 'client', 'copy', 0, NULL, 9, 'active', 'copy', 5, 'a', 5);
		INSERT INTO holdings VALUES ('cr-1', x'` + id32 + `02', 'nav-001', 4000, 'copy', x'` + id32 + `01', x'00000000000000000000000000000007', 'active', 'terminal nav-002', 4100),
			('cr-1', x'` + id32 + `01', 'nav-001', 1000, 'issue', NULL, x'00000000000000000000000000000007', 'ended', 'admin', 5000);`
	if _, err := s.writer.c.ExecContext(t.Context(), rows); err != nil {
		t.Fatal(err)
	}
	if err := s.migrateTo(t.Context(), texts); err != nil {
		t.Fatal(err)
	}
	view(t, s, func(tx *Tx) error {
		list, err := tx.Holdings("cr-1")
		if err != nil {
			return err
		}
		if len(list) != 2 {
			t.Fatalf("%+v", list)
		}
		a, b := list[0], list[1]
		if a.Origin != OriginIssue || !a.Ended() || a.Until.UnixMilli() != 5000 || a.Since.UnixMilli() != 1000 || a.Serial.Cmp(big.NewInt(7)) != 0 {
			t.Errorf("%+v", a)
		}
		if b.Origin != OriginCopy || !b.Active() || !b.Until.IsZero() || b.Source != a.Device || b.Txn != nil {
			t.Errorf("%+v", b)
		}
		return nil
	})
	checkWhole(t, s)
}

// id32 is a device's id but for its last byte.
const id32 = "00000000000000000000000000000000000000000000000000000000000000"

// A holding is a span: one that is not ended per device, and those before it.
func TestHoldingsAreAHistory(t *testing.T) {
	s := testStore(t)
	fleet(t, s, 3)
	device, other := transport.DeviceID{1, 1}, transport.DeviceID{2, 1}
	txn := transport.ID{7}
	give := func(tx *Tx) error {
		h, err := tx.HoldingOf("cr-01", device)
		return errors.Join(err, tx.GiveUp(h, txn))
	}
	update(t, s, give)
	if err := s.Update(t.Context(), by, give); !errors.Is(err, ErrNotFound) {
		t.Errorf("given up twice: %v", err)
	}
	update(t, s, func(tx *Tx) error { return tx.TakeBack("cr-01", device, txn) })
	if err := s.Update(t.Context(), by, func(tx *Tx) error { return tx.TakeBack("cr-01", device, txn) }); !errors.Is(err, ErrNotFound) {
		t.Errorf("taken back twice: %v", err)
	}
	update(t, s, give)
	if err := s.Update(t.Context(), by, func(tx *Tx) error { return tx.TakeBack("cr-01", device, transport.ID{8}) }); !errors.Is(err, ErrNotFound) {
		t.Errorf("taken back by another key copy: %v", err)
	}
	later := By{Actor: "tester", At: by.At.Add(10 * time.Hour)}
	err := s.Update(t.Context(), later, func(tx *Tx) error {
		h, err := tx.HoldingOf("cr-01", device)
		_, err2 := tx.PutHolding(Holding{Credential: "cr-01", Device: other, Terminal: "nav-02", Since: later.At, Origin: OriginMove, Source: device, Txn: &txn})
		return errors.Join(err, err2, tx.TakenAway(h, txn, later.At.Add(-time.Hour)))
	})
	if err != nil {
		t.Fatal(err)
	}
	view(t, s, func(tx *Tx) error {
		list, err := tx.Holdings("cr-01")
		var states []HoldingState
		for _, h := range list {
			states = append(states, h.State)
		}
		if !slices.Equal(states, []HoldingState{HoldingEnded, HoldingActive}) || !list[0].Until.Equal(later.At.Add(-time.Hour)) || *list[0].Taken != txn {
			t.Errorf("%+v", list)
		}
		if came, err := tx.CameBy("cr-01", other, txn); err != nil || !came {
			t.Errorf("%v, %v", came, err)
		}
		return err
	})
	// Times of the field are held between the begin and now.
	for _, at := range []time.Time{later.At.Add(time.Hour), by.At.Add(-time.Hour), {}} {
		err := s.Update(t.Context(), later, func(tx *Tx) error {
			h, err := tx.LastHolding("cr-02", other)
			if err != nil {
				return err
			}
			if err := tx.EndHolding(h, at); err != nil {
				return err
			}
			if h, err = tx.LastHolding("cr-02", other); !h.Until.Equal(later.At) {
				t.Errorf("until %v, said %v", h.Until, at)
			}
			return errors.Join(err, errWanted) // nothing of it is kept
		})
		if !errors.Is(err, errWanted) {
			t.Error(err)
		}
	}
}

// Two devices of one transaction are one row; pages of the list go through all.
func TestKeycopiesAreListedByPages(t *testing.T) {
	s := testStore(t)
	fleet(t, s, 2)
	const n = 11
	update(t, s, func(tx *Tx) error {
		for i := range n {
			k := Keycopy{Txn: transport.ID{byte(i)}, Status: KeycopyOpen}
			k.Source.Device, k.Target.Device, k.Source.Told, k.Source.Total = transport.DeviceID{0, 1}, transport.DeviceID{9, byte(i)}, by.At, 2
			k.Source.Terminal, k.Source.Mode = "nav-00", transport.KeycopyPAKE
			if i%2 == 0 {
				k.Status, k.Problems = KeycopyContradiction, []string{"taken", "mode"}
			}
			if _, err := tx.AddKeycopy(k); err != nil {
				return err
			}
		}
		_, err := tx.AddKeycopy(Keycopy{Txn: transport.ID{0}, Source: KeycopyEnd{Device: transport.DeviceID{0, 1}}, Target: KeycopyEnd{Device: transport.DeviceID{9, 0}}})
		if !errors.Is(err, ErrExists) {
			t.Errorf("the same pair twice: %v", err)
		}
		return nil
	})
	for _, sort := range []string{"", "status", "changed", "source", "target"} {
		for _, desc := range []bool{false, true} {
			seen := map[transport.ID]bool{}
			q := Query{Sort: sort, Desc: desc, Limit: 3, Filter: map[string]string{"terminal": "nav-00"}}
			for {
				var list []Keycopy
				view(t, s, func(tx *Tx) (err error) {
					list, q.After, err = tx.Keycopies(q)
					return err
				})
				for _, k := range list {
					seen[k.Txn] = true
				}
				if q.After == "" {
					break
				}
			}
			if len(seen) != n {
				t.Errorf("sorted by %q, %v: %d", sort, desc, len(seen))
			}
		}
	}
	for filter, count := range map[string]int{"open": n / 2, "contradiction": n/2 + 1, "consistent": 0} {
		view(t, s, func(tx *Tx) error {
			list, _, err := tx.Keycopies(Query{Filter: map[string]string{"status": filter, "mode": "pake"}})
			if len(list) != count || count > 0 && filter == "contradiction" && !slices.Equal(list[0].Problems, []string{"taken", "mode"}) {
				t.Errorf("%s: %d", filter, len(list))
			}
			return err
		})
	}
	view(t, s, func(tx *Tx) error {
		l, err := tx.KeycopyLoadOf(transport.DeviceID{0, 1}, by.At.Add(-time.Hour))
		if l != (KeycopyLoad{Transactions: n, Items: 2 * n, Unfinished: n}) {
			t.Errorf("%+v", l)
		}
		return err
	})
}
