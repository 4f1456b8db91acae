package tpm_test

// The storage root key: what stands at its handle, and who owns the chip.

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/tpm"
)

const template = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt"

// storeForeignKey puts the default primary of tpm2-tools at the root handle:
// without noDA, so not by the template.
func storeForeignKey(p *hsmtest.TPM) {
	p.Tool("tpm2_createprimary", "-Q", "-C", "o", "-G", "ecc", "-c", "foreign.ctx")
	p.Tool("tpm2_evictcontrol", "-Q", "-C", "o", "-c", "foreign.ctx", "0x81000001")
	p.Tool("tpm2_flushcontext", "-t")
}

// storeTemplateKey puts another key by the template there: its unique field was
// empty at creation, as tpm2-tools and others leave it.
func storeTemplateKey(p *hsmtest.TPM, more ...string) {
	args := append([]string{"-Q", "-C", "o", "-G", "ecc256:aes128cfb", "-a", template, "-c", "srk.ctx"}, more...)
	p.Tool("tpm2_createprimary", args...)
	p.Tool("tpm2_evictcontrol", "-Q", "-C", "o", "-c", "srk.ctx", "0x81000001")
	p.Tool("tpm2_flushcontext", "-t")
}

func rootName(p *hsmtest.TPM) string {
	out := p.Tool("tpm2_readpublic", "-c", "0x81000001")
	return regexp.MustCompile(`name: ([0-9a-f]+)`).FindStringSubmatch(out)[1]
}

// works uses every verb once and returns a blob.
func works(t *testing.T, path string) hsm.Blob {
	t.Helper()
	m := open(t, path)
	defer m.Close()
	b := must(m.Seal(t.Context(), hsm.NewSecret([]byte("sealed here"))))
	opens(t, m, b)
	must(m.Signer(t.Context(), must(m.NewKey(t.Context()))))
	must(m.MAC(t.Context(), must(m.ImportMAC(t.Context(), hsm.RandomSecret(32))), nil))
	return b
}

func opens(t *testing.T, m *tpm.Module, b hsm.Blob) {
	t.Helper()
	if got, err := m.Unseal(t.Context(), b); err != nil || string(got.Bytes()) != "sealed here" {
		t.Errorf("unseal: %v", err)
	}
}

func opensAt(t *testing.T, path string, b hsm.Blob) {
	t.Helper()
	m := open(t, path)
	defer m.Close()
	opens(t, m, b)
}

func TestRootIsStoredOnce(t *testing.T) {
	p := hsmtest.NewTPM(t)
	b := works(t, p.Socket)
	name := rootName(p)
	bus := hsmtest.NewBus(t, p.Socket, nil)
	opensAt(t, bus.Socket, b)
	if rootName(p) != name {
		t.Error("the second start changed the stored root")
	}
	for _, cc := range []tpm2.TPMCC{tpm2.TPMCCCreatePrimary, tpm2.TPMCCEvictControl} {
		if count(bus, cc) != 0 {
			t.Errorf("the second start sent %v", cc)
		}
	}
}

func TestForeignKeyAtRootHandle(t *testing.T) {
	p := hsmtest.NewTPM(t)
	storeForeignKey(p)
	name := rootName(p)
	b := works(t, p.Socket)
	opensAt(t, p.Socket, b)
	if rootName(p) != name {
		t.Error("the foreign key was replaced")
	}
	if left := handles(t, p, "handles-transient"); left != "" {
		t.Errorf("left loaded: %s", left)
	}
	// Its owner takes it away: ours is stored now, and is the same key as before.
	p.Tool("tpm2_evictcontrol", "-Q", "-C", "o", "-c", "0x81000001")
	opensAt(t, p.Socket, b)
	nothingLeft(t, p)
}

func TestTemplateKeyOfOthersIsUsed(t *testing.T) {
	p := hsmtest.NewTPM(t)
	own := works(t, p.Socket) // under our own root
	p.Tool("tpm2_evictcontrol", "-Q", "-C", "o", "-c", "0x81000001")
	storeTemplateKey(p)
	theirs := works(t, p.Socket) // under the stored one
	opensAt(t, p.Socket, own)    // makes our own again beside it
	m := open(t, p.Socket)
	for range 3 { // to and fro
		opens(t, m, own)
		opens(t, m, theirs)
	}
	m.Close()
	nothingLeft(t, p)
	p.Tool("tpm2_evictcontrol", "-Q", "-C", "o", "-c", "0x81000001")
	m = open(t, p.Socket)
	defer m.Close()
	if _, err := m.Unseal(t.Context(), theirs); !errors.Is(err, hsm.ErrReplaced) {
		t.Errorf("its root is gone: %v", err)
	}
	opens(t, m, own)
}

