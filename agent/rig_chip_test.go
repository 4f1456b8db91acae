package agent

import (
	"crypto/ecdsa"
	"crypto/x509"
	"testing"
	"time"

	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/open"
	"github.com/kagimori/kagimori/hsm/tpm"
	"github.com/kagimori/kagimori/transport"
)

// chip answers what a terminal says of its chip.
func (s *server) chip(e *transport.Envelope) (transport.Body, error) {
	m, err := transport.Open[transport.ChipReport](e)
	if err != nil {
		return nil, err
	}
	if s.fleet == nil {
		return &transport.ChipApproval{Fleet: spki(s.t, newTestKey(s.t)), Parent: m.Parent, Why: "nobody vouches for it"}, nil
	}
	return approvalOf(s.t, s.fleet, m.Parent), nil
}

func approvalOf(t testing.TB, fleet *ecdsa.PrivateKey, parent []byte) *transport.ChipApproval {
	t.Helper()
	signature, err := tpm.ApproveParent(fleet, parent)
	if err != nil {
		t.Fatal(err)
	}
	return &transport.ChipApproval{Fleet: spki(t, fleet), Parent: parent, Signature: signature}
}

func spki(t testing.TB, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// chipVault opens storage in a new directory with the chip at path.
func chipVault(t testing.TB, path string) *vault {
	t.Helper()
	log, dir := testLog(t), t.TempDir()
	v, err := openVault(t.Context(), Storage(open.Config{Kind: open.KindTPM, Dir: dir, Path: path}, StoreConfig{Dir: dir}, log), Remedy{}, NewClock(time.Now, time.Time{}), log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.close() })
	return v
}

// withChip gives an agent, which has nothing yet, key storage in a chip of its own.
func withChip(t testing.TB, a *Agent) *hsmtest.TPM {
	t.Helper()
	chip := hsmtest.NewTPM(t)
	v := chipVault(t, chip.Socket)
	v.clock, v.changed = a.clock, a.changed
	a.vault = v
	return chip
}
