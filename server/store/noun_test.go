package store

import (
	"crypto/rand"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
)

func TestTerminalsAreNeverPinnedTwice(t *testing.T) {
	s := testStore(t)
	update(t, s, func(tx *Tx) error {
		return errors.Join(tx.AddTerminal(Terminal{Name: "a", Kind: KindTerminal, Group: "default"}, hsm.RandomSecret(32)),
			tx.AddTerminal(Terminal{Name: "b", Kind: KindTerminal, Group: "default"}, hsm.RandomSecret(32)))
	})
	d1, d2 := transport.DeviceID{1}, transport.DeviceID{2}
	try := func(name transport.Name, d transport.DeviceID) error {
		return s.Update(t.Context(), by, func(tx *Tx) error { return tx.Enroll(name, d, nil, "file") })
	}
	if err := try("a", d1); err != nil {
		t.Fatal(err)
	}
	if err := try("a", d2); !errors.Is(err, ErrNotFound) {
		t.Errorf("pinned to another device: %v", err)
	}
	if err := try("b", d1); !errors.Is(err, ErrExists) {
		t.Errorf("one device, two names: %v", err)
	}
	update(t, s, func(tx *Tx) error { return tx.ExpectAgain("a", hsm.RandomSecret(32)) })
	if err := try("b", d1); err != nil {
		t.Errorf("a device whose name was freed: %v", err)
	}
	view(t, s, func(tx *Tx) error {
		x, err := tx.EnrolledAs(d1)
		if x.Name != "b" || x.State != TerminalEnrolled || !x.Enrolled.Equal(by.At) {
			t.Errorf("%+v", x)
		}
		return err
	})
	if err := s.Update(t.Context(), by, func(tx *Tx) error {
		return tx.AddTerminal(Terminal{Name: "a", Kind: KindTerminal, Group: "default"}, hsm.RandomSecret(32))
	}); !errors.Is(err, ErrExists) {
		t.Errorf("a name twice: %v", err)
	}
}

func TestServicesShareNoName(t *testing.T) {
	s := testStore(t)
	fleet(t, s, 0)
	err := s.Update(t.Context(), by, func(tx *Tx) error {
		return errors.Join(tx.AddTerminal(Terminal{Name: "gate-x", Kind: KindGate, Group: "default", Service: "x"}, hsm.RandomSecret(32)),
			tx.AddService(Service{Name: "x", Gate: "gate-x", DNS: []string{"x.test", "maps.test"}}))
	})
	var taken ErrTaken
	if !errors.As(err, &taken) || taken.Service != "maps" {
		t.Errorf("%v", err)
	}
	view(t, s, func(tx *Tx) error {
		if _, err := tx.Terminal("gate-x"); !errors.Is(err, ErrNotFound) {
			t.Errorf("half of it is there: %v", err)
		}
		svc, err := tx.Service("maps")
		if svc.Gate != "gate-maps" || len(svc.DNS) != 1 || len(svc.Endpoints) != 1 {
			t.Errorf("%+v", svc)
		}
		return err
	})
}

func TestCommandsAreOldestFirstAndSettleOnce(t *testing.T) {
	s := testStore(t)
	fleet(t, s, 2)
	first, second := transport.NewID(rand.Reader), transport.NewID(rand.Reader)
	update(t, s, func(tx *Tx) error {
		return errors.Join(tx.AddCommand(Command{ID: first, Terminal: "nav-00", Kind: "k", Credential: "cr-00", Body: []byte{1}}),
			tx.AddCommand(Command{ID: second, Terminal: "nav-00", Kind: "k", Credential: "cr-00", Body: []byte{2}}))
	})
	next := func(want transport.ID) {
		t.Helper()
		view(t, s, func(tx *Tx) error {
			c, err := tx.NextCommand("nav-00")
			if c.ID != want {
				t.Errorf("got %v, want %v", c.ID, want)
			}
			return err
		})
	}
	next(first)
	settle := func() error {
		return s.Update(t.Context(), by, func(tx *Tx) error { return tx.Settle(first, transport.CommandDone, "ok") })
	}
	if err := settle(); err != nil {
		t.Fatal(err)
	}
	if err := settle(); !errors.Is(err, ErrNotFound) {
		t.Errorf("settled twice: %v", err)
	}
	next(second)
	issue := func(serial int64) error {
		return s.Update(t.Context(), by, func(tx *Tx) error { return tx.CommandIssued(second, big.NewInt(serial)) })
	}
	if err := issue(5); err != nil {
		t.Fatal(err)
	}
	if err := issue(6); !errors.Is(err, ErrNotFound) {
		t.Errorf("two certificates for one command: %v", err)
	}
	view(t, s, func(tx *Tx) error {
		if _, err := tx.NextCommand("nav-01"); !errors.Is(err, ErrNotFound) {
			t.Errorf("another terminal's: %v", err)
		}
		c, err := tx.Command(second)
		if c.Serial.Cmp(big.NewInt(5)) != 0 || c.State != CommandPending {
			t.Errorf("%+v", c)
		}
		return err
	})
}

// endAll ends what a terminal holds.
func endAll(tx *Tx, terminal transport.Name) error {
	list, err := tx.HeldBy(terminal)
	for _, h := range list {
		err = errors.Join(err, tx.EndHolding(h, time.Time{}))
	}
	return err
}