func TestRootHandleWithPassword(t *testing.T) {
	p := hsmtest.NewTPM(t)
	storeTemplateKey(p, "-p", "theirs")
	b := works(t, p.Socket)
	opensAt(t, p.Socket, b)
	if got := lockouts(t, p); got != 0 {
		t.Errorf("the TPM counts %d wrong guesses", got)
	}
}

func TestOwnerPassword(t *testing.T) {
	p := hsmtest.NewTPM(t)
	p.Tool("tpm2_changeauth", "-Q", "-c", "o", "PASSWORD")
	_, err := tpm.Open(t.Context(), p.Socket, logger(t))
	if !errors.Is(err, hsm.ErrOwnerAuth) {
		t.Fatalf("%v, want %v", err, hsm.ErrOwnerAuth)
	}
	if got := lockouts(t, p); got != 0 {
		t.Errorf("the TPM counts %d wrong guesses", got)
	}
	_, advice, ok := strings.Cut(err.Error(), "with it: ")
	if !ok {
		t.Fatalf("no next step in %q", err)
	}
	advice, _, _ = strings.Cut(advice, " (TPM response code")
	p.Tool("sh", "-c", advice) // the next step, as it is printed
	p.Tool("tpm2_flushcontext", "-t")
	opensAt(t, p.Socket, works(t, p.Socket))
	nothingLeft(t, p)
}

func TestOwnerPasswordSetLater(t *testing.T) {
	p := hsmtest.NewTPM(t)
	b := works(t, p.Socket)
	p.Tool("tpm2_changeauth", "-Q", "-c", "o", "later")
	opensAt(t, p.Socket, b)
	works(t, p.Socket)
}

// A chip that somebody else locked out serves our keys all the same.
func TestLockedOutChip(t *testing.T) {
	p := hsmtest.NewTPM(t)
	b := works(t, p.Socket)
	lockOut(t, p)
	opensAt(t, p.Socket, b)
	works(t, p.Socket)
}

// A cleared TPM is another TPM.
func TestClearedTPM(t *testing.T) {
	p := hsmtest.NewTPM(t)
	b := works(t, p.Socket)
	p.Tool("tpm2_clear", "-Q")
	m := open(t, p.Socket)
	if _, err := m.Unseal(t.Context(), b); !errors.Is(err, hsm.ErrReplaced) {
		t.Errorf("%v, want %v", err, hsm.ErrReplaced)
	}
	m.Close()
	works(t, p.Socket)
}

// The chip is swapped: all that was kept in the old one is refused, by what was
// expected and what was found, and nothing of it is guessed at.
func TestSwappedTPM(t *testing.T) {
	before, after := bootedTPM(t), bootedTPM(t)
	m := open(t, before.Socket)
	k := keep(t.Context(), m)
	behind := must(m.SealPIN(t.Context(), k.secret, pin("1234")))
	m.Close()
	works(t, after.Socket) // has a root of its own
	want, found := "should be "+rootName(before)[:20], "is "+rootName(after)[:20]
	bus := hsmtest.NewBus(t, after.Socket, nil)
	m = open(t, bus.Socket)
	ctx := t.Context()
	for name, verb := range map[string]func() error{
		"unseal": func() error { _, err := m.Unseal(ctx, k.sealed); return err },
		"boot":   func() error { _, err := m.UnsealBoot(ctx, k.boot, nil); return err },
		"PIN":    func() error { _, err := m.UnsealPIN(ctx, behind, pin("1234")); return err },
		"sign":   func() error { _, err := m.Signer(ctx, k.key); return err },
		"MAC":    func() error { _, err := m.MAC(ctx, k.mac, nil); return err },
		"count":  func() error { _, err := m.Count(ctx, k.counter, k.counterKey); return err },
		"push":   func() error { _, err := m.Increment(ctx, k.counter, k.counterKey); return err },
		"drop":   func() error { return m.DropCounter(ctx, k.counter, k.counterKey) },
	} {
		err := verb()
		if !errors.Is(err, hsm.ErrReplaced) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), found) {
			t.Errorf("%s: %v, want %v with both names", name, err, hsm.ErrReplaced)
		}
	}
	m.Close()
	if n := authorised(bus) - count(bus, tpm2.TPMCCCreatePrimary); n != 0 {
		t.Errorf("%d authorised commands were sent to a chip that is another one", n)
	}
	pinState(t, after, 0, false)
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]error{
		dir + "/none": hsm.ErrAbsent, dir: nil, "/dev/null/x": nil, "/etc/passwd": nil,
	} {
		_, err := tpm.Open(t.Context(), path, logger(t))
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v", path, err)
		}
	}
	p := hsmtest.NewTPM(t)
	p.Kill()
	if _, err := tpm.Open(t.Context(), p.Socket, logger(t)); !errors.Is(err, hsm.ErrAbsent) {
		t.Errorf("a socket that nobody listens at: %v", err)
	}
}
