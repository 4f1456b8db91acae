package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// wrong is another code with a right check digit.
func wrong(t testing.TB, code []byte) []byte {
	t.Helper()
	bad := slices.Clone(code)
	for i := range 10 {
		for j := range 10 {
			bad[0], bad[len(bad)-1] = byte('0'+i), byte('0'+j)
			c, err := keycopy.CodesGenerated.Parse(slices.Clone(bad), keycopy.Instant{})
			if err == nil && string(bad) != string(code) {
				c.Wipe()
				return bad
			}
		}
	}
	t.Fatal("no other code")
	return nil
}

func ids(t testing.TB, a *Agent) []transport.Name {
	t.Helper()
	list, err := a.Credentials()
	if err != nil {
		t.Fatal(err)
	}
	var names []transport.Name
	for _, c := range list {
		names = append(names, c.ID)
	}
	return names
}

// req: C1, C2, C5, C8, C9
func TestKeysAreCopied(t *testing.T) {
	r := newCopyRig(t, "maps-1", "tiles-1")
	r.give(func() transport.CredentialRecord {
		c := r.ca.record("bound-1")
		c.Transfer = transport.TransferNever
		return c
	}())
	o, code := r.arm()
	if len(o.chosen.Keys) != 2 || len(o.chosen.Held) != 1 || o.chosen.Seconds < 290 {
		t.Errorf("armed with %+v", o.chosen)
	}
	last, steps, err := r.fetch(o, code)
	if err != nil {
		t.Fatal(err)
	}
	<-o.done
	given, err := o.result()
	if err != nil {
		t.Fatal(err)
	}
	// Both ends say what happened, and that the old one still holds the keys.
	for _, ev := range []KeycopyEvent{*last, given} {
		if len(ev.Keys) != 2 || !strings.Contains(ev.Text, "still holds them") {
			t.Errorf("%+v", ev)
		}
	}
	if !strings.Contains(last.Text, "terminal nav-001") {
		t.Errorf("the source proved its name, and it is not named: %s", last.Text)
	}
	if !slices.ContainsFunc(steps, func(ev KeycopyEvent) bool { return ev.Step == "item" && ev.Item == 2 && ev.Items == 2 }) {
		t.Errorf("no progress in %+v", steps)
	}
	for name, a := range map[string]*Agent{"old": r.old, "new": r.new} {
		c, err := a.Credential("maps", transport.UsageClient)
		if err != nil || !verifyPair(c) {
			t.Errorf("%s terminal: %v", name, err)
		}
	}
	if got := ids(t, r.new); !slices.Equal(got, []transport.Name{"maps-1", "tiles-1"}) {
		t.Errorf("the new terminal holds %v", got)
	}
	list, err := r.new.Credentials()
	if err != nil {
		t.Fatal(err)
	}
	if c := list[0]; c.Origin != OriginCopy || c.SourceName != "nav-001" || *c.Source != r.old.vault.device || c.Reported || c.Since.IsZero() {
		t.Errorf("holding %+v, want a copy from nav-001 that is to be reported", c)
	}
	// The code is destroyed on both ends: it does nothing any more.
	if _, _, err := r.fetch(o, code); err == nil {
		t.Error("the code worked twice")
	}
	if s := r.old.Status().Keycopy; s.Offer != "none" || !strings.Contains(s.Last, "2 keys copied to device") {
		t.Errorf("status of the old terminal: %+v", s)
	}
	if s := r.new.Status().Keycopy; !strings.Contains(s.Last, "2 keys copied from terminal nav-001") {
		t.Errorf("status of the new terminal: %+v", s)
	}
}

// An offer with a chip that has died would turn everybody away.
func TestNoOfferWithoutTheSecurityCode(t *testing.T) {
	r := newCopyRig(t, "maps-1")
	if err := r.old.vault.module.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.old.arm(t.Context(), armOrder{}); !errors.Is(err, &control.Problem{Kind: control.Storage}) {
		t.Errorf("%v", err)
	}
}

