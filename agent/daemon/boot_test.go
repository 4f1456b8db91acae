package daemon

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/configs"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/open"
	"github.com/kagimori/kagimori/hsm/tpm"
	"github.com/kagimori/kagimori/transport/control"
)

func newVendor(t *testing.T) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// What cannot be used is named, once, and skipped.
func TestApprovalFiles(t *testing.T) {
	dir := t.TempDir()
	vendor, public := newVendor(t)
	stranger, _ := newVendor(t)
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	approval := func(by *ecdsa.PrivateKey, values hsm.PCRs) []byte {
		a, err := tpm.Approve(by, values)
		if err != nil {
			t.Fatal(err)
		}
		data, err := hsm.FormatApproval(a)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	write("good.approval", approval(vendor, hsm.PCRs{7: {1}, 14: {2}}))
	write("stranger.approval", approval(stranger, hsm.PCRs{7: {1}, 14: {2}}))
	write("other.approval", approval(vendor, hsm.PCRs{7: {1}}))
	write("more.approval", approval(vendor, hsm.PCRs{7: {1}, 14: {2}, 0: {3}}))
	write("torn.approval", approval(vendor, hsm.PCRs{7: {1}, 14: {2}})[:40])
	write("long.approval", []byte(strings.Repeat(" ", hsm.MaxApprovalFile+1)))
	write("README", []byte("not looked at"))
	var log strings.Builder
	keys := configs.HSM{BootRegisters: []int{7, 14}, BootAuthority: write("boot.pem", public), BootApprovals: dir}
	b, err := newBoot(keys, open.Config{}, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if list, err := b.approvals(); err != nil || len(list) != 1 || list[0].Values[7] != [32]byte{1} {
			t.Errorf("%v, %v", list, err)
		}
	}
	for _, name := range []string{"stranger", "other", "more", "torn", "long"} {
		if strings.Count(log.String(), "file="+filepath.Join(dir, name+".approval")+" ") != 1 {
			t.Errorf("%s is not named once:\n%s", name, log.String())
		}
	}
	if n := len(b.agent().Approvals()); n != 6 {
		t.Errorf("%d files shown", n)
	}
	b.dir = filepath.Join(dir, "none")
	if list, err := b.approvals(); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}

func TestAuthorityThatIsNone(t *testing.T) {
	dir := t.TempDir()
	rsaLike := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: []byte{1}})
	for name, data := range map[string][]byte{"empty": nil, "damaged": rsaLike, "private": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}}), "long": make([]byte, maxAuthority+1)} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := newBoot(configs.HSM{BootRegisters: []int{7}, BootAuthority: path}, open.Config{}, slog.New(slog.DiscardHandler))
		if p := control.AsProblem(err); p == nil || p.Kind != control.Config || p.Next == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}
