package tpm_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"maps"
	"testing"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/tpm"
)

// FuzzDecode gives blobs to the checks that come before the chip: they end in
// one of two errors, whatever the bytes, and let through nothing but ours.
func FuzzDecode(f *testing.F) {
	p := hsmtest.NewTPM(f)
	p.Measure("kernel")
	m := must(openQuiet(p.Socket))
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	for purpose, blob := range map[hsm.Purpose]hsm.Blob{
		hsm.PurposeSeal: must(m.Seal(f.Context(), hsm.NewSecret([]byte("x")))),
		hsm.PurposeKey:  must(m.NewKey(f.Context())),
		hsm.PurposeMAC:  must(m.ImportMAC(f.Context(), hsm.RandomSecret(32))),

		hsm.PurposeCounter: must(m.NewCounter(f.Context(), hsm.RandomSecret(32))),
		hsm.PurposePIN:     must(m.SealPIN(f.Context(), hsm.RandomSecret(32), pin("1234"))),
		hsm.PurposeMigrate: must(m.NewMigratableKey(f.Context(), key.Public())),
		hsm.PurposeBoot: must(m.SealBoot(f.Context(), hsm.RandomSecret(32),
			hsm.BootPolicy{Registers: []int{0, 1, 2, 3, 4, 7, 8, 14}, Authority: &key.PublicKey})), // the longest
	} {
		if err := tpm.Decode(blob, purpose); err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(blob))
		for n := 35; n < min(60, len(blob)); n++ {
			bad := bytes.Clone(blob)
			bad[n] ^= 0xff
			f.Add([]byte(bad))
		}
	}
	m.Close()
	f.Fuzz(func(t *testing.T, b []byte) {
		kind := hsm.Purpose(1)
		if len(b) > 2 {
			kind = hsm.Purpose(b[2])
		}
		err := tpm.Decode(b, kind)
		if err != nil && !errors.Is(err, hsm.ErrBlob) && !errors.Is(err, hsm.ErrReplaced) {
			t.Fatalf("%x: %v", b, err)
		}
	})
}

// FuzzApproval gives approvals to the check: none that the key has not signed
// passes, and none makes it panic.
func FuzzApproval(f *testing.F) {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	good := must(tpm.Approve(key, hsm.PCRs{7: {1}, 14: {2}}))
	f.Add(7, 14, byte(1), byte(2), good.Signature)
	f.Add(7, 24, byte(1), byte(2), good.Signature)
	f.Add(0, 0, byte(0), byte(0), []byte{})
	f.Add(-1, 16, byte(0), byte(9), []byte{0x30, 0x06, 2, 1, 0, 2, 1, 0})
	f.Fuzz(func(t *testing.T, r1, r2 int, v1, v2 byte, sig []byte) {
		a := hsm.Approval{Values: hsm.PCRs{r1: {v1}, r2: {v2}}, Signature: sig}
		signed := maps.Equal(a.Values, good.Values) && bytes.Equal(sig, good.Signature)
		if err := tpm.CheckApproval(&key.PublicKey, a); err == nil != signed {
			t.Fatalf("%v with %x: %v", a.Values, sig, err)
		}
	})
}

// FuzzDuplicate gives bytes to what takes in keys from other chips: they end in
// hsm.ErrBlob or are the one encoding of what they say.
func FuzzDuplicate(f *testing.F) {
	good := must(tpm.EncodeDuplicate(tpm.Duplicate{Inner: make([]byte, 16), Public: []byte("public"), Private: []byte("private"), Seed: []byte("seed")}))
	f.Add(good)
	f.Add(good[:17])
	for n := range 40 {
		bad := bytes.Clone(good)
		bad[n] ^= 0xff
		f.Add(bad)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := tpm.OpenDuplicate(b)
		if err != nil {
			if !errors.Is(err, hsm.ErrBlob) {
				t.Fatalf("%x: %v", b, err)
			}
			return
		}
		if again, err := tpm.EncodeDuplicate(d); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x encodes again as %x, %v", b, again, err)
		}
	})
}

// FuzzParent gives public areas and approvals to the check: nothing passes but
// what the authority signed.
func FuzzParent(f *testing.F) {
	m := must(openQuiet(hsmtest.StartTPM(f)))
	parent := must(m.Parent(f.Context()))
	m.Close()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	good := must(tpm.ApproveParent(key, parent))
	f.Add(parent, good)
	f.Add(parent, []byte{})
	f.Add([]byte{0, 0x23}, good)
	for n := range len(parent) {
		bad := bytes.Clone(parent)
		bad[n] ^= 0xff
		f.Add(bad, good)
	}
	f.Fuzz(func(t *testing.T, p, approval []byte) {
		signed := bytes.Equal(p, parent) && bytes.Equal(approval, good)
		if err := tpm.CheckParentApproval(key.Public(), p, approval); err == nil != signed {
			t.Fatalf("%x with %x: %v", p, approval, err)
		}
	})
}
