package attest_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"crypto/sha256"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/attest"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/tpm"
)

// credentialFile is how tpm2-tools keep what TPM2_MakeCredential gives.
func credentialFile(c hsm.Challenge) []byte {
	b := []byte{0xba, 0xdc, 0xc0, 0xde, 0, 0, 0, 1}
	for _, part := range [][]byte{c.Credential, c.Secret} {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(part))), part...)
	}
	return b
}

// Challenges that tpm2-tools make are opened by our chip, and the evidence that
// the chip gives verifies under them. req: L3
func TestForeignToolsAgree(t *testing.T) {
	maker, p := hsmtest.NewMaker(t), hsmtest.NewTPM(t)
	maker.Endorse(p)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, b []byte) string {
		if err := os.WriteFile(at(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
		return at(name)
	}
	d := newDevice(t, p, maker.Roots())
	n := nonce()
	e, ak := d.evidence(n)
	if err := d.module.Close(); err != nil { // one client at a time
		t.Fatal(err)
	}
	public := func(name string, area []byte) string {
		return write(name, append(binary.BigEndian.AppendUint16(nil, uint16(len(area))), area...))
	}
	write("attest", e.IdentityProof.Attest)
	sum := sha256.Sum256(e.AK)
	name := hex.EncodeToString(append([]byte{0, 0x0b}, sum[:]...))
	secret := write("secret", []byte("a secret of tpm2-tools"))
	p.Tool("tpm2_makecredential", "-u", public("ek", e.EK), "-s", secret, "-n", name, "-o", at("credential"))
	p.Tool("tpm2_loadexternal", "-C", "n", "-u", public("ak2", e.AK), "-c", at("ak.ctx"))
	p.Tool("tpm2_verifysignature", "-c", at("ak.ctx"), "-g", "sha256", "-m", at("attest"), "-s", write("signature", e.IdentityProof.Signature))
	p.Tool("tpm2_flushcontext", "-t")

	m, err := tpm.Open(t.Context(), p.Socket, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	file := must(os.ReadFile(at("credential")))
	id, rest := part(file[8:])
	seed, _ := part(rest)
	got, err := m.Activate(t.Context(), ak, hsm.Challenge{Credential: id, Secret: seed})
	if err != nil || string(got.Bytes()) != "a secret of tpm2-tools" {
		t.Errorf("%v", err)
	}
	// Ours has the same form.
	challenge, _, err := must(d.roots.Verify(e, d.spki, n, time.Now())).Challenge()
	if err != nil {
		t.Fatal(err)
	}
	if ours := credentialFile(challenge); !bytes.Equal(ours[:8], file[:8]) || len(challenge.Credential) != 2+32+2+attest.SecretSize || len(challenge.Secret) != len(seed) {
		t.Errorf("%x beside %x", ours, file)
	}
}

func part(b []byte) (p, rest []byte) {
	n := int(binary.BigEndian.Uint16(b))
	return b[2 : 2+n], b[2+n:]
}

// A proof leaves nothing behind in the chip, a failed one neither: handles and
// sessions as before, lockout counter untouched.
func TestAProofLeavesNothingBehind(t *testing.T) {
	maker, p := hsmtest.NewMaker(t), hsmtest.NewTPM(t)
	maker.Endorse(p)
	for range 8 { // more often than there are places
		d := newDevice(t, p, maker.Roots())
		proven := d.whole()
		challenge, _, err := proven.Challenge()
		if err != nil {
			t.Fatal(err)
		}
		_, ak := d.evidence(nonce())
		for range 4 { // of an AK before
			if _, err := d.module.Activate(t.Context(), ak, challenge); err == nil {
				t.Fatal("another AK opens it")
			}
		}
		d.whole()
		d.module.Close()
	}
	for _, kind := range []string{"handles-transient", "handles-loaded-session", "handles-saved-session"} {
		if out := p.Tool("tpm2_getcap", kind); out != "" {
			t.Errorf("%s: %s", kind, out)
		}
	}
	if out := p.Tool("tpm2_getcap", "properties-variable"); !bytes.Contains([]byte(out), []byte("TPM2_PT_LOCKOUT_COUNTER: 0x0")) {
		t.Error("the lockout counter has moved")
	}
}

// Certificates of the maker's CAs in the chip complete the way to the root,
// also when they are cut over two indexes.
func TestChainFromTheChip(t *testing.T) {
	root, p := hsmtest.NewMaker(t), hsmtest.NewTPM(t)
	issuer := root.Under()
	root.Put(p, 0x01c0000a, append(issuer.Certificate(p.EK("ecc"), nil), make([]byte, 40)...)) // an index longer than what is in it
	chain := slices.Concat(issuer.DER(), root.DER())
	root.Put(p, 0x01c00100, chain[:300])
	root.Put(p, 0x01c00101, chain[300:])
	newDevice(t, p, root.Roots()).whole()
}

// The endorsement key that stands in a chip is used as it stands.
func TestAStoredRSAKey(t *testing.T) {
	maker, p := hsmtest.NewMaker(t), hsmtest.NewTPM(t)
	maker.Put(p, 0x01c00002, maker.Certificate(p.EK("rsa"), nil))
	p.Tool("tpm2_createek", "-c", "0x81010001", "-G", "rsa", "-u", filepath.Join(t.TempDir(), "u"))
	newDevice(t, p, maker.Roots()).whole()
}

// A chip without a certificate, or with one for another key, says so.
func TestAChipWithoutAMaker(t *testing.T) {
	maker, bare, wrong := hsmtest.NewMaker(t), hsmtest.NewTPM(t), hsmtest.NewTPM(t)
	maker.Put(wrong, 0x01c0000a, maker.Certificate(bare.EK("ecc"), nil))
	bare.Tool("tpm2_flushcontext", "-t")
	for name, p := range map[string]*hsmtest.TPM{"none": bare, "another": wrong} {
		d := newDevice(t, p, maker.Roots())
		if _, _, err := d.module.Evidence(t.Context(), d.identity, nonce()); !isEndorsement(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What was wrapped to a chip does not leave it again, also for who owns it.
func TestAWrappedKeyCannotBeDuplicated(t *testing.T) {
	maker, p := hsmtest.NewMaker(t), hsmtest.NewTPM(t)
	maker.Endorse(p)
	d := newDevice(t, p, maker.Roots())
	blob := must(d.module.ImportWrapped(t.Context(), must(attest.WrapMAC(d.whole().Root, hsm.RandomSecret(hsm.MACKeySize)))))
	d.module.Close()
	item := must(hsm.Decode(blob))
	dir := t.TempDir()
	for name, b := range map[string][]byte{"pub": item.Public, "priv": item.Sealed} {
		if err := os.WriteFile(filepath.Join(dir, name), append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	p.Tool("tpm2_load", "-C", "0x81000001", "-u", at("pub"), "-r", at("priv"), "-c", at("ctx"))
	p.Tool("tpm2_startauthsession", "--policy-session", "-S", at("session"))
	p.Tool("tpm2_policycommandcode", "-S", at("session"), "TPM2_CC_Duplicate")
	duplicate := func(auth ...string) error {
		_, err := p.TryTool("tpm2_duplicate", append([]string{"-C", "null", "-c", at("ctx"), "-G", "null", "-r", at("dup"), "-s", at("seed")}, auth...)...)
		return err
	}
	if err := duplicate("-p", "session:"+at("session")); err == nil || !strings.Contains(err.Error(), "policy") {
		t.Errorf("under a policy: %v", err)
	}
	if err := duplicate(); err == nil || !strings.Contains(err.Error(), "auth") {
		t.Errorf("under its auth value: %v", err)
	}
	p.Tool("tpm2_flushcontext", "-t")
	p.Tool("tpm2_flushcontext", "-l")
}
