package attest_test

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/attest"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/tpm"
)

// device is a chip with an identity key, and who trusts its maker.
type device struct {
	t        testing.TB
	module   *tpm.Module
	identity hsm.Blob
	spki     []byte
	roots    *attest.Roots
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newDevice(t testing.TB, p *hsmtest.TPM, roots []byte) *device {
	t.Helper()
	m, err := tpm.Open(t.Context(), p.Socket, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	d := &device{t: t, module: m, roots: must(attest.ParseRoots(roots))}
	d.identity = must(m.NewKey(t.Context()))
	s := must(m.Signer(t.Context(), d.identity))
	d.spki = must(x509.MarshalPKIXPublicKey(s.Public()))
	s.Close()
	return d
}

// endorsed is a device with a P-256 endorsement certificate.
func endorsed(t testing.TB) *device {
	t.Helper()
	maker, p := hsmtest.NewMaker(t), hsmtest.NewTPM(t)
	maker.Endorse(p)
	return newDevice(t, p, maker.Roots())
}

func (d *device) evidence(nonce [32]byte) (*hsm.Evidence, hsm.Blob) {
	d.t.Helper()
	e, ak, err := d.module.Evidence(context.Background(), d.identity, nonce)
	if err != nil {
		d.t.Fatal(err)
	}
	return e, ak
}

func nonce() (n [32]byte) {
	rand.Read(n[:])
	return n
}

// whole goes through a proof from end to end.
func (d *device) whole() *attest.Proven {
	d.t.Helper()
	n := nonce()
	e, ak := d.evidence(n)
	proven, err := d.roots.Verify(e, d.spki, n, time.Now())
	if err != nil {
		d.t.Fatal(err)
	}
	challenge, secret, err := proven.Challenge()
	if err != nil {
		d.t.Fatal(err)
	}
	got, err := d.module.Activate(context.Background(), ak, challenge)
	if err != nil {
		d.t.Fatal(err)
	}
	if !got.Equal(secret) || got.Len() != attest.SecretSize {
		d.t.Error("another secret")
	}
	return proven
}

// req: L3
func TestProofOfAP256Chip(t *testing.T) {
	d := endorsed(t)
	first := d.whole()
	second := d.whole()
	if first.Endorsement != second.Endorsement || string(first.Root) != string(second.Root) {
		t.Error("the chip has two names")
	}
}

// A chip as swtpm_setup makes it has two endorsement keys: the first of ours
// that it has is taken, and with that certificate gone the other.
func TestProofOfAFactoryMadeChip(t *testing.T) {
	p, roots := hsmtest.NewMadeTPM(t)
	d := newDevice(t, p, roots)
	e, _ := d.evidence(nonce())
	if len(e.Endorsement) == 0 || e.EK[3] != 0x0c {
		t.Errorf("not the P-384 key: %x", e.EK[:8])
	}
	d.whole()
}

// req: L3
func TestProofOfAnRSAChip(t *testing.T) {
	maker, p := hsmtest.NewMaker(t), hsmtest.NewTPM(t)
	maker.Put(p, 0x01c00002, maker.Certificate(p.EK("rsa"), nil))
	d := newDevice(t, p, maker.Roots())
	e, _ := d.evidence(nonce())
	if e.EK[1] != 0x01 {
		t.Errorf("not the RSA key: %x", e.EK[:8])
	}
	d.whole()
}

// A key that is wrapped to a proven root works there as it would outside, and
// nowhere else. req: L3
func TestWrappedKey(t *testing.T) {
	d, other := endorsed(t), endorsed(t)
	proven := d.whole()
	key := hsm.RandomSecret(hsm.MACKeySize)
	wrapped, err := attest.WrapMAC(proven.Root, key)
	if err != nil {
		t.Fatal(err)
	}
	blob, err := d.module.ImportWrapped(t.Context(), wrapped)
	if err != nil {
		t.Fatal(err)
	}
	direct := must(d.module.ImportMAC(t.Context(), key))
	message := []byte("message")
	a, b := must(d.module.MAC(t.Context(), blob, message)), must(d.module.MAC(t.Context(), direct, message))
	if !a.Equal(b) {
		t.Error("another key")
	}
	if _, err := other.module.ImportWrapped(t.Context(), wrapped); !errors.Is(err, hsm.ErrBlob) {
		t.Errorf("another chip takes it: %v", err)
	}
	if _, err := other.module.MAC(t.Context(), blob, message); !errors.Is(err, hsm.ErrReplaced) {
		t.Errorf("another chip uses it: %v", err)
	}
	for name, spoil := range map[string]func(*hsm.Wrapped){
		"public": func(w *hsm.Wrapped) { w.Public[len(w.Public)-1] ^= 1 }, "duplicate": func(w *hsm.Wrapped) { w.Duplicate[9] ^= 1 },
		"seed": func(w *hsm.Wrapped) { w.Seed[9] ^= 1 }, "short": func(w *hsm.Wrapped) { w.Seed = w.Seed[:9] }, "empty": func(w *hsm.Wrapped) { *w = hsm.Wrapped{} },
	} {
		bad := must(attest.WrapMAC(proven.Root, key))
		spoil(&bad)
		if _, err := d.module.ImportWrapped(t.Context(), bad); !errors.Is(err, hsm.ErrBlob) {
			t.Errorf("%s altered: %v", name, err)
		}
	}
}
