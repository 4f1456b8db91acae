package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/open"
	"github.com/kagimori/kagimori/systemd"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// stage is a terminal whose key storage is lost and found: a real module, a real
// store, the loop that opens them.
type stage struct {
	t          *testing.T
	dir        string
	where      open.Config
	boot       *store.Boot
	bootConfig *BootConfig
	srv        *server
	a          *Agent
	stop       func()
}

func newStage(t *testing.T, kind string) (*stage, *hsmtest.TPM) {
	t.Helper()
	s := &stage{t: t, dir: filepath.Join(t.TempDir(), "state"), srv: newServer(t)}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	seed, public, err := transport.NewRecoveryKey()
	if err != nil {
		t.Fatal(err)
	}
	s.srv.recovery, s.srv.recoveryKey, s.srv.recoverySeed = 1, public, seed
	s.where = open.Config{Kind: kind, Dir: s.dir}
	var chip *hsmtest.TPM
	if kind == open.KindTPM {
		chip = hsmtest.NewTPM(t)
		s.where.Path = chip.Socket
	}
	return s, chip
}

// start runs the loop that opens, until the test or stop ends it.
func (s *stage) start() *Agent {
	s.t.Helper()
	log := testLog(s.t)
	cfg := Config{Program: "kagimori", StateDir: s.dir, Boot: s.bootConfig, Bundles: []transport.BundleKind{transport.BundleSpare, transport.BundleTerminal}}
	var err error
	s.a, err = New(cfg, Storage(s.where, StoreConfig{Dir: s.dir, Boot: s.boot}, log), systemd.NewWatchdog(systemd.NewNotifier(log), 0, log), log)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		v, err := s.a.openVault(ctx, func(err error) { s.t.Error(err) })
		if err != nil {
			s.t.Error(err)
		}
		if v != nil {
			<-ctx.Done()
			v.close()
		}
	}()
	s.stop = func() { cancel(); <-done }
	s.t.Cleanup(s.stop)
	<-s.a.Ready()
	return s.a
}

func (s *stage) again() *Agent {
	s.t.Helper()
	s.stop()
	return s.start()
}

func (s *stage) vault() *vault {
	s.t.Helper()
	v, err := s.a.open()
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

// enroll provisions the terminal and gives it its identity.
func (s *stage) enroll() {
	s.t.Helper()
	mustProvision(s.t, s.a, s.srv.expect("127.0.0.1:1"))
	v := s.vault()
	self, err := v.self()
	if err != nil {
		s.t.Fatal(err)
	}
	s.srv.device = v.device
	chain := s.srv.ca.client(transport.URI{Deployment: testDeployment, Terminal: self.Terminal}, v.identity.Public())
	if err := v.keepIdentity(self.newest(), chain); err != nil {
		s.t.Fatal(err)
	}
}

// connect holds one connection until nothing more is said.
func (s *stage) connect() {
	s.t.Helper()
	v := s.vault()
	self, err := v.self()
	if err != nil {
		s.t.Fatal(err)
	}
	roots, err := self.roots()
	if err != nil {
		s.t.Fatal(err)
	}
	x := &session{vault: v, self: self, roots: roots, random: rand.Reader}
	out, err := x.open()
	for err == nil && len(out) > 0 {
		var next [][]byte
		for _, payload := range out {
			for _, reply := range s.srv.receive(payload) {
				more, e := x.receive(s.t.Context(), reply)
				next, err = append(next, more...), errors.Join(err, e)
			}
		}
		if out = next; len(out) == 0 && err == nil {
			out, err = x.more()
		}
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// issued has a credential issued to the terminal.
func (s *stage) issued(id transport.Name) {
	s.t.Helper()
	s.srv.order(order(id))
	s.connect()
	if got := s.holds(); !slices.Contains(got, id) {
		s.t.Fatalf("holds %v", got)
	}
}

func (s *stage) holds() (ids []transport.Name) {
	s.t.Helper()
	list, err := s.a.Credentials()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, c := range list {
		ids = append(ids, c.ID)
	}
	return ids
}

// advised checks the next step that status tells.
func (s *stage) advised(words string) {
	s.t.Helper()
	if r, err := s.a.recovery(); err != nil || !strings.Contains(r.Next, words) {
		s.t.Errorf("no %q in %q, %v", words, r.Next, err)
	}
}

// closed is why key storage is not open.
func (s *stage) closed(is error) *control.Problem {
	s.t.Helper()
	_, err := s.a.open()
	p, ok := errors.AsType[*control.Problem](err)
	if !ok || !errors.Is(s.a.Cause(), is) {
		s.t.Fatalf("%v (%v), want %v", err, s.a.Cause(), is)
	}
	return p
}

// lose takes the key storage away: another one is there afterwards.
func (s *stage) lose(chip *hsmtest.TPM) {
	s.t.Helper()
	s.stop()
	if chip == nil {
		if err := os.Remove(filepath.Join(s.dir, open.DeviceSecret)); err != nil {
			s.t.Fatal(err)
		}
	} else {
		chip.Tool("tpm2_clear", "-c", "p")
	}
	s.start()
}

func eachKind(t *testing.T, test func(t *testing.T, s *stage, chip *hsmtest.TPM)) {
	for _, kind := range []string{open.KindFile, open.KindTPM} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s, chip := newStage(t, kind)
			s.start()
			test(t, s, chip)
		})
	}
}

