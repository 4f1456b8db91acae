package agent

import (
	"crypto/rand"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

// given is a transaction by which this terminal gives n credentials away, of
// which it holds none: as good as any for what is said of it.
func given(n int, transfer transport.Transfer) *keycopy.Transaction {
	t := &keycopy.Transaction{ID: transport.NewID(rand.Reader), Side: transport.KeycopySource, Phase: transport.KeycopyOffered, Mode: transport.KeycopyPAKE,
		Peer: transport.DeviceID{7}, Name: "nav-002", Remote: "192.0.2.9:4711", At: time.Now().Unix(), Resume: slices.Repeat(transport.Sensitive{1}, 32)}
	for i := range n {
		id := transport.Name(fmt.Sprintf("maps-%04d-%048d", i, i)) // ids are up to 63 characters
		t.Items = append(t.Items, transport.KeycopyEntry{ID: id, Subject: "seat-1", Kind: transport.KindCertificate, Service: "maps", Length: 900, Transfer: transfer, Usage: transport.UsageClient})
	}
	t.Status = make([]byte, (n+7)/8)
	return t
}

// advance makes a step, as the protocol does.
func advance(t testing.TB, v *vault, d *keycopy.Transaction, phase transport.KeycopyPhase, change func(*keycopy.Transaction)) *keycopy.Transaction {
	t.Helper()
	was := d.Phase
	next := *d
	next.Phase = phase
	if change != nil {
		change(&next)
	}
	if was == phase {
		was = 0
	}
	if err := (journal{vault: v}).Advance(t.Context(), &next, was); err != nil {
		t.Fatal(err)
	}
	return &next
}

func taken(d *keycopy.Transaction) {
	d.Status = make([]byte, (len(d.Items)+7)/8)
	for n := range d.Items {
		d.Status[n/8] |= 1 << (n % 8)
	}
}

// Each phase is reported until the server has it: over lost answers, lost
// connections and restarts, in pages.
func TestPhasesAreReported(t *testing.T) {
	c := newConversation(t)
	d := advance(t, c.vault, given(3*transport.MaxKeycopyReported+1, transport.TransferMove), transport.KeycopyOffered, nil)
	c.server.lose = func(reply string) bool { return reply == "keycopy.reported" }
	c.carry(c.session.more()) // while connected
	if n := len(c.server.copies.reports); n != 1 {
		t.Fatalf("%d pages at once", n)
	}
	if u, err := c.session.unsettled(); !u || err != nil {
		t.Errorf("settled without the server's word (%v)", err)
	}
	c.server.lose = nil
	c.restart()
	pages := c.server.copies.reports[1:]
	if len(pages) != 4 {
		t.Fatalf("%d pages after the restart", len(pages))
	}
	for n, p := range pages {
		if p.Txn != d.ID || p.Phase != transport.KeycopyOffered || int(p.Offset) != n*transport.MaxKeycopyReported || p.Total != 385 ||
			p.Items[0].ID != d.Items[p.Offset].ID || p.Items[0].Taken {
			t.Errorf("page %d: offset %d of %d, %s, %+v", n, p.Offset, p.Total, p.Phase, p.Items[0])
		}
	}
	// It goes on, with the receipt, which is shown once.
	d = advance(t, c.vault, d, transport.KeycopyCommitted, func(d *keycopy.Transaction) {
		taken(d)
		d.Signature, d.Signed = []byte{1}, []byte{2}
	})
	c.server.copies.reports = nil
	c.carry(c.session.more())
	pages = c.server.copies.reports
	if len(pages) != 4 || pages[0].Phase != transport.KeycopyCommitted || !pages[3].Items[0].Taken || pages[0].Signature == nil || pages[0].Signed == nil || pages[1].Signature != nil {
		t.Errorf("committed: %d pages, %+v", len(pages), pages[0])
	}
	// Two steps while nobody listens are one report: of where it stands.
	advance(t, c.vault, d, transport.KeycopyReclaimed, func(d *keycopy.Transaction) { d.Forced = true })
	c.server.copies.reports = nil
	c.carry(c.session.more())
	if pages = c.server.copies.reports; len(pages) != 4 || !pages[0].Forced || pages[0].Phase != transport.KeycopyReclaimed {
		t.Errorf("reclaimed: %d pages", len(pages))
	}
	if u, err := c.session.unsettled(); u || err != nil {
		t.Errorf("unsettled %v, %v", u, err)
	}
	c.noErrors()
}

// A report that the server does not take rests until the next connection, and the
// others go on.
func TestReportsThatAreRefused(t *testing.T) {
	c := newConversation(t)
	bad := advance(t, c.vault, given(1, transport.TransferMove), transport.KeycopyOffered, nil)
	good := advance(t, c.vault, given(1, transport.TransferMove), transport.KeycopyOffered, nil) // it ends the one before
	seen := map[transport.ID]int{}
	c.server.fault = func(e *transport.Envelope) *transport.Fault {
		r, err := transport.Open[transport.KeycopyReport](e)
		if err != nil {
			return nil
		}
		if seen[r.Txn]++; r.Txn != bad.ID {
			return nil
		}
		return &transport.Fault{Code: transport.FaultUnknown, Text: "no such message"}
	}
	c.carry(c.session.more())
	c.carry(c.session.again())
	if seen[bad.ID] != 1 || seen[good.ID] != 1 {
		t.Errorf("asked %d times about the refused one, %d about the other", seen[bad.ID], seen[good.ID])
	}
	c.connect()
	if seen[bad.ID] != 2 {
		t.Errorf("the next connection asked %d times", seen[bad.ID])
	}
	err := c.vault.store.View(func(tx *store.Tx) error {
		var waits reportRecord
		found, err := tx.Get(bucketReports, dealKey(bad.ID), &waits)
		if !found || waits.Fault == "" {
			t.Errorf("the reason is not kept: %v %+v", found, waits)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	c.noErrors()
}

// What moved here is claimed once it is in use, with the key copy that brought it;
// what is staged is not, nor what has gone, nor what cannot be proven.
func TestClaimsSayWhichCopyBroughtThem(t *testing.T) {
	c := newConversation(t)
	record := c.server.ca.record("maps-1")
	key, err := privateKey(&record.Secret)
	if err != nil {
		t.Fatal(err)
	}
	c.server.keys["maps-1"] = key.Public()
	d := dealOf(record)
	d.Items[0].Transfer = transport.TransferMove
	advance(t, c.vault, d, transport.KeycopyStarted, nil)
	roots, err := c.session.self.roots()
	if err != nil {
		t.Fatal(err)
	}
	s := stager{journal{vault: c.vault}, &party{vault: c.vault, self: c.session.self, roots: roots}}
	staged, refused, err := s.Stage(t.Context(), d, []transport.CredentialRecord{record})
	if err != nil || len(refused) != 0 {
		t.Fatalf("%v, refused %v", err, refused)
	}
	c.carry(c.session.more())
	if len(c.server.copies.claims) != 0 {
		t.Error("a staged credential was claimed")
	}
	advance(t, c.vault, staged, transport.KeycopyActive, nil)
	c.carry(c.session.more())
	list := c.server.copies.claims
	if len(list) != 1 || list[0].Txn == nil || *list[0].Txn != d.ID || list[0].Transfer != transport.TransferMove || list[0].Source != d.Peer {
		t.Fatalf("claims %+v", list)
	}
	// Given away again, it is nobody's to claim here.
	gone := given(0, "")
	gone.Items = []transport.KeycopyEntry{transport.NewKeycopyEntry(&record, 900)}
	gone.Items[0].Transfer = transport.TransferMove
	gone = advance(t, c.vault, gone, transport.KeycopyOffered, nil)
	gone = advance(t, c.vault, gone, transport.KeycopyCommitted, taken)
	err = c.vault.update(func(tx *store.Tx) error { return c.vault.claimAll(tx) })
	if err != nil {
		t.Fatal(err)
	}
	c.carry(c.session.more())
	if n := len(c.server.copies.claims); n != 1 {
		t.Errorf("%d claims after it was given away", n)
	}
	// Taken back, it is proven anew.
	advance(t, c.vault, gone, transport.KeycopyReclaimed, nil)
	c.carry(c.session.more())
	if n := len(c.server.copies.claims); n != 2 {
		t.Errorf("%d claims after it was taken back", n)
	}
	c.noErrors()
}