func TestOffersOneAfterTheOther(t *testing.T) {
	r := newCopyRig(t, "maps-1")
	o, _ := r.arm()
	if _, _, err := r.old.arm(t.Context(), armOrder{}); !errors.Is(err, &control.Problem{Kind: control.Conflict}) {
		t.Errorf("two offers at once: %v", err)
	}
	if s := r.old.Status().Keycopy; s.Offer != "armed" || s.Listen != o.chosen.Listen {
		t.Errorf("status %+v", s)
	}
	if !r.old.disarm() || r.old.disarm() {
		t.Error("disarm does not say whether there was an offer")
	}
	if _, err := o.result(); !errors.Is(err, &control.Problem{Kind: control.Interrupted}) {
		t.Errorf("%v", err)
	}
	if c, err := net.DialTimeout("tcp", o.chosen.Listen, time.Second); err == nil {
		c.Close()
		t.Error("the port is open without an offer")
	}
	o, code := r.arm("maps-1")
	if _, _, err := r.fetch(o, code); err != nil {
		t.Errorf("a new offer: %v", err)
	}
	<-o.done
}

// What was not offered is not given, whatever the new terminal asks for.
func TestOnlyWhatWasSelected(t *testing.T) {
	r := newCopyRig(t, "maps-1", "tiles-1")
	o, code := r.arm("tiles-1")
	if _, _, err := r.fetch(o, code); err != nil {
		t.Fatal(err)
	}
	if got := ids(t, r.new); !slices.Equal(got, []transport.Name{"tiles-1"}) {
		t.Errorf("offered tiles-1, copied %v", got)
	}
	<-o.done
	o, code = r.arm()
	if _, _, err := r.fetch(o, code, "maps-1"); err != nil {
		t.Fatal(err)
	}
	if got := ids(t, r.new); len(got) != 2 {
		t.Errorf("holds %v", got)
	}
}

func TestNothingToOffer(t *testing.T) {
	r := newCopyRig(t)
	if _, _, err := r.old.arm(t.Context(), armOrder{}); !errors.Is(err, &control.Problem{Kind: control.NotFound}) {
		t.Errorf("no credentials: %v", err)
	}
	if _, _, err := r.old.arm(t.Context(), armOrder{selected: []transport.Name{"maps-9"}}); !errors.Is(err, &control.Problem{Kind: control.NotFound}) || !strings.Contains(err.Error(), "maps-9") {
		t.Errorf("one that is not here: %v", err)
	}
	fresh := testAgent(t, Config{Keycopy: &KeycopyConfig{Listen: "127.0.0.1:0"}})
	if _, _, err := fresh.arm(t.Context(), armOrder{}); !errors.Is(err, &control.Problem{Kind: control.Conflict}) {
		t.Errorf("not provisioned: %v", err)
	}
	off := testAgent(t, Config{})
	if _, _, err := off.arm(t.Context(), armOrder{}); !errors.Is(err, &control.Problem{Kind: control.Conflict}) {
		t.Errorf("switched off: %v", err)
	}
}

// A source that has the codes may still send what is no credential.
func TestInstallChecksWhatItGets(t *testing.T) {
	r := newCopyRig(t)
	p := mustParty(t, r.new)
	foreign := newAuthority(t)
	for name, spoil := range map[string]func(*transport.CredentialRecord){
		"another root":            func(c *transport.CredentialRecord) { c.Chain = foreign.record("maps-1").Chain },
		"another's":               func(c *transport.CredentialRecord) { c.ID = "maps-2" },
		"another key":             func(c *transport.CredentialRecord) { c.Secret = r.ca.record("maps-1").Secret },
		"no key":                  func(c *transport.CredentialRecord) { c.Secret.Bytes = nil },
		"unknown form":            func(c *transport.CredentialRecord) { c.Secret.Form = "word" },
		"bad name":                func(c *transport.CredentialRecord) { c.Subject = "A B" },
		"another service's":       func(c *transport.CredentialRecord) { c.Service = "tiles" },
		"lives longer":            func(c *transport.CredentialRecord) { c.Expires++ },
		"no endpoint":             func(c *transport.CredentialRecord) { c.Endpoints = []string{"x"} },
		"another root to trust":   func(c *transport.CredentialRecord) { c.Anchors = [][]byte{foreign.root.Raw} },
		"one more root to trust":  func(c *transport.CredentialRecord) { c.Anchors = append(c.Anchors, foreign.root.Raw) },
		"the issuing CA for root": func(c *transport.CredentialRecord) { c.Anchors = [][]byte{r.ca.issuing.Raw} },
		"nobody to trust":         func(c *transport.CredentialRecord) { c.Anchors = nil },
		"another place's":         func(c *transport.CredentialRecord) { c.Subject = "seat-2" },
		"a terminal's": func(c *transport.CredentialRecord) {
			key, _ := privateKey(&c.Secret)
			c.Chain = r.ca.client(transport.URI{Deployment: testDeployment, Terminal: "maps-1"}, key.Public())
		},
	} {
		good, bad := r.ca.record("maps-9"), r.ca.record("maps-1")
		spoil(&bad)
		if err := p.install(t.Context(), dealOf(good, bad), []transport.CredentialRecord{good, bad}); err == nil {
			t.Errorf("%s: installed", name)
		}
		if got := ids(t, r.new); len(got) != 0 {
			t.Fatalf("%s: a part was installed: %v", name, got)
		}
	}
}