// The whole way through the server: key storage lost, store set aside, enrolled
// anew, asked, decided, taken over, destroyed.
func TestRecoveryThroughTheServer(t *testing.T) {
	eachKind(t, func(t *testing.T, s *stage, chip *hsmtest.TPM) {
		s.enroll()
		s.connect() // makes the wrap
		s.issued("cr-1")
		was := s.vault().device
		if r, err := s.a.recovery(); err != nil || r.Wrap != 1 {
			t.Fatalf("%+v, %v", r, err)
		}
		s.lose(chip)
		p := s.closed(store.ErrForeign)
		if !strings.Contains(p.Next, "kagimori recovery start") {
			t.Errorf("next: %s", p.Next)
		}
		if r, _ := s.a.recovery(); r.Wrap != 1 || !slices.Equal(r.Possible, []string{"import", "start"}) {
			t.Errorf("%+v", r)
		}
		if err := s.a.try(t.Context(), Remedy{Aside: "it is lost"}); err != nil {
			t.Fatal(err)
		}
		if len(s.holds()) != 0 || s.vault().device == was {
			t.Fatal("the store is not a fresh one")
		}
		s.enroll()
		s.connect()
		if len(s.srv.asked) != 1 || s.srv.asked[0].Wrap.Device != was {
			t.Fatalf("asked: %+v", s.srv.asked)
		}
		s.again() // a power cut in between
		s.connect()
		if len(s.srv.asked) != 2 || s.srv.asked[1].ID != s.srv.asked[0].ID || !slices.Equal(s.srv.asked[1].Recipient, s.srv.asked[0].Recipient) {
			t.Error("it does not repeat the same request")
		}
		if len(s.holds()) != 0 {
			t.Error("taken over without a decision")
		}
		s.issued("cr-2") // it works without, meanwhile
		s.srv.approve = true
		s.connect()
		if got := s.holds(); !slices.Equal(got, []transport.Name{"cr-1", "cr-2"}) {
			t.Fatalf("holds %v", got)
		}
		if s.srv.claims["cr-1"] != was {
			t.Errorf("claimed as from %v", s.srv.claims["cr-1"])
		}
		if left, err := asides(s.dir); err != nil || len(left) != 0 {
			t.Errorf("the old store is not destroyed: %v, %v", left, err)
		}
		if len(s.srv.taken) != 1 {
			t.Errorf("taken: %v", s.srv.taken)
		}
		if r, err := s.a.recovery(); err != nil || len(r.Aside) != 0 {
			t.Errorf("%+v, %v", r, err)
		}
		s.again()
		if got := s.holds(); len(got) != 2 {
			t.Errorf("after a restart: %v", got)
		}
	})
}

