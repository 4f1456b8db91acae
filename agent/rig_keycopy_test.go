package agent

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

// copyRig is an old terminal with credentials and a new one, on the loopback.
type copyRig struct {
	t        testing.TB
	ca       *authority
	old, new *Agent
	dirs     map[*Agent]string
	stops    map[*Agent]func()
}

// emptyRig has no terminals yet.
func emptyRig(t testing.TB) *copyRig {
	return &copyRig{t: t, ca: newAuthority(t), dirs: map[*Agent]string{}, stops: map[*Agent]func(){}}
}

func newCopyRig(t testing.TB, credentials ...transport.Name) *copyRig {
	t.Helper()
	r := emptyRig(t)
	r.old, r.new = r.terminal("nav-001"), r.terminal("")
	for _, id := range credentials {
		r.give(r.ca.record(id))
	}
	return r
}

// terminal is an agent that takes part in copies; without a name it is a spare.
func (r *copyRig) terminal(name transport.Name) *Agent {
	r.t.Helper()
	dir := r.t.TempDir()
	a := testAgentIn(r.t, dir, Config{Keycopy: &KeycopyConfig{Listen: "127.0.0.1:0"}})
	r.dirs[a] = dir
	return r.enlist(a, name)
}

// enlist provisions an agent and has it take part in copies.
func (r *copyRig) enlist(a *Agent, name transport.Name) *Agent {
	r.t.Helper()
	if name == "" {
		mustProvision(r.t, a, r.ca.bundle(transport.BundleSpare, ""))
	} else {
		mustProvision(r.t, a, r.ca.bundle(transport.BundleTerminal, name))
		chain := r.ca.client(transport.URI{Deployment: testDeployment, Terminal: name}, a.vault.identity.Public())
		self, err := a.vault.self()
		if err != nil {
			r.t.Fatal(err)
		}
		if err := a.vault.keepIdentity(self.newest(), chain); err != nil {
			r.t.Fatal(err)
		}
	}
	r.start(a)
	r.t.Cleanup(func() { r.stops[a]() })
	return a
}

// start runs the door of a terminal until its stop is called.
func (r *copyRig) start(a *Agent) {
	if s, whole := a.vault.store.(*store.Store); whole {
		a.vault.store = &cutStore{Store: s, left: -1, fired: make(chan struct{})}
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { a.runKeycopy(ctx) })
	if r.stops == nil {
		r.stops = map[*Agent]func(){}
	}
	r.stops[a] = func() { stop(); wg.Wait() }
}

// configure changes how terminals take part in copies, while their doors do not
// look.
func (r *copyRig) configure(change func(*KeycopyConfig), terminals ...*Agent) {
	for _, a := range terminals {
		r.stops[a]()
		change(a.cfg.Keycopy)
		r.start(a)
	}
}

// close ends both terminals before the test does.
func (r *copyRig) close() {
	for _, a := range []*Agent{r.old, r.new} {
		r.stops[a]()
		a.vault.close()
	}
}

// door is where the old terminal may be reached now, "" while it is shut.
func (r *copyRig) door() string {
	r.old.copies.mu.Lock()
	defer r.old.copies.mu.Unlock()
	return r.old.copies.listen
}

// sourceOpen says whether somebody may come to the old terminal.
func (r *copyRig) sourceOpen() (open bool) {
	r.t.Helper()
	err := r.old.vault.store.View(func(tx *store.Tx) error {
		return eachOpen(tx, func(*dealRecord) error {
			open = true
			return nil
		})
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return open
}

// wait polls until something is so.
func (r *copyRig) wait(so func() bool) {
	r.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(20 * time.Second)
	for !so() {
		select {
		case <-tick.C:
		case <-limit:
			r.t.Fatal("it does not come about")
		}
	}
}

func (r *copyRig) give(record transport.CredentialRecord) {
	r.t.Helper()
	h := &holdingRecord{Record: record, Origin: OriginIssue}
	if err := r.old.vault.update(func(tx *store.Tx) error { return hold(tx, h) }); err != nil {
		r.t.Fatal(err)
	}
}

func (r *copyRig) arm(selected ...transport.Name) (*offering, []byte) {
	r.t.Helper()
	o, code, err := r.old.arm(r.t.Context(), armOrder{selected: selected})
	if err != nil {
		r.t.Fatal(err)
	}
	return o, code
}

func (r *copyRig) fetch(o *offering, code []byte, selected ...transport.Name) (*KeycopyEvent, []KeycopyEvent, error) {
	var steps []KeycopyEvent
	last, err := r.new.fetch(r.t.Context(), fetchOrder{address: o.chosen.Listen, typed: slices.Clone(code), selected: selected}, func(ev KeycopyEvent) { steps = append(steps, ev) })
	return last, steps, err
}

// copyDesk is the server's side of what terminals tell of key copies, under the
// server's lock.
type copyDesk struct {
	reports []transport.KeycopyReport
	claims  []transport.CredentialClaim
	settles []transport.KeycopySettle
	settle  func(*transport.KeycopySettle) transport.Body // nil: it is allowed
}

func (d *copyDesk) answer(e *transport.Envelope) (transport.Body, error) {
	switch e.Type {
	case "keycopy.report":
		r, err := transport.Open[transport.KeycopyReport](e)
		if err != nil {
			return nil, err
		}
		d.reports = append(d.reports, *r)
		return &transport.KeycopyReported{Txn: r.Txn, Phase: r.Phase, Offset: r.Offset}, nil
	case "keycopy.settle":
		m, err := transport.Open[transport.KeycopySettle](e)
		if err != nil {
			return nil, err
		}
		d.settles = append(d.settles, *m)
		if d.settle != nil {
			return d.settle(m), nil
		}
		return &transport.KeycopySettled{Txn: m.Txn, Allowed: true}, nil
	}
	return nil, fmt.Errorf("unknown type %q", e.Type)
}