func TestHoldingsOpenAndEnd(t *testing.T) {
	s := testStore(t)
	fleet(t, s, 3)
	put := func(terminal transport.Name, d transport.DeviceID, since time.Time) (changed bool) {
		t.Helper()
		update(t, s, func(tx *Tx) (err error) {
			changed, err = tx.PutHolding(Holding{Credential: "cr-01", Device: d, Terminal: terminal, Since: since, Origin: OriginCopy, Source: transport.DeviceID{9}})
			return err
		})
		return changed
	}
	nav2 := transport.DeviceID{2, 1}
	if !put("nav-02", nav2, by.At.Add(time.Hour)) || put("nav-02", nav2, by.At.Add(2*time.Hour)) {
		t.Error("a claim must change something once")
	}
	view(t, s, func(tx *Tx) error {
		list, err := tx.Holdings("cr-01")
		if len(list) != 2 || list[0].Terminal != "nav-01" || list[1].Origin != OriginCopy || !list[1].Since.Equal(by.At.Add(time.Hour)) || !list[1].Active() {
			t.Errorf("%+v", list)
		}
		return err
	})
	update(t, s, func(tx *Tx) error { return endAll(tx, "nav-02") })
	view(t, s, func(tx *Tx) error {
		list, err := tx.HeldBy("nav-02")
		if len(list) != 0 {
			t.Errorf("%+v", list)
		}
		return err
	})
	if !put("nav-02", nav2, by.At) {
		t.Error("a holding that had ended did not open again")
	}
}

func TestRevokedCertificatesAreListedUntilTheyExpire(t *testing.T) {
	s := testStore(t)
	fleet(t, s, 1)
	soon, late := by.At.Add(time.Hour), by.At.Add(48*time.Hour)
	update(t, s, func(tx *Tx) error {
		return errors.Join(
			tx.AddCertificate(Certificate{Serial: big.NewInt(1), Issuer: "service", Credential: "cr-00", DER: []byte{1}, NotAfter: soon}),
			tx.AddCertificate(Certificate{Serial: big.NewInt(2), Issuer: "service", Credential: "cr-00", DER: []byte{2}, NotAfter: late}))
	})
	update(t, s, func(tx *Tx) error {
		n, err := tx.RevokeCredential("cr-00", 5)
		if n != 2 {
			t.Errorf("revoked %d", n)
		}
		return err
	})
	view(t, s, func(tx *Tx) error {
		now, err := tx.RevokedBy("service", by.At)
		if err != nil || len(now) != 2 || now[0].Reason != 5 || !now[0].Revoked.Equal(by.At) {
			t.Errorf("%+v, %v", now, err)
		}
		later, err := tx.RevokedBy("service", soon)
		if len(later) != 1 || later[0].Serial.Int64() != 2 {
			t.Errorf("%+v", later)
		}
		return err
	})
	put := func(n int64) error {
		return s.Update(t.Context(), by, func(tx *Tx) error { return tx.PutCRL(CRL{Issuer: "service", Number: n, DER: []byte{byte(n)}}) })
	}
	if err := errors.Join(put(1), put(2)); err != nil {
		t.Fatal(err)
	}
	if err := put(2); !errors.Is(err, ErrNotFound) {
		t.Errorf("a CRL number twice: %v", err)
	}
}

func TestForeignSerialsFindNothing(t *testing.T) {
	s := testStore(t)
	view(t, s, func(tx *Tx) error {
		for _, serial := range []*big.Int{nil, big.NewInt(0), big.NewInt(-5), new(big.Int).Lsh(big.NewInt(1), 200)} {
			if _, err := tx.Certificate(serial); !errors.Is(err, ErrNotFound) {
				t.Errorf("%v: %v", serial, err)
			}
		}
		return nil
	})
}

// One chip is one terminal, whichever of its keys it shows. req: L3
func TestAChipIsFoundAgain(t *testing.T) {
	s := testStore(t)
	d1 := transport.DeviceID{1}
	one, two, other := Endorsement{[32]byte{1}, []byte("root")}, Endorsement{[32]byte{2}, []byte("root")}, Endorsement{[32]byte{3}, []byte("another")}
	update(t, s, func(tx *Tx) error {
		return errors.Join(tx.AddTerminal(Terminal{Name: "a", Kind: KindTerminal, Group: "default", Attest: AttestRequired}, hsm.RandomSecret(32)),
			tx.Enroll("a", d1, []byte("key"), "tpm+attested"), tx.Endorse(d1, &one))
	})
	view(t, s, func(tx *Tx) error {
		for _, e := range []Endorsement{one, two} {
			if x, err := tx.EndorsedAs(e, "b"); err != nil || x.Name != "a" || x.Attest != AttestRequired {
				t.Errorf("%+v, %v", x, err)
			}
		}
		if _, err := tx.EndorsedAs(one, "a"); !errors.Is(err, ErrNotFound) {
			t.Errorf("in its own way: %v", err)
		}
		if _, err := tx.EndorsedAs(other, "b"); !errors.Is(err, ErrNotFound) {
			t.Errorf("another chip: %v", err)
		}
		e, err := tx.EndorsementOf(d1)
		if err != nil || e.Key != one.Key || string(e.Root) != "root" {
			t.Errorf("%+v, %v", e, err)
		}
		return nil
	})
	update(t, s, func(tx *Tx) error {
		return errors.Join(tx.ExpectAgain("a", hsm.RandomSecret(32)), tx.Endorse(d1, nil))
	})
	view(t, s, func(tx *Tx) error {
		if _, err := tx.EndorsedAs(one, "b"); !errors.Is(err, ErrNotFound) {
			t.Errorf("after reenroll: %v", err)
		}
		if _, err := tx.EndorsementOf(d1); !errors.Is(err, ErrNotFound) {
			t.Errorf("after it was taken back: %v", err)
		}
		return nil
	})
}