// What was issued anew while nobody had decided is newer than what comes back.
func TestRecoveryKeepsWhatIsNewer(t *testing.T) {
	s, _ := newStage(t, open.KindFile)
	s.start()
	s.enroll()
	s.connect()
	s.issued("cr-1")
	s.lose(nil)
	if err := s.a.try(t.Context(), Remedy{Aside: "lost"}); err != nil {
		t.Fatal(err)
	}
	s.enroll()
	s.issued("cr-1")
	before, err := s.a.credential("cr-1")
	if err != nil {
		t.Fatal(err)
	}
	s.srv.approve = true
	s.connect()
	after, err := s.a.credential("cr-1")
	if err != nil || after.Serial != before.Serial || after.Origin != OriginIssue {
		t.Errorf("%+v, %v", after, err)
	}
	if len(s.srv.taken) != 1 {
		t.Errorf("taken: %v", s.srv.taken)
	}
}

// A release for somebody else, or a wrong one, changes nothing.
func TestReleasesThatDoNotFit(t *testing.T) {
	s, _ := newStage(t, open.KindFile)
	s.start()
	s.enroll()
	s.connect()
	s.issued("cr-1")
	s.lose(nil)
	if err := s.a.try(t.Context(), Remedy{Aside: "lost"}); err != nil {
		t.Fatal(err)
	}
	s.enroll()
	s.connect()
	list, err := s.vault().asides()
	if err != nil || len(list) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	e := list[0]
	self, _ := s.vault().self()
	x := &session{vault: s.vault(), self: self, random: rand.Reader}
	grant := transport.RecoveryGrant{ID: e.ID, Deployment: testDeployment, Terminal: self.Terminal, Device: x.device, Origin: e.Wrap.Device, Store: e.Wrap.Store}
	key := transport.Sensitive(make([]byte, transport.StoreKeySize))
	seal := func(g transport.RecoveryGrant) *transport.RecoveryRelease {
		r, err := g.Seal(e.Recipient, key)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	other := grant
	other.Terminal = "nav-002"
	foreign := seal(grant)
	foreign.ID = transport.ID{1}
	for name, r := range map[string]*transport.RecoveryRelease{
		"a key that is not the store's": seal(grant), "another terminal's": seal(other), "of no request": foreign, "empty": {ID: e.ID},
	} {
		if err := x.released(t.Context(), r); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if left, _ := asides(s.dir); len(left) != 1 {
		t.Error("the store that is set aside is gone")
	}
	if len(s.holds()) != 0 {
		t.Error("something was taken over")
	}
}

func TestRecoveryIsRefusedForWhatPasses(t *testing.T) {
	s, chip := newStage(t, open.KindTPM)
	s.start()
	s.enroll()
	s.stop()
	chip.Kill()
	s.start()
	cause, err := s.a.closedCause()
	if err != nil || lostForGood(cause) {
		t.Fatalf("%v, %v: a chip that is away is no loss", cause, err)
	}
	if p := control.AsProblem(s.a.errNotLost(cause)); p.Kind != control.Conflict || p.Next == "" {
		t.Errorf("%+v", p)
	}
	chip.Start()
	if err := s.a.try(t.Context(), Remedy{}); err != nil {
		t.Errorf("back again: %v", err)
	}
	if err := s.a.try(t.Context(), Remedy{Aside: "x"}); !errors.Is(err, &control.Problem{Kind: control.Conflict}) {
		t.Errorf("a store that is open was set aside: %v", err)
	}
}

// What status tells to do next is what can be done: no administrator decides on
// a request that the server has not got, or does not take.
func TestRecoveryAdvises(t *testing.T) {
	s, _ := newStage(t, open.KindFile)
	s.start()
	s.enroll()
	s.connect()
	s.lose(nil)
	s.advised("recovery start")
	if err := s.a.try(t.Context(), Remedy{Aside: "it is lost"}); err != nil {
		t.Fatal(err)
	}
	s.advised("terminal reenroll")
	s.enroll()
	s.advised("in reach")
	s.srv.fault = func(e *transport.Envelope) *transport.Fault {
		if e.Type == "recovery.request" {
			return &transport.Fault{Code: transport.FaultRefused}
		}
		return nil
	}
	s.connect()
	s.advised("does not take")
	s.srv.fault = nil
	s.connect()
	s.advised("recovery approve")
}
