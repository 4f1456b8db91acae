package tpm_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/tpm"
)

// FuzzDecode gives blobs to the checks that come before the chip: they end in
// one of two errors, whatever the bytes, and let through nothing but ours.
func FuzzDecode(f *testing.F) {
	m := must(openQuiet(hsmtest.StartTPM(f)))
	for purpose, blob := range map[hsm.Purpose]hsm.Blob{
		hsm.PurposeSeal: must(m.Seal(f.Context(), hsm.NewSecret([]byte("x")))),
		hsm.PurposeKey:  must(m.NewKey(f.Context())),
		hsm.PurposeMAC:  must(m.ImportMAC(f.Context(), hsm.RandomSecret(32))),
	} {
		if err := tpm.Decode(blob, purpose); err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(blob))
		for n := 35; n < 60; n++ {
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
