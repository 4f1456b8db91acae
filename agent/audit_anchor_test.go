package agent

import (
	"crypto"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/doctor"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
)

// mute is an identity key in a chip that does not answer.
type mute struct{ hsm.Signer }

func (mute) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return nil, hsm.ErrTimeout }

func change(t testing.TB, v *vault) {
	t.Helper()
	err := v.update(func(tx *store.Tx) error {
		return errors.Join(tx.PutBlob("spare-blob", hsm.Blob(time.Now().String())), v.audit(tx, audit.Passphrase, "", ""))
	})
	if err != nil {
		t.Fatal(err)
	}
}

func verified(t testing.TB, v *vault) *audit.Report {
	t.Helper()
	r, err := v.verifyAudit()
	if err != nil || !r.Sound {
		t.Fatalf("%+v, %v", r, err)
	}
	return r
}

// Each key change is signed for; what is no key change is not, and costs no
// signature.
func TestKeyChangesAreAnchored(t *testing.T) {
	v := testVault(t, t.TempDir())
	before := verified(t, v)
	if before.Epoch == 0 || before.Epoch != before.StoreEpoch || before.Unanchored != 0 {
		t.Fatalf("at the start: %+v", before)
	}
	change(t, v)
	after := verified(t, v)
	if after.Epoch <= before.Epoch || after.Epoch != after.StoreEpoch || after.Unanchored != 0 || after.Anchored != 2 {
		t.Errorf("after a key change: %+v", after)
	}
	if err := v.logged(audit.CopyUnlocked, "", ""); err != nil {
		t.Fatal(err)
	}
	if r := verified(t, v); r.Epoch != after.Epoch || r.Unanchored != 1 {
		t.Errorf("after an entry: %+v", r)
	}
}

// A chip that does not sign holds nobody up: the change is made, the anchor is
// made up for, and the log is sound at every moment.
func TestAnchorIsMadeUpFor(t *testing.T) {
	dir := t.TempDir()
	v := testVault(t, dir)
	first := verified(t, v)
	identity := v.identity
	v.identity = mute{identity}
	change(t, v)
	if r := verified(t, v); r.Epoch != first.Epoch || r.StoreEpoch == r.Epoch || r.Unanchored != 1 || len(r.Gaps) > 0 {
		t.Errorf("while the chip is silent: %+v", r)
	}
	v.anchors.tried = time.Time{}
	if !v.owing() {
		t.Error("nobody will make up for it")
	}
	v.identity = identity
	v.catchUp(t.Context())
	if r := verified(t, v); r.Epoch != r.StoreEpoch || r.Unanchored != 0 || v.owing() {
		t.Errorf("afterwards: %+v", r)
	}
	// The power fails between the change and its anchor: the next start signs.
	v.identity = mute{identity}
	change(t, v)
	v.identity = identity
	if err := v.close(); err != nil {
		t.Fatal(err)
	}
	if r := verified(t, testVault(t, dir)); r.Epoch != r.StoreEpoch || r.Unanchored != 0 || len(r.Gaps) > 0 {
		t.Errorf("after a power cut: %+v", r)
	}
}

// What the doctor is told of a running agent, and of one that waits.
func TestSnapshot(t *testing.T) {
	r := newCopyRig(t, "maps-1")
	r.old.cfg.StateDir = t.TempDir()
	r.arm()
	s := r.old.snapshot(t.Context())
	if !s.Open || !s.Running || s.Health == nil || s.Store == nil || s.Disk == nil || s.Disk.Total == 0 || s.Audit == nil || !s.Held.Offer || s.Use != nil || len(s.Certificates) != 2 {
		t.Errorf("%+v", s)
	}
	for _, c := range s.Certificates {
		if c.Left <= 0 || c.Life < c.Left || c.What == "" {
			t.Errorf("%+v", c)
		}
	}
	r.old.disarm()
	r.old.vault.identity = mute{r.old.vault.identity}
	if report := r.old.Doctor(t.Context()); !report.Has(doctor.ChipSilent) || report.Exit != 22 {
		t.Errorf("%+v", report.Findings)
	}
	waiting := testAgent(t, Config{})
	v := waiting.vault
	waiting.vault = nil
	waiting.problem, _ = storageProblem(hsm.ErrBusy)
	if report := waiting.Doctor(t.Context()); report.Exit != 21 || report.Healthy {
		t.Errorf("%+v", report)
	}
	waiting.vault = v
}
