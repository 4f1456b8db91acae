package agent

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// The rules of DESIGN D8: what a device makes of one bundle after another.
func TestBundleAfterBundle(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	spare := func() *transport.Bundle { return ca.bundle(transport.BundleSpare, "") }
	terminal := func() *transport.Bundle { return ca.bundle(transport.BundleTerminal, "nav-001") }
	with := func(b *transport.Bundle, change func(*transport.Bundle)) *transport.Bundle { change(b); return b }
	later := func(b *transport.Bundle) { b.Issued += 60 }
	earlier := func(b *transport.Bundle) { b.Issued -= 60 }

	for _, c := range []struct {
		name          string
		first, second *transport.Bundle
		outcome       Outcome
		problem       control.Kind
		words         string
	}{
		{name: "nothing before", second: terminal(), outcome: OutcomeProvisioned},
		{name: "nothing before, spare", second: spare(), outcome: OutcomeProvisioned},
		{name: "full after spare", first: spare(), second: terminal(), outcome: OutcomeUpgraded},
		{name: "full of a newer epoch after spare", first: spare(), second: with(terminal(), func(b *transport.Bundle) { b.Epoch = 2 }), outcome: OutcomeUpgraded},
		{name: "newer spare after spare", first: spare(), second: with(spare(), later), outcome: OutcomeReplaced},
		{name: "older spare after spare", first: spare(), second: with(spare(), earlier), problem: control.Conflict, words: "older"},
		{name: "newer full of the same terminal", first: terminal(), second: with(terminal(), later), outcome: OutcomeReplaced},
		{name: "older full of the same terminal", first: terminal(), second: with(terminal(), earlier), problem: control.Conflict, words: "older"},
		{name: "spare after full", first: terminal(), second: spare(), problem: control.Conflict, words: "terminal nav-001 already"},
		{name: "another terminal", first: terminal(), second: ca.bundle(transport.BundleTerminal, "nav-002"), problem: control.Conflict, words: "terminal nav-002"},
		{name: "another deployment", first: spare(), second: with(terminal(), func(b *transport.Bundle) { b.Deployment = "plant" }), problem: control.Conflict, words: "plant"},
		{name: "another root of the same name", first: spare(), second: other.bundle(transport.BundleTerminal, "nav-001"), problem: control.Conflict, words: "root certificate"},
		{name: "a gate's", second: ca.bundle(transport.BundleGate, "gate-1"), problem: control.BadInput, words: "gate gate-1 of service maps"},
		{name: "a gate's after full", first: terminal(), second: ca.bundle(transport.BundleGate, "nav-001"), problem: control.BadInput, words: "gate"},
	} {
		kinds := []transport.BundleKind{transport.BundleSpare, transport.BundleTerminal}
		var current *terminalRecord
		if c.first != nil {
			var err error
			if current, _, err = admit(nil, c.first, "kagimori", kinds); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
		}
		next, outcome, err := admit(current, c.second, "kagimori", kinds)
		if c.problem != "" {
			p := control.AsProblem(err)
			if err == nil || next != nil || p.Kind != c.problem || !strings.Contains(p.Message, c.words) || p.Next == "" {
				t.Errorf("%s: %v (%+v), want %s and %q and a next step", c.name, err, p, c.problem, c.words)
			}
			continue
		}
		if err != nil || outcome != c.outcome || next.newest() != c.second.ID {
			t.Errorf("%s: %s, %v, want %s", c.name, outcome, err, c.outcome)
			continue
		}
		if again, outcome, err := admit(next, c.second, "kagimori", kinds); err != nil || outcome != OutcomeUnchanged || again != next {
			t.Errorf("%s: the same bundle twice: %s, %v", c.name, outcome, err)
		}
		if c.first != nil { // and the one before it is no news either
			if _, outcome, err := admit(next, c.first, "kagimori", kinds); err != nil || outcome != OutcomeUnchanged {
				t.Errorf("%s: the first bundle again: %s, %v", c.name, outcome, err)
			}
		}
	}
}

