package tpm_test

// Keys that go from chip to chip. (req: C8)

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/tpm"
)

// public is the key that a blob signs with, which it proves.
func public(t *testing.T, m *tpm.Module, b hsm.Blob) *ecdsa.PublicKey {
	t.Helper()
	s, err := m.Signer(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	digest := sha256.Sum256([]byte("signed"))
	sig, err := s.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	key := s.Public().(*ecdsa.PublicKey)
	if !ecdsa.VerifyASN1(key, digest[:], sig) {
		t.Error("a signature of another key")
	}
	return key
}

// pair is two chips with a fleet authority, whose word for the second is there.
type pair struct {
	from, to         *hsmtest.TPM
	a, b             *tpm.Module
	authority        *ecdsa.PrivateKey
	key              hsm.Blob // in a
	parent, approval []byte   // b's
}

func newPair(t *testing.T) *pair {
	t.Helper()
	p := &pair{from: hsmtest.NewTPM(t), to: hsmtest.NewTPM(t), authority: vendor(t)}
	p.a, p.b = open(t, p.from.Socket), open(t, p.to.Socket)
	p.key = must(p.a.NewMigratableKey(t.Context(), p.authority.Public()))
	p.parent = must(p.b.Parent(t.Context()))
	p.approval = must(tpm.ApproveParent(p.authority, p.parent))
	return p
}

func (p *pair) duplicate(t *testing.T) []byte {
	t.Helper()
	return must(p.a.Duplicate(t.Context(), p.key, p.parent, p.approval))
}

func TestMigrate(t *testing.T) {
	p := newPair(t)
	want := public(t, p.a, p.key)
	one, two := p.duplicate(t), p.duplicate(t)
	if len(one) != hsm.DuplicateSize || len(two) != hsm.DuplicateSize || bytes.Equal(one, two) {
		t.Errorf("%d and %d bytes, want two different ones of %d", len(one), len(two), hsm.DuplicateSize)
	}
	moved, err := p.b.Import(t.Context(), p.authority.Public(), one)
	if err != nil {
		t.Fatal(err)
	}
	if !public(t, p.b, moved).Equal(want) {
		t.Error("another key arrived")
	}
	before, after := must(hsm.Decode(p.key)), must(hsm.Decode(moved))
	if !bytes.Equal(before.Public, after.Public) || before.Owner == after.Owner || bytes.Equal(before.Sealed, after.Sealed) {
		t.Error("its Name changed, or its wrapping did not")
	}
	if !public(t, p.a, p.key).Equal(want) {
		t.Error("it is not where it was any more")
	}
	if again := must(p.b.Import(t.Context(), p.authority.Public(), one)); !public(t, p.b, again).Equal(want) {
		t.Error("the same duplicate, taken in twice, is two keys")
	}
	// On to a third chip, from the second.
	third := open(t, hsmtest.StartTPM(t))
	parent := must(third.Parent(t.Context()))
	on := must(p.b.Duplicate(t.Context(), moved, parent, must(tpm.ApproveParent(p.authority, parent))))
	if !public(t, third, must(third.Import(t.Context(), p.authority.Public(), on))).Equal(want) {
		t.Error("another key went on")
	}
	for name, m := range map[string]*tpm.Module{"first": p.a, "second": p.b} {
		if err := m.Close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	nothingLeft(t, p.from)
	nothingLeft(t, p.to)
}

// The private key is never outside a chip in clear, nor is the inner wrapper's
// key on either bus.
func TestMigrateBusShowsNoSecret(t *testing.T) {
	p := newPair(t)
	p.a.Close()
	p.b.Close()
	fromPath, fromSeen := hsmtest.Record(t, p.from.Socket)
	toPath, toSeen := hsmtest.Record(t, p.to.Socket)
	p.a, p.b = open(t, fromPath), open(t, toPath)
	d := p.duplicate(t)
	must(p.b.Import(t.Context(), p.authority.Public(), d))
	inner := d[1:17]
	for name, seen := range map[string][]byte{"old": fromSeen(), "new": toSeen()} {
		if shows(seen, inner) {
			t.Errorf("the inner key crosses the bus of the %s chip in clear", name)
		}
		if !shows(seen, d[40:72]) {
			t.Errorf("the recorder of the %s chip does not even see the public key", name)
		}
	}
	// What is wrapped shows nothing either: the same key, twice, has nothing in common.
	other := p.duplicate(t)
	at := bytes.Index(d, must(hsm.Decode(p.key)).Public[64:])
	area := len(must(hsm.Decode(p.key)).Public) - 64
	if at < 0 || shows(other[at+area:at+area+200], d[at+area+2:at+area+130]) {
		t.Error("two duplicates of a key have bytes in common")
	}
}

func TestMigrateRefuses(t *testing.T) {
	p := newPair(t)
	stranger := vendor(t)
	third := open(t, hsmtest.StartTPM(t))
	elsewhere := must(third.Parent(t.Context()))
	digest := sha256.Sum256(p.parent)
	for name, c := range map[string]struct {
		key              hsm.Blob
		parent, approval []byte
		want             error
	}{
		"an approval for another parent": {p.key, elsewhere, p.approval, hsm.ErrNotApproved},
		"another authority's approval":   {p.key, p.parent, must(tpm.ApproveParent(stranger, p.parent)), hsm.ErrNotApproved},
		"no approval":                    {p.key, p.parent, nil, hsm.ErrNotApproved},
		"an altered approval":            {p.key, p.parent, append(slices.Clone(p.approval), 0), hsm.ErrNotApproved},
		"a signature for something else": {p.key, p.parent, must(p.authority.Sign(rand.Reader, digest[:], crypto.SHA256)), hsm.ErrNotApproved},
		"a key of another authority":     {must(p.a.NewMigratableKey(t.Context(), stranger.Public())), p.parent, p.approval, hsm.ErrNotApproved},
		"a key that stays":               {must(p.a.NewKey(t.Context())), p.parent, p.approval, hsm.ErrStays},
		"a key of another chip":          {must(p.b.NewMigratableKey(t.Context(), p.authority.Public())), p.parent, p.approval, hsm.ErrReplaced},
		"a signing key for a parent":     {p.key, must(hsm.Decode(p.key)).Public[64:], p.approval, hsm.ErrNotApproved},
		"no parent":                      {p.key, nil, p.approval, hsm.ErrNotApproved},
		"what is no key":                 {hsm.Blob("x"), p.parent, p.approval, hsm.ErrBlob},
	} {
		if d, err := p.a.Duplicate(t.Context(), c.key, c.parent, c.approval); !errors.Is(err, c.want) {
			t.Errorf("%s: %d bytes and %v, want %v", name, len(d), err, c.want)
		}
	}
	good := p.duplicate(t)
	if _, err := third.Import(t.Context(), p.authority.Public(), good); !errors.Is(err, hsm.ErrBlob) {
		t.Errorf("another chip takes it in: %v", err)
	}
	if _, err := p.b.Import(t.Context(), stranger.Public(), good); !errors.Is(err, hsm.ErrBlob) {
		t.Errorf("a key under another authority is taken in: %v", err)
	}
	if _, err := p.b.Signer(t.Context(), p.key); !errors.Is(err, hsm.ErrReplaced) {
		t.Errorf("the blob of one chip opens in another: %v", err)
	}
	public(t, p.b, must(p.b.Import(t.Context(), p.authority.Public(), good)))
}

// Any byte that is altered on the way makes it useless.
func TestMigrateTampered(t *testing.T) {
	p := newPair(t)
	good := p.duplicate(t)
	for n := range good {
		bad := slices.Clone(good)
		bad[n] ^= 0x04
		if _, err := p.b.Import(t.Context(), p.authority.Public(), bad); !errors.Is(err, hsm.ErrBlob) {
			t.Fatalf("byte %d altered: %v", n, err)
		}
	}
	for _, bad := range [][]byte{nil, good[:511], append(slices.Clone(good), 0)} {
		if _, err := p.b.Import(t.Context(), p.authority.Public(), bad); !errors.Is(err, hsm.ErrBlob) {
			t.Errorf("%d bytes: %v", len(bad), err)
		}
	}
}

// What our own checks would let through, the chip refuses: an approval is
// replayed for another parent, and parents are no storage keys.
func TestMigrateIsTheChipsWord(t *testing.T) {
	p := newPair(t)
	third := open(t, hsmtest.StartTPM(t))
	elsewhere := must(third.Parent(t.Context()))
	if _, err := tpm.DuplicateUnchecked(t.Context(), p.a, p.key, elsewhere, p.approval); err == nil {
		t.Error("an approval is good for another parent")
	}
	stranger := must(tpm.ApproveParent(vendor(t), p.parent))
	if _, err := tpm.DuplicateUnchecked(t.Context(), p.a, p.key, p.parent, stranger); err == nil {
		t.Error("another authority's word counts")
	}
	signing := must(hsm.Decode(p.key)).Public[64:]
	if _, err := tpm.DuplicateUnchecked(t.Context(), p.a, p.key, signing, tpm.SignParent(p.authority, signing)); err == nil {
		t.Error("a key goes under a signing key")
	}
	stays := must(hsm.Decode(must(p.a.NewKey(t.Context()))))
	if _, err := tpm.DuplicateItem(t.Context(), p.a, stays, p.authority, p.parent, p.approval); err == nil {
		t.Error("a key that stays goes")
	}
	if _, err := tpm.DuplicateUnchecked(t.Context(), p.a, p.key, p.parent, p.approval); err != nil {
		t.Errorf("the good one: %v; the test proves nothing", err)
	}
	for _, m := range []*tpm.Module{p.a, p.b} {
		m.Close()
	}
	nothingLeft(t, p.from)
}

// tpm2-tools as the other chip: what they make of the key, and of its duplicate.
func TestMigrateToTPM2Tools(t *testing.T) {
	p := newPair(t)
	want := public(t, p.a, p.key)
	d := must(tpm.OpenDuplicate(p.duplicate(t)))
	p.a.Close()
	p.b.Close()
	attributes := p.from.Attributes(p.key)
	for _, has := range []string{"sensitivedataorigin", "userwithauth", "adminwithpolicy", "noda", "encryptedduplication", "sign"} {
		if !strings.Contains(attributes, has) {
			t.Errorf("attributes %s, without %s", attributes, has)
		}
	}
	if strings.Contains(attributes, "fixed") || strings.Contains(attributes, "decrypt") || strings.Contains(attributes, "restricted") {
		t.Errorf("attributes %s", attributes)
	}
	for name, content := range map[string][]byte{"d.pub": tpm.Sized(d.Public), "d.dup": tpm.Sized(d.Private), "d.seed": tpm.Sized(d.Seed), "d.inner": d.Inner} {
		p.to.Put(t, name, content)
	}
	p.to.Tool("tpm2_import", "-C", "0x81000001", "-G", "aes", "-k", "d.inner", "-u", "d.pub", "-i", "d.dup", "-s", "d.seed", "-r", "d.priv")
	p.to.Tool("tpm2_load", "-C", "0x81000001", "-u", "d.pub", "-r", "d.priv", "-c", "d.ctx")
	p.to.Put(t, "message", []byte("signed"))
	p.to.Tool("tpm2_sign", "-c", "d.ctx", "-g", "sha256", "-f", "plain", "-o", "d.sig", "message")
	digest := sha256.Sum256([]byte("signed"))
	if !ecdsa.VerifyASN1(want, digest[:], p.to.Get(t, "d.sig")) {
		t.Error("tpm2-tools sign with another key")
	}
	if _, err := p.to.TryTool("tpm2_import", "-C", "0x81000001", "-u", "d.pub", "-i", "d.dup", "-s", "d.seed", "-r", "x.priv"); err == nil {
		t.Error("it opens without the inner key")
	}
}

func TestApproveParent(t *testing.T) {
	m := open(t, hsmtest.StartTPM(t))
	key := vendor(t)
	parent := must(m.Parent(t.Context()))
	again := must(m.Parent(t.Context()))
	if !bytes.Equal(parent, again) {
		t.Error("the parent changes")
	}
	a := must(tpm.ApproveParent(key, parent))
	if err := tpm.CheckParentApproval(key.Public(), parent, a); err != nil {
		t.Error(err)
	}
	p384 := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	if _, err := tpm.ApproveParent(p384, parent); err == nil {
		t.Error("a P-384 key is an authority")
	}
	if _, err := m.NewMigratableKey(t.Context(), p384.Public()); err == nil {
		t.Error("a key is made under a P-384 key")
	}
	if err := tpm.CheckParentApproval(nil, parent, a); err == nil {
		t.Error("no authority is one")
	}
	for name, bad := range map[string][]byte{
		"attributes": edited(parent, 7, 0x02), "algorithm": edited(parent, 1, 0x01), "off the curve": edited(parent, len(parent)-1, 1),
		"short": parent[:len(parent)-1], "long": append(slices.Clone(parent), 0), "huge": make([]byte, 4096),
	} {
		if _, err := tpm.ApproveParent(key, bad); !errors.Is(err, hsm.ErrNotApproved) {
			t.Errorf("%s: %v", name, err)
		}
		if err := tpm.CheckParentApproval(key.Public(), bad, a); !errors.Is(err, hsm.ErrNotApproved) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func edited(b []byte, at int, flip byte) []byte {
	b = slices.Clone(b)
	b[at] ^= flip
	return b
}

// A chip that cannot be asked is said to be so, and no slot is lost when the
// connection ends in the middle.
func TestMigrateInterrupted(t *testing.T) {
	p := newPair(t)
	p.a.Close()
	for _, cc := range []tpm2.TPMCC{tpm2.TPMCCPolicyDuplicationSelect, tpm2.TPMCCPolicyAuthorize, tpm2.TPMCCDuplicate} {
		bus := hsmtest.NewBus(t, p.from.Socket, func(command []byte, next func([]byte) []byte) []byte {
			if tpm2.TPMCC(hsmtest.Code(command)) == cc {
				return hsmtest.Fail(uint32(tpm2.TPMRCNVSpace))
			}
			return next(command)
		})
		m := open(t, bus.Socket)
		for range 5 {
			if _, err := m.Duplicate(t.Context(), p.key, p.parent, p.approval); err == nil {
				t.Errorf("%v: it works", cc)
			}
		}
		m.Close()
		nothingLeft(t, p.from)
	}
	m := open(t, p.from.Socket)
	must(m.Duplicate(t.Context(), p.key, p.parent, p.approval))
}

func BenchmarkMigrate(b *testing.B) {
	from, to, key := hsmtest.StartTPM(b), hsmtest.StartTPM(b), must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	x, y := must(openQuiet(from)), must(openQuiet(to))
	defer x.Close()
	defer y.Close()
	parent := must(y.Parent(b.Context()))
	approval := must(tpm.ApproveParent(key, parent))
	blob := must(x.NewMigratableKey(b.Context(), key.Public()))
	d := must(x.Duplicate(b.Context(), blob, parent, approval))
	b.Run("NewMigratableKey", func(b *testing.B) {
		for b.Loop() {
			must(x.NewMigratableKey(b.Context(), key.Public()))
		}
	})
	b.Run("Duplicate", func(b *testing.B) {
		for b.Loop() {
			must(x.Duplicate(b.Context(), blob, parent, approval))
		}
	})
	b.Run("Import", func(b *testing.B) {
		for b.Loop() {
			must(y.Import(b.Context(), key.Public(), d))
		}
	})
}