// install takes records as if they had come in a copy.
func (p *party) install(ctx context.Context, t *keycopy.Transaction, records []transport.CredentialRecord) error {
	s := stager{journal{vault: p.vault}, p}
	started := *t
	started.Side, started.Phase, started.Resume = transport.KeycopyTarget, transport.KeycopyStarted, make(transport.Sensitive, 32)
	if err := s.Advance(ctx, &started, 0); err != nil {
		return err
	}
	staged, _, err := s.Stage(ctx, &started, records)
	if err != nil {
		return err
	}
	closed := *staged
	closed.Phase, closed.Resume = transport.KeycopyClosed, nil
	return s.Advance(ctx, &closed, transport.KeycopyStaged)
}

// A copy never takes the place of a credential that lasts as long or longer,
// nor of a good one that was issued to this very terminal.
func TestInstallKeepsTheRenewedOne(t *testing.T) {
	r := newCopyRig(t)
	p := mustParty(t, r.new)
	renewed := r.ca.record("maps-1")
	here := func(origin Origin) {
		t.Helper()
		err := r.new.vault.update(func(tx *store.Tx) error { return hold(tx, &holdingRecord{Record: renewed, Origin: origin}) })
		if err != nil {
			t.Fatal(err)
		}
	}
	here(OriginCopy)
	r.ca.to = r.ca.to.Add(-time.Hour)
	older := r.ca.record("maps-1")
	install := func(c transport.CredentialRecord) []byte {
		c.Secret.Bytes = slices.Clone(c.Secret.Bytes) // they are wiped
		if err := p.install(t.Context(), dealOf(c), []transport.CredentialRecord{c}); err != nil {
			t.Fatal(err)
		}
		got, err := r.new.Credential("maps", transport.UsageClient)
		if err != nil {
			t.Fatal(err)
		}
		return got.Chain[0].Raw
	}
	if string(install(older)) != string(renewed.Chain[0]) {
		t.Error("an older one took its place")
	}
	r.ca.to = r.ca.to.Add(2 * time.Hour)
	newer := r.ca.record("maps-1")
	if string(install(newer)) != string(newer.Chain[0]) {
		t.Error("a newer one did not")
	}
	here(OriginIssue)
	if string(install(newer)) != string(renewed.Chain[0]) {
		t.Error("a copy took the place of what was issued here")
	}
	invalid := renewed
	invalid.State = transport.CredentialInvalid
	renewed = invalid
	here(OriginIssue)
	if string(install(newer)) != string(newer.Chain[0]) {
		t.Error("nothing came in the place of what is invalid")
	}
}

// A code lives as long as the configuration says, and never longer than the
// protocol allows.
func TestCodeTTL(t *testing.T) {
	for ttl, want := range map[time.Duration]time.Duration{0: keycopy.CodeLifetime, time.Minute: time.Minute, time.Hour: keycopy.CodeLifetime} {
		a := testAgent(t, Config{Keycopy: &KeycopyConfig{CodeTTL: ttl}})
		now := a.keycopyClock()()
		if got := keycopy.CodeLifetime - now.Since(a.backdated(now)); got != want {
			t.Errorf("ttl %v: lives %v, want %v", ttl, got, want)
		}
	}
}

// An identity that has expired is not shown: the codes hold without it.
func TestExpiredIdentityIsNotShown(t *testing.T) {
	r := newCopyRig(t, "maps-1")
	if mustParty(t, r.old).tcp.Certificate == nil {
		t.Fatal("a good identity is not shown")
	}
	proof := []*x509.Certificate{{NotBefore: r.ca.from, NotAfter: r.ca.to.Add(48 * time.Hour)}}
	if err := r.old.clock.Sync(r.ca.to.Add(24*time.Hour), proof); err != nil {
		t.Fatal(err)
	}
	if mustParty(t, r.old).tcp.Certificate != nil {
		t.Error("an expired identity is shown")
	}
}
