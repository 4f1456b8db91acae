package hsm_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/kagimori/kagimori/hsm"
)

func sample() hsm.Item {
	i := hsm.Item{Kind: hsm.KindTPM, Purpose: hsm.PurposeKey, Public: []byte("public"), Sealed: []byte("sealed")}
	for n := range i.Owner {
		i.Owner[n] = byte(n)
	}
	return i
}

// The bytes of version 1 never change: terminals keep them for years.
func TestBlobGolden(t *testing.T) {
	want := append([]byte{1, 2, 2}, make([]byte, 32)...)
	for n := range 32 {
		want[3+n] = byte(n)
	}
	want = append(want, "\x00\x06public\x00\x06sealed"...)
	b, err := sample().Encode()
	if err != nil || !bytes.Equal(b, want) {
		t.Fatalf("got %x, %v; want %x", b, err, want)
	}
	i, err := hsm.DecodeFor(b, hsm.KindTPM, hsm.PurposeKey)
	if err != nil || string(i.Public) != "public" || string(i.Sealed) != "sealed" || i.Owner != sample().Owner {
		t.Fatalf("got %+v, %v", i, err)
	}
}

func TestBlobRefused(t *testing.T) {
	good, _ := sample().Encode()
	for n := range good {
		if _, err := hsm.Decode(good[:n]); !errors.Is(err, hsm.ErrBlob) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
	if _, err := hsm.Decode(append(bytes.Clone(good), 0)); !errors.Is(err, hsm.ErrBlob) {
		t.Errorf("trailing byte: %v", err)
	}
	if _, err := hsm.Decode(make(hsm.Blob, hsm.MaxBlob+1)); !errors.Is(err, hsm.ErrBlob) {
		t.Errorf("too long: %v", err)
	}
	for at := range 3 { // version, kind, purpose
		for _, v := range []byte{0, 9, 255} {
			bad := bytes.Clone(good)
			bad[at] = v
			if _, err := hsm.Decode(bad); !errors.Is(err, hsm.ErrBlob) {
				t.Errorf("byte %d = %d: %v", at, v, err)
			}
		}
	}
	if _, err := hsm.DecodeFor(good, hsm.KindFile, hsm.PurposeKey); !errors.Is(err, hsm.ErrReplaced) {
		t.Errorf("another kind of module: %v", err)
	}
	if _, err := hsm.DecodeFor(good, hsm.KindTPM, hsm.PurposeMAC); !errors.Is(err, hsm.ErrBlob) {
		t.Errorf("another purpose: %v", err)
	}
	long := sample()
	long.Sealed = make([]byte, hsm.MaxBlob)
	if _, err := long.Encode(); err == nil {
		t.Error("an oversize part was encoded")
	}
	long.Sealed, long.Public = make([]byte, 480), make([]byte, 480)
	if b, err := long.Encode(); err != nil || len(b) > hsm.MaxBlob {
		t.Errorf("the longest parts make %d bytes, %v", len(b), err)
	}
}

func FuzzBlob(f *testing.F) {
	good, _ := sample().Encode()
	f.Add([]byte(good))
	f.Add([]byte{})
	f.Add(make([]byte, 39))
	f.Add([]byte(good[:len(good)-1]))
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := hsm.Decode(b)
		if err != nil {
			if !errors.Is(err, hsm.ErrBlob) {
				t.Fatalf("garbage is %v", err)
			}
			return
		}
		again, err := i.Encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x decodes, encodes to %x, %v", b, again, err)
		}
	})
}
