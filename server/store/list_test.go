package store

import (
	"errors"
	"fmt"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
)

// fleet adds terminals nav-00… with a gate and one credential each.
func fleet(t testing.TB, s *Store, n int) {
	t.Helper()
	update(t, s, func(tx *Tx) error {
		err := errors.Join(
			tx.PutAuthority(Authority{Name: "service", Certificate: []byte{1}, Key: []byte{1}}),
			tx.AddTerminal(Terminal{Name: "gate-maps", Kind: KindGate, Group: "default", Service: "maps"}, hsm.RandomSecret(32)),
			tx.AddService(Service{Name: "maps", Gate: "gate-maps", DNS: []string{"maps.test"}, Endpoints: []string{"maps.test:8443"}}))
		for i := range n {
			name := transport.Name(fmt.Sprintf("nav-%02d", i))
			id := transport.Name(fmt.Sprintf("cr-%02d", i))
			device := transport.DeviceID{byte(i), 1}
			err = errors.Join(err,
				tx.AddTerminal(Terminal{Name: name, Kind: KindTerminal, Group: "default"}, hsm.RandomSecret(32)),
				tx.Enroll(name, device, []byte("key"), "file"),
				tx.AddCredential(Credential{ID: id, Kind: transport.KindCertificate, Service: "maps", Subject: name,
					Usage: transport.UsageClient, Transfer: transport.TransferCopy, Operation: "issue"}))
			if i%3 > 0 { // ties on purpose
				serial, expires := big.NewInt(int64(i)), by.At.Add(time.Duration(i%3)*time.Hour)
				_, e := tx.PutHolding(Holding{Credential: id, Device: device, Terminal: name, Since: by.At, Origin: OriginIssue, Serial: serial})
				err = errors.Join(err, tx.CredentialIssued(id, serial, expires), e,
					tx.AddCertificate(Certificate{Serial: serial, Issuer: "service", Credential: id, Device: device, DER: []byte{1}, NotAfter: expires}))
			}
		}
		return err
	})
}

// req: L1
func TestListsPageThroughEverythingOnce(t *testing.T) {
	s := testStore(t)
	const n = 25
	fleet(t, s, n)
	for _, sort := range []string{"", "id", "state", "expires", "operated", "service", "subject"} {
		for _, desc := range []bool{false, true} {
			var seen []transport.Name
			q := Query{Sort: sort, Desc: desc, Limit: 4}
			for pages := 0; ; pages++ {
				if pages > n {
					t.Fatalf("sort %q: no end", sort)
				}
				view(t, s, func(tx *Tx) error {
					list, next, err := tx.Credentials(q)
					for _, c := range list {
						seen = append(seen, c.ID)
					}
					q.After = next
					return err
				})
				if q.After == "" {
					break
				}
			}
			if sort == "" && !slices.IsSorted(seen) == !desc {
				t.Errorf("desc %v: %v", desc, seen)
			}
			slices.Sort(seen)
			if len(seen) != n || len(slices.Compact(seen)) != n {
				t.Errorf("sort %q desc %v: %d rows seen", sort, desc, len(seen))
			}
		}
	}
}

func TestListsRefuseWhatIsNotInTheirTable(t *testing.T) {
	s := testStore(t)
	fleet(t, s, 3)
	var next string
	view(t, s, func(tx *Tx) (err error) {
		_, next, err = tx.Credentials(Query{Sort: "expires", Limit: 1})
		return err
	})
	for name, q := range map[string]Query{
		"sort by SQL":         {Sort: "id; DROP TABLE audit"},
		"unknown sort":        {Sort: "serial"},
		"unknown filter":      {Filter: map[string]string{"1=1 OR id": "x"}},
		"unknown state":       {Filter: map[string]string{"state": "foo"}},
		"state of SQL":        {Filter: map[string]string{"state": "' OR 1=1 --"}},
		"no cursor":           {After: "!"},
		"rubbish cursor":      {After: "e30"},
		"cursor, other sort":  {Sort: "state", After: next},
		"cursor, other order": {Sort: "expires", Desc: true, After: next},
		"cursor of null":      {Sort: "expires", After: "eyJzIjoiZXhwaXJlcyIsImQiOmZhbHNlLCJsIjpbbnVsbCxudWxsXX0"},
	} {
		view(t, s, func(tx *Tx) error {
			if _, _, err := tx.Credentials(q); !errors.Is(err, ErrQuery) {
				t.Errorf("%s: %v", name, err)
			}
			return nil
		})
	}
	view(t, s, func(tx *Tx) error {
		list, _, err := tx.Credentials(Query{Filter: map[string]string{"subject": "' OR 1=1 --"}})
		if len(list) != 0 {
			t.Error("a filter's value became SQL")
		}
		return err
	})
}

func TestListFilters(t *testing.T) {
	s := testStore(t)
	fleet(t, s, 9)
	view(t, s, func(tx *Tx) error {
		for filter, want := range map[[2]string]int{
			{"state", "active"}: 6, {"state", "ordered"}: 3, {"service", "maps"}: 9, {"service", "x"}: 0,
			{"terminal", "nav-01"}: 1, {"terminal", "nav-00"}: 0, {"subject", "nav-05"}: 1, {"id", "cr-07"}: 1, {"usage", "server"}: 0,
		} {
			list, _, err := tx.Credentials(Query{Filter: map[string]string{filter[0]: filter[1]}})
			if err != nil || len(list) != want {
				t.Errorf("%v: %d rows, want %d, %v", filter, len(list), want, err)
			}
		}
		now := by.At.Add(time.Hour) // of the six, three end just now and three later
		for state, want := range map[string]int{"in force": 3, "expired": 3, "held by nobody": 0, "withdrawn": 0} {
			list, _, err := tx.Credentials(Query{Filter: map[string]string{"state": state}, Now: now})
			if err != nil || len(list) != want {
				t.Errorf("%s: %d rows, want %d, %v", state, len(list), want, err)
			}
		}
		gates, _, err := tx.Terminals(Query{Sort: "seen", Filter: map[string]string{"kind": "gate"}})
		if len(gates) != 1 || gates[0].Service != "maps" {
			t.Errorf("%+v", gates)
		}
		return err
	})
}
