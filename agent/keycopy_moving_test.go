package agent

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/relay"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// moving is a transaction by which a vault gives a holding away.
func moving(t *testing.T, v *vault, id transport.Name) *dealRecord {
	t.Helper()
	d := given(0, "")
	err := v.store.View(func(tx *store.Tx) error {
		h, err := holding(tx, id)
		defer h.wipe()
		if err == nil {
			d.Items = []transport.KeycopyEntry{transport.NewKeycopyEntry(&h.Record, 900)}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	d.Items[0].Transfer = transport.TransferMove
	return &dealRecord{Deal: *advance(t, v, d, transport.KeycopyOffered, nil)}
}

// A secret that is on its way to another terminal is not replaced or removed under
// the copy: what moved would be destroyed here, and it would be the newer one.
func TestWhatIsAboutToMoveIsNotReplaced(t *testing.T) {
	v := testVault(t, t.TempDir())
	in := ImportParams{Kind: transport.KindSymmetric, Service: "maps", Subject: "truck-7", Transfer: transport.TransferMove}
	r, err := in.record(randomBytes(32), v.clock.Earliest())
	if err != nil {
		t.Fatal(err)
	}
	info, err := v.importRecord(r, "")
	if err != nil {
		t.Fatal(err)
	}
	d := moving(t, v, info.ID)
	next, err := in.record(randomBytes(32), v.clock.Earliest())
	if err != nil {
		t.Fatal(err)
	}
	refused := func(when string) {
		t.Helper()
		if _, err := v.importRecord(next, string(info.ID)); !errors.Is(err, &control.Problem{Kind: control.Conflict}) || !strings.Contains(err.Error(), short(d.Deal.ID)) {
			t.Errorf("%s: replaced: %v", when, err)
		}
		if err := v.remove(string(info.ID)); !errors.Is(err, &control.Problem{Kind: control.Conflict}) {
			t.Errorf("%s: removed: %v", when, err)
		}
	}
	refused("offered")
	committed := advance(t, v, &d.Deal, transport.KeycopyCommitted, taken)
	refused("committed")
	advance(t, v, committed, transport.KeycopyReclaimed, nil)
	if _, err := v.importRecord(next, string(info.ID)); err != nil {
		t.Errorf("taken back: %v", err)
	}
}

// A credential that was copied before is moved to the same terminal: the server is
// told that this very key copy brought it, or else it would be on its way for ever.
func TestMoveOfWhatWasCopiedBefore(t *testing.T) {
	r := newCopyRig(t, "maps-1")
	o, code := r.arm()
	if _, _, err := r.fetch(o, code); err != nil {
		t.Fatal(err)
	}
	<-o.done
	o, code, err := r.old.arm(t.Context(), armOrder{move: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.fetch(o, code); err != nil {
		t.Fatal(err)
	}
	<-o.done
	if inUse(t, r.old, "maps-1") || !inUse(t, r.new, "maps-1") {
		t.Fatal("it has not moved")
	}
	txn := dealsOf(t, r.old)[1].Deal.ID
	err = r.new.vault.store.View(func(tx *store.Tx) error {
		h, err := holding(tx, "maps-1")
		defer h.wipe()
		if err != nil {
			return err
		}
		if h.Origin != OriginMove || h.Txn == nil || *h.Txn != txn {
			t.Errorf("held by %s of %v", h.Origin, h.Txn)
		}
		list, err := openClaims(tx, 2)
		if err == nil && (len(list) != 1 || list[0].Txn == nil || *list[0].Txn != txn || list[0].Transfer != transport.TransferMove) {
			t.Errorf("claims %+v", list)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The old terminal does not come back after the new one uses the keys: what waits
// for it can be ended, the keys stay, and no text says that they do not.
func TestEndOfWhatIsActive(t *testing.T) {
	r, id := cutMove(t, "new", activeWrite)
	if p := phaseOf(t, r.new, id); p != transport.KeycopyActive {
		t.Fatalf("the new terminal is %s", p)
	}
	r.stops[r.old]()
	s, err := r.new.lastResort(t.Context(), id.String(), abandoned())
	if err != nil || s.Deal.Open || !strings.Contains(s.Text, "stay in use") {
		t.Fatalf("%+v, %v", s, err)
	}
	if !inUse(t, r.new, "maps-move") || inUse(t, r.old, "maps-move") {
		t.Error("not used at the new terminal alone")
	}
	if strings.Contains(s.Deal.Text, "dropped") || !strings.Contains(s.Deal.Text, "in use here") {
		t.Errorf("it says: %s", s.Deal.Text)
	}
	if lastEntry(t, r.new, audit.CopyAbandoned) == "" {
		t.Error("not in the log")
	}
	r.start(r.old)
}

// Ending what has only begun ends it, even though the old terminal is there.
func TestAbandonDoesNotGoOn(t *testing.T) {
	r, id := cutMove(t, "new", stagedWrite-1)
	if p := phaseOf(t, r.new, id); p != transport.KeycopyStarted {
		t.Fatalf("the new terminal is %s", p)
	}
	if s, err := r.new.lastResort(t.Context(), id.String(), abandoned()); err != nil || s.Deal.Phase != "dropped" {
		t.Errorf("%+v, %v", s, err)
	}
	if !inUse(t, r.old, "maps-move") || len(ids(t, r.new)) != 0 {
		t.Error("it moved all the same")
	}
}

// When the old terminal took the keys back that the new one uses, that is what the
// new one says, and not that the old one may be unplugged.
func TestConflictIsSaidAtTheNewTerminal(t *testing.T) {
	r, id := cutMove(t, "new", activeWrite)
	j := journal{vault: r.old.vault}
	d, err := j.Find(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	back, err := keycopy.Reclaim(d)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Advance(t.Context(), back, d.Phase); err != nil {
		t.Fatal(err)
	}
	r.wait(func() bool { return r.door() != "" })
	ev, err := r.new.resumeNow(t.Context(), id.String(), r.door(), func(KeycopyEvent) {})
	if err != nil || ev.Step != "conflict" || strings.Contains(ev.Text, "unplug") || strings.Contains(ev.Text, "dropped") || !strings.Contains(ev.Text, bothUse) || ev.Next != bothUseNext {
		t.Errorf("%+v, %v", ev, err)
	}
}

// A program's connection that a credential has opened ends when the credential
// moves away, before the other terminal may use it. req: C9
func TestConnectionsOfWhatMovesAwayAreCut(t *testing.T) {
	ca := newAuthority(t)
	a := running(t, Config{Relays: []relay.Config{{Service: "maps", Listen: "127.0.0.1:0"}}})
	mustProvision(t, a, ca.bundle(transport.BundleSpare, ""))
	eventually(t, "the relay listens", func() bool { return a.Status().Relays[0].Listening })
	record := ca.record("maps-1")
	record.Endpoints = []string{echoGate(t, ca)}
	if err := a.Update(func(tx *store.Tx) error { return hold(tx, &holdingRecord{Record: record, Origin: OriginIssue}) }); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", a.Status().Relays[0].Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	if _, err := io.WriteString(c, "ping"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "ping" {
		t.Fatalf("%q, %v", b, err)
	}
	v, err := a.open()
	if err != nil {
		t.Fatal(err)
	}
	d := moving(t, v, "maps-1")
	if s := a.Status().Relays[0]; s.Active != 1 {
		t.Errorf("only offered, and it is cut: %+v", s)
	}
	advance(t, v, &d.Deal, transport.KeycopyCommitted, taken)
	if _, err := io.ReadFull(c, b); err == nil || errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection ended with %v, want a reset", err)
	}
	eventually(t, "the connection is gone", func() bool { return a.Status().Relays[0].Active == 0 })
	if s := a.Status().Relays[0]; !strings.Contains(s.Error, "moving to") {
		t.Errorf("%+v", s)
	}
}

// echoGate is a gate that sends back what it gets.
func echoGate(t *testing.T, ca *authority) string {
	t.Helper()
	key := newTestKey(t)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAnyClientCert, NextProtos: []string{"http/1.1"},
		Certificates: []tls.Certificate{{Certificate: ca.gate(key.Public(), "maps.example"), PrivateKey: key}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return ln.Addr().String()
}

// A disk that is full may have the record of a copy, which then goes on by itself:
// nobody is sent for a new code.
func TestFullDiskThatHasTheCopyOnRecord(t *testing.T) {
	v := testVault(t, t.TempDir())
	a := &Agent{cfg: Config{Program: "kagimori"}, vault: v, clock: v.clock, log: v.log}
	d := given(1, transport.TransferMove)
	d.Side = transport.KeycopyTarget
	before := *d
	before.Phase = 0
	failed := &keycopy.Error{Fault: transport.KeycopyStoreFailed, Err: store.ErrUnfinished}
	p := control.AsProblem(a.fetchFailed("192.0.2.7:8885", &before, false, failed))
	if p.Kind != control.Storage || !strings.Contains(p.Next, "new code") {
		t.Errorf("not on record: %v, next %s", p, p.Next)
	}
	d.Phase = transport.KeycopyStarted
	advance(t, v, d, transport.KeycopyStarted, nil)
	p = control.AsProblem(a.fetchFailed("192.0.2.7:8885", &before, false, failed))
	if p.Kind != control.Storage || strings.Contains(p.Next, "new code") || !strings.Contains(p.Error(), "by itself") {
		t.Errorf("on record: %v, next %s", p, p.Next)
	}
}
