package agent

import (
	"bytes"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// command has a terminal obey an order, and gives the result.
func command(t testing.TB, v *vault, id transport.ID, kind string, body any) *transport.CommandResult {
	t.Helper()
	raw, err := transport.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := (&session{vault: v, random: rand.Reader}).obey(t.Context(), &transport.Command{ID: id, Kind: kind, Body: raw})
	if err != nil {
		t.Fatal(err)
	}
	return answer.(*transport.CommandResult)
}

// codeOf is the security code of an epoch; that of epoch 1 is the bundle's.
func codeOf(epoch uint32) transport.Sensitive {
	if epoch == 1 {
		return transport.Sensitive("the security code of this group!")
	}
	return bytes.Repeat([]byte{byte(epoch)}, transport.SecurityCodeSize)
}

func installCode(t testing.TB, v *vault, epoch uint32) {
	t.Helper()
	r := command(t, v, transport.NewID(rand.Reader), transport.CommandCodeInstall, &transport.CodeInstall{Group: "default", Epoch: epoch, Code: codeOf(epoch)})
	if r.State != transport.CommandDone {
		t.Fatalf("install epoch %d: %+v", epoch, r)
	}
}

func retireCodes(t testing.TB, v *vault, epochs ...uint32) *transport.CommandResult {
	t.Helper()
	return command(t, v, transport.NewID(rand.Reader), transport.CommandCodeRetire, &transport.CodeRetire{Group: "default", Epochs: epochs})
}

// mustHold fails unless a terminal accepts exactly these epochs, newest first,
// each with its code.
func mustHold(t testing.TB, a *Agent, epochs ...uint32) {
	t.Helper()
	p := mustParty(t, a)
	var got []uint32
	for _, c := range p.codes {
		got = append(got, c.ID.Epoch)
		key, err := a.vault.module.ImportMAC(t.Context(), hsm.NewSecret(slices.Clone(codeOf(c.ID.Epoch))))
		if err != nil {
			t.Fatal(err)
		}
		want, err := a.vault.module.MAC(t.Context(), key, []byte("m"))
		if err != nil {
			t.Fatal(err)
		}
		if mac, err := c.MAC(t.Context(), []byte("m")); err != nil || !mac.Equal(want) {
			t.Errorf("epoch %d has another code: %v", c.ID.Epoch, err)
		}
	}
	if s := a.Status(); !slices.Equal(got, epochs) || !slices.Equal(s.Epochs, epochs) || s.Epoch != epochs[0] {
		t.Errorf("codes of epochs %v, status %v, newest %d; want %v", got, s.Epochs, s.Epoch, epochs)
	}
	err := a.vault.store.View(func(tx *store.Tx) error {
		if tx.Blob(blobSecurityCode) != nil && !slices.Equal(epochs, []uint32{1}) {
			t.Error("the blob of a release 0.1 is still there")
		}
		for epoch := range uint32(9) {
			if (tx.Blob(codeBlob(epoch)) != nil) && !slices.Contains(epochs, epoch) {
				t.Errorf("the code of epoch %d is still in the store", epoch)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// asRelease01 makes a store what release 0.1 left: one code, no list.
func asRelease01(t testing.TB, v *vault) {
	t.Helper()
	err := v.update(func(tx *store.Tx) error {
		var self terminalRecord
		if _, err := tx.Get(bucketTerminal, keySelf, &self); err != nil {
			return err
		}
		blob := tx.Blob(codeBlob(1))
		self.Codes = nil
		return errors.Join(tx.PutBlob(blobSecurityCode, blob), tx.DeleteBlob(codeBlob(1)), tx.Put(bucketTerminal, keySelf, &self))
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestCodesOfAnOlderStore(t *testing.T) {
	a := testAgent(t, Config{})
	mustProvision(t, a, newAuthority(t).bundle(transport.BundleTerminal, "nav-001"))
	asRelease01(t, a.vault)
	mustHold(t, a, 1)
	installCode(t, a.vault, 2)
	mustHold(t, a, 2, 1)
}

func TestCodesAreInstalledAndRetired(t *testing.T) {
	a := testAgent(t, Config{})
	mustProvision(t, a, newAuthority(t).bundle(transport.BundleTerminal, "nav-001"))
	mustHold(t, a, 1)
	for _, epoch := range []uint32{2, 5, 3} {
		installCode(t, a.vault, epoch)
	}
	mustHold(t, a, 5, 3, 2, 1)
	if r := retireCodes(t, a.vault, 1, 3, 4); r.State != transport.CommandDone {
		t.Errorf("%+v", r)
	}
	mustHold(t, a, 5, 2)
	if r := retireCodes(t, a.vault, 1); r.State != transport.CommandDone || !strings.Contains(r.Detail, "none") {
		t.Errorf("%+v", r)
	}
	if r := retireCodes(t, a.vault, 2, 5); r.State != transport.CommandRefused || !strings.Contains(r.Detail, "no other code") {
		t.Errorf("all of them: %+v", r)
	}
	mustHold(t, a, 5, 2)
	if r := retireCodes(t, a.vault, 5); r.State != transport.CommandDone {
		t.Errorf("the newest: %+v", r)
	}
	mustHold(t, a, 2)
}

// The same command again, as after a lost answer, has no second effect.
func TestCodeCommandsRepeated(t *testing.T) {
	a := testAgent(t, Config{})
	mustProvision(t, a, newAuthority(t).bundle(transport.BundleTerminal, "nav-001"))
	install, retire := transport.NewID(rand.Reader), transport.NewID(rand.Reader)
	order := &transport.CodeInstall{Group: "default", Epoch: 2, Code: codeOf(2)}
	for range 2 {
		if r := command(t, a.vault, install, transport.CommandCodeInstall, order); r.State != transport.CommandDone {
			t.Fatalf("%+v", r)
		}
	}
	for range 2 {
		if r := command(t, a.vault, retire, transport.CommandCodeRetire, &transport.CodeRetire{Group: "default", Epochs: []uint32{2}}); r.State != transport.CommandDone || r.Detail != "" {
			t.Fatalf("%+v", r)
		}
		command(t, a.vault, install, transport.CommandCodeInstall, order) // late: it is not installed again
	}
	mustHold(t, a, 1)
}

func TestCodeOrdersThatAreRefused(t *testing.T) {
	a := testAgent(t, Config{})
	mustProvision(t, a, newAuthority(t).bundle(transport.BundleTerminal, "nav-001"))
	wrapped := &transport.WrappedCode{Group: "default", Epoch: 2, Public: []byte{1}, Duplicate: []byte{2}, Seed: []byte{3}}
	for name, c := range map[string]struct {
		kind string
		body any
		says string
	}{
		"garbage":              {transport.CommandCodeInstall, &transport.CommandReady{}, "cannot be read"},
		"garbage to retire":    {transport.CommandCodeRetire, &transport.CommandReady{}, "cannot be read"},
		"another group":        {transport.CommandCodeInstall, &transport.CodeInstall{Group: "other", Epoch: 2, Code: codeOf(2)}, "group other"},
		"another group's":      {transport.CommandCodeRetire, &transport.CodeRetire{Group: "other", Epochs: []uint32{1}}, "group other"},
		"short":                {transport.CommandCodeInstall, &transport.CodeInstall{Group: "default", Epoch: 2, Code: codeOf(2)[1:]}, "31 bytes"},
		"no epoch":             {transport.CommandCodeInstall, &transport.CodeInstall{Group: "default", Code: codeOf(2)}, "epoch 0"},
		"wrapped, and no chip": {transport.CommandCodeInstall, &transport.CodeInstall{Group: "default", Epoch: 2, Wrapped: wrapped}, `"file"`},
		"not ascending":        {transport.CommandCodeRetire, &transport.CodeRetire{Group: "default", Epochs: []uint32{2, 1}}, "ascend"},
	} {
		r := command(t, a.vault, transport.NewID(rand.Reader), c.kind, c.body)
		if r.State != transport.CommandRefused || !strings.Contains(r.Detail, c.says) {
			t.Errorf("%s: %+v, want %q", name, r, c.says)
		}
	}
	for epoch := uint32(2); epoch <= transport.MaxCodes; epoch++ {
		installCode(t, a.vault, epoch)
	}
	r := command(t, a.vault, transport.NewID(rand.Reader), transport.CommandCodeInstall, &transport.CodeInstall{Group: "default", Epoch: 9, Code: codeOf(9)})
	if r.State != transport.CommandRefused || !strings.Contains(r.Detail, "retire") {
		t.Errorf("one too many: %+v", r)
	}
	installCode(t, a.vault, 3) // again is none more
	mustHold(t, a, 8, 7, 6, 5, 4, 3, 2, 1)
}

// Bundles add the code of their epoch, unless they bring another group.
func TestCodesOfBundles(t *testing.T) {
	ca := newAuthority(t)
	a := testAgent(t, Config{})
	mustProvision(t, a, ca.bundle(transport.BundleSpare, ""))
	for _, kind := range []transport.BundleKind{transport.BundleSpare, transport.BundleTerminal} {
		b := ca.bundle(kind, "nav-001")
		b.Epoch = 2
		copy(b.SecurityCode, codeOf(2))
		mustProvision(t, a, b)
		mustHold(t, a, 2, 1)
	}
	older := ca.bundle(transport.BundleTerminal, "nav-001")
	mustProvision(t, a, older)
	mustHold(t, a, 2, 1)
	other := ca.bundle(transport.BundleTerminal, "nav-001")
	other.Group = "other"
	mustProvision(t, a, other)
	mustHold(t, a, 1)
}

// Copies between terminals that hold different epochs. req: C1
func TestCopyOverMixedEpochs(t *testing.T) {
	for name, c := range map[string]struct {
		old, new []uint32 // epochs besides 1 that each gets
		retired  []uint32 // of the old one
		works    bool
	}{
		"both new":               {old: []uint32{2}, new: []uint32{2}, works: true},
		"new one is behind":      {old: []uint32{2}, works: true},
		"old one is behind":      {new: []uint32{2, 3}, works: true},
		"retired at the old one": {old: []uint32{2}, retired: []uint32{1}},
		"one in common":          {old: []uint32{2, 3}, new: []uint32{2}, retired: []uint32{1, 3}, works: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newCopyRig(t, "maps-1")
			for _, epoch := range c.old {
				installCode(t, r.old.vault, epoch)
			}
			for _, epoch := range c.new {
				installCode(t, r.new.vault, epoch)
			}
			if len(c.retired) > 0 {
				if got := retireCodes(t, r.old.vault, c.retired...); got.State != transport.CommandDone {
					t.Fatalf("%+v", got)
				}
			}
			o, code := r.arm()
			_, _, err := r.fetch(o, code)
			if c.works {
				if err != nil || !slices.Equal(ids(t, r.new), []transport.Name{"maps-1"}) {
					t.Errorf("%v, holds %v", err, ids(t, r.new))
				}
				return
			}
			if !errors.Is(err, transport.KeycopyCodeUnknown) || control.AsProblem(err).Kind != control.Refused || len(ids(t, r.new)) != 0 {
				t.Errorf("%v, holds %v", err, ids(t, r.new))
			}
			installCode(t, r.new.vault, 2) // the code that was typed was not used up
			_, _, err = r.fetch(o, code)
			for deadline := time.Now().Add(10 * time.Second); errors.Is(err, &control.Problem{Kind: control.Unavailable}) && time.Now().Before(deadline); {
				_, _, err = r.fetch(o, code) // strangers wait before they are let in again
			}
			if err != nil {
				t.Errorf("with a code in common: %v", err)
			}
		})
	}
}
