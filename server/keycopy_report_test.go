package server

import (
	"crypto/rand"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// A terminal speaks of itself as one end, and of nothing that others said.
func TestReportsAreAboutTheSender(t *testing.T) {
	r := newRig(t)
	m := r.moving(transport.TransferMove)
	z, _ := r.terminal("nav-003")
	m.source(transport.KeycopyCommitted)
	m.target(transport.KeycopyStaged)
	before := m.row()

	// A third terminal names the pair's id: it gets a row of its own, ends nobody's
	// holding, and everybody sees that it did.
	k := r.as("nav-003", z)
	lie := m.report(transport.KeycopySource, transport.KeycopyDone)
	want[transport.KeycopyReported](t, k.say(lie))
	if got := m.holders(); got != "nav-001:transit " {
		t.Errorf("%q", got)
	}
	if got := m.row(); got.Source.Phase != before.Source.Phase || !slices.Equal(got.Problems, []string{problemEnds}) {
		t.Errorf("%+v", got)
	}
	// The Target speaks as if it was the Source, of another one.
	want[transport.KeycopyReported](t, r.as("nav-002", m.new).say(&transport.KeycopyReport{Txn: m.txn, Side: transport.KeycopySource, Peer: z.id(), Mode: transport.KeycopyPAKE,
		Phase: transport.KeycopyReclaimed, Total: 1, Items: m.report(transport.KeycopySource, transport.KeycopyReclaimed).Items}))
	if got := m.holders(); got != "nav-001:transit " {
		t.Errorf("what nav-001 gave up is taken back by another: %q", got)
	}
	// What a device has claimed counts for that device only.
	fault(t, "removed", func() *transport.Envelope {
		r.call("TerminalRemove", NameParams{Name: "nav-003"}, nil)
		return k.say(lie)
	}(), transport.FaultRefused)
}

func TestMalformedReports(t *testing.T) {
	r := newRig(t)
	m := r.moving(transport.TransferMove)
	many := make([]transport.KeycopyReportedItem, transport.MaxKeycopyReported+1)
	for i := range many {
		many[i] = transport.KeycopyReportedItem{ID: transport.Name(fmt.Sprintf("cr-%d", i)), Transfer: transport.TransferCopy}
	}
	for name, change := range map[string]func(*transport.KeycopyReport){
		"side":           func(p *transport.KeycopyReport) { p.Side = "both" },
		"another's":      func(p *transport.KeycopyReport) { p.Phase = transport.KeycopyStaged },
		"no phase":       func(p *transport.KeycopyReport) { p.Phase = 0 },
		"phase":          func(p *transport.KeycopyReport) { p.Phase = 200 },
		"itself":         func(p *transport.KeycopyReport) { p.Peer = m.old.id() },
		"no peer":        func(p *transport.KeycopyReport) { p.Peer = transport.DeviceID{} },
		"peer's name":    func(p *transport.KeycopyReport) { p.PeerName = "NO NAME" },
		"mode":           func(p *transport.KeycopyReport) { p.Mode = "plain" },
		"time":           func(p *transport.KeycopyReport) { p.Changed = -1 },
		"late":           func(p *transport.KeycopyReport) { p.At = math.MaxInt64 },
		"total":          func(p *transport.KeycopyReport) { p.Total = transport.MaxKeycopyItems + 1 },
		"beyond":         func(p *transport.KeycopyReport) { p.Offset = 1 },
		"far beyond":     func(p *transport.KeycopyReport) { p.Offset = math.MaxUint32 },
		"more than said": func(p *transport.KeycopyReport) { p.Total = 0 },
		"many":           func(p *transport.KeycopyReport) { p.Items, p.Total = many, 4000 },
		"twice":          func(p *transport.KeycopyReport) { p.Items, p.Total = append(p.Items, p.Items[0]), 2 },
		"item":           func(p *transport.KeycopyReport) { p.Items[0].ID = "-" },
		"never":          func(p *transport.KeycopyReport) { p.Items[0].Transfer = transport.TransferNever },
		"signature":      func(p *transport.KeycopyReport) { p.Signature = make([]byte, maxKeycopySignature+1) },
		"signed":         func(p *transport.KeycopyReport) { p.Signed = make([]byte, maxKeycopySigned+1) },
	} {
		p := m.report(transport.KeycopySource, transport.KeycopyDone)
		change(p)
		fault(t, name, r.as("nav-001", m.old).say(p), transport.FaultMalformed)
	}
	m.r.view(func(tx *store.Tx) error {
		if list, _, err := tx.Keycopies(store.Query{}); err != nil || len(list) != 0 {
			t.Errorf("%+v, %v", list, err)
		}
		return nil
	})
}

// A thousand keys come in pages, in any order, some twice, while the transaction
// goes on: judged when all of them are there in their last phase.
func TestLargeReportsComeInPages(t *testing.T) {
	m := newRig(t).moving(transport.TransferMove)
	m.items = nil
	for i := range 1000 {
		m.items = append(m.items, transport.Name(fmt.Sprintf("cr-%04d", i)))
	}
	m.items[900] = m.h.id
	pages := func(side transport.KeycopySide, phase transport.KeycopyPhase, numbers ...int) {
		t.Helper()
		whole := m.report(side, phase)
		for _, n := range numbers {
			p := *whole
			p.Offset = uint32(n * transport.MaxKeycopyReported)
			p.Items = whole.Items[p.Offset:min(len(whole.Items), int(p.Offset)+transport.MaxKeycopyReported)]
			if a := want[transport.KeycopyReported](t, m.who(side).say(&p)); a.Offset != p.Offset || a.Phase != phase {
				t.Errorf("%+v", a)
			}
		}
	}
	pages(transport.KeycopySource, transport.KeycopyCommitted, 0, 1, 2)
	pages(transport.KeycopyTarget, transport.KeycopyClosed, 7, 6, 5, 4, 3, 2, 1, 0)
	pages(transport.KeycopySource, transport.KeycopyDone, 0, 7, 1, 1, 2, 3)
	pages(transport.KeycopySource, transport.KeycopyCommitted, 4, 5, 6) // late, from before: they do not count
	m.expect("three pages are missing", "nav-001:transit ", store.KeycopyOpen)
	pages(transport.KeycopySource, transport.KeycopyDone, 4, 5, 6)
	m.claim()
	m.expect("all there", "nav-002:active ", store.KeycopyConsistent)

	var got []transport.Name
	in := KeycopyShowParams{Txn: m.txn.String(), Limit: 90}
	for {
		var d KeycopyDetail
		m.r.call("KeycopyShow", in, &d)
		if len(d.Keycopies) != 1 || d.Keycopies[0].Items != 1000 || d.Keycopies[0].Moved != 1000 || len(d.Items) > 90 {
			t.Fatalf("%+v", d.Keycopies)
		}
		for _, i := range d.Items {
			got = append(got, i.Credential)
			if i.Source == nil || !i.Source.Taken || i.Target == nil || i.Known != (i.Credential == m.h.id) {
				t.Errorf("%+v", i)
			}
		}
		if in.After = d.Next; in.After == "" {
			break
		}
	}
	if wanted := slices.Sorted(slices.Values(m.items)); !slices.Equal(got, wanted) {
		t.Errorf("%d items", len(got))
	}
}

// What an end says of one item more than it announced, and what it takes back,
// is on record as odd and grows nothing.
func TestWordsThatDoNotGoTogether(t *testing.T) {
	m := newRig(t).moving(transport.TransferMove)
	m.source(transport.KeycopyDone)
	m.target(transport.KeycopyClosed)
	m.items = []transport.Name{"cr-other"}
	m.source(transport.KeycopyDone)
	if k := m.row(); k.Source.Odd != "more-items" || !slices.Equal(k.Problems, []string{problemChanged}) {
		t.Errorf("%+v", k)
	}
	m.r.view(func(tx *store.Tx) error {
		n, err := tx.KeycopyTally(m.row())
		if n.Items != 1 {
			t.Errorf("%+v", n)
		}
		return err
	})
}

func TestEndsThatDiffer(t *testing.T) {
	for problem, change := range map[string]func(*transport.KeycopyReport){
		problemTaken: func(p *transport.KeycopyReport) { p.Items[0].Taken = false },
		problemItems: func(p *transport.KeycopyReport) { p.Items[0].Transfer = transport.TransferCopy },
		problemMode:  func(p *transport.KeycopyReport) { p.Mode = transport.KeycopyKEK },
	} {
		t.Run(problem, func(t *testing.T) {
			m := newRig(t).moving(transport.TransferMove)
			m.source(transport.KeycopyDone)
			p := m.report(transport.KeycopyTarget, transport.KeycopyClosed)
			change(p)
			want[transport.KeycopyReported](t, m.who(transport.KeycopyTarget).say(p))
			if k := m.row(); k.Status != store.KeycopyContradiction || k.Problems[0] != problem {
				t.Errorf("%s %v", k.Status, k.Problems)
			}
			if !slices.Contains(m.r.audited(m.txn.String()), "keycopy.contradiction") {
				t.Error("not in the audit log")
			}
		})
	}
}

// A terminal that reports without end is told to come back, and costs no more.
func TestReportsAreBounded(t *testing.T) {
	r := newRig(t)
	m := r.moving(transport.TransferMove)
	say := func(items uint32) *transport.Envelope {
		p := m.report(transport.KeycopySource, transport.KeycopyOffered)
		p.Txn, p.Total, p.Items = transport.NewID(rand.Reader), items, nil
		return r.as("nav-001", m.old).say(p)
	}
	for range 3 {
		want[transport.KeycopyReported](t, say(transport.MaxKeycopyItems))
	}
	want[transport.KeycopyReported](t, say(1))
	fault(t, "too many items", say(transport.MaxKeycopyItems), transport.FaultLater)
	for range maxKeycopies - 4 {
		want[transport.KeycopyReported](t, say(1))
	}
	fault(t, "too many", say(0), transport.FaultLater)
	m.target(transport.KeycopyStarted) // others are heard
	r.advance(keycopyDay + keycopyDay/24)
	want[transport.KeycopyReported](t, say(1))
}

// Finished ones are forgotten, oldest first; open ones never.
func TestFinishedReportsAreForgotten(t *testing.T) {
	r := newRig(t)
	m := r.moving(transport.TransferMove)
	m.source(transport.KeycopyOffered)
	first := m.txn
	var ids []transport.ID
	for range 5 {
		m.txn = transport.NewID(rand.Reader)
		ids = append(ids, m.txn)
		m.source(transport.KeycopyAbandoned)
	}
	err := r.s.store.Update(t.Context(), r.s.by("tester"), func(tx *store.Tx) error { return tx.DropKeycopies(m.old.id(), 2) })
	if err != nil {
		t.Fatal(err)
	}
	r.view(func(tx *store.Tx) error {
		list, _, err := tx.Keycopies(store.Query{})
		var left []transport.ID
		for _, k := range list {
			left = append(left, k.Txn)
		}
		if !slices.Equal(left, []transport.ID{first, ids[3], ids[4]}) {
			t.Errorf("%v", left)
		}
		return err
	})
}