// The same through the real file, hsm and store.
func TestProvisionTwiceAndUpgrade(t *testing.T) {
	ca := newAuthority(t)
	a := testAgent(t, Config{})
	spare, full := ca.bundle(transport.BundleSpare, ""), ca.bundle(transport.BundleTerminal, "nav-001")
	foreign := newAuthority(t).bundle(transport.BundleTerminal, "nav-001")
	file, passphrase, err := transport.SealBundle(spare)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []Outcome{OutcomeProvisioned, OutcomeUnchanged} {
		r, err := a.Provision(t.Context(), file, passphrase)
		if err != nil || r.Outcome != want || r.Terminal != "" || r.Device != a.vault.device || r.Next == "" {
			t.Fatalf("%+v, %v, want %s", r, err, want)
		}
	}
	if _, err := provision(t, a, foreign); !errors.Is(err, &control.Problem{Kind: control.Conflict}) {
		t.Errorf("a foreign bundle: %v", err)
	}
	if s := a.Status(); s.Kind != transport.BundleSpare || s.Terminal != "" {
		t.Errorf("after a refused bundle: %+v", s)
	}
	r, err := provision(t, a, full)
	if err != nil || r.Outcome != OutcomeUpgraded || r.Terminal != "nav-001" {
		t.Errorf("%+v, %v", r, err)
	}
}

// req: C1, L3
func TestProvisionKeepsSecretsSealed(t *testing.T) {
	ca := newAuthority(t)
	a := testAgent(t, Config{})
	b := ca.bundle(transport.BundleTerminal, "nav-001")
	code, common := slices.Clone(b.SecurityCode), slices.Clone(b.CommonKey)
	b.Issued = time.Now().Add(48 * time.Hour).Unix()
	mustProvision(t, a, b)

	// The security code answers as a key, and is the one of the bundle.
	p := mustParty(t, a)
	got, err := p.codes[0].MAC(t.Context(), []byte("message"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := a.vault.module.ImportMAC(t.Context(), hsm.NewSecret(slices.Clone(code)))
	if err != nil {
		t.Fatal(err)
	}
	want, err := a.vault.module.MAC(t.Context(), m, []byte("message"))
	if err != nil || !got.Equal(want) {
		t.Errorf("the security code is another one (%v)", err)
	}
	if self, err := a.vault.self(); err != nil || !bytes.Equal(self.CommonKey, common) {
		t.Errorf("the common key is another one (%v)", err)
	}
	if at := a.clock.Judge(nil); at.Unix() != b.Issued {
		t.Errorf("the clock's floor is %v, want the bundle's issue %v", at, b.IssuedAt())
	}
	if next := a.Status().Terminal; next != "nav-001" {
		t.Errorf("status names terminal %q", next)
	}
}

func TestProvisionRefusesWhatIsNoBundle(t *testing.T) {
	ca := newAuthority(t)
	a := testAgent(t, Config{})
	file, passphrase, err := transport.SealBundle(ca.bundle(transport.BundleSpare, ""))
	if err != nil {
		t.Fatal(err)
	}
	for name, try := range map[string]struct {
		file       []byte
		passphrase string
		is         error
	}{
		"wrong passphrase": {file, "aaaaa-aaaaa-aaaaa-aaaaa-aaaaa", transport.ErrPassphrase},
		"cut short":        {file[:len(file)/2], string(passphrase), transport.ErrNotBundle},
		"empty":            {nil, string(passphrase), transport.ErrNotBundle},
		"something else":   {[]byte("#!/bin/sh\n"), string(passphrase), transport.ErrNotBundle},
	} {
		_, err := a.Provision(t.Context(), try.file, transport.Sensitive(try.passphrase))
		if !errors.Is(err, try.is) || control.AsProblem(err).Kind != control.BadInput {
			t.Errorf("%s: %v", name, err)
		}
	}
	if s := a.Status(); s.Kind != "" {
		t.Errorf("half provisioned: %+v", s)
	}
}

func TestProvisionWhileKeyStorageIsNotThere(t *testing.T) {
	ca := newAuthority(t)
	a := testAgent(t, Config{})
	a.vault, a.problem = nil, errStarting
	if _, err := provision(t, a, ca.bundle(transport.BundleSpare, "")); !errors.Is(err, &control.Problem{Kind: control.Unavailable}) {
		t.Errorf("%v", err)
	}
	for _, err := range []error{hsm.ErrAbsent, hsm.ErrBusy, hsm.ErrOwnerAuth, hsm.ErrLockout, hsm.ErrReplaced, hsm.ErrTimeout} {
		p, fatal := storageProblem(err)
		if fatal || p.Next == "" || p.Kind != control.Storage {
			t.Errorf("%v: %+v, fatal %v: the daemon must start and say what to do", err, p, fatal)
		}
	}
}

func mustParty(t testing.TB, a *Agent) *party {
	t.Helper()
	if a.cfg.Keycopy == nil {
		a.cfg.Keycopy = &KeycopyConfig{Listen: "127.0.0.1:0"}
	}
	p, err := a.party()
	if err != nil {
		t.Fatal(err)
	}
	return p
}
