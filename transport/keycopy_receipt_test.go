package transport

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"testing"
)

func TestSignedReceiptsOpen(t *testing.T) {
	body := KeycopyReceiptBody{Txn: ID{1}, Manifest: KeycopyTag{2}, Status: bytes.Repeat([]byte{0xff}, MaxKeycopyItems/8)}
	encoded, err := Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	signed := KeycopySigned([32]byte{3}, encoded, KeycopyTag{4})
	again, err := OpenKeycopySigned(signed)
	if err != nil || again.Txn != body.Txn || again.Manifest != body.Manifest || !bytes.Equal(again.Status, body.Status) {
		t.Errorf("%+v, %v", again, err)
	}
	if want := sha256.Sum256(append([]byte("keycopy/1 receipt\x00"), signed...)); KeycopySignedDigest(signed) != want {
		t.Error("another digest than docs/keycopy.md says")
	}
	for name, bad := range map[string][]byte{"nothing": nil, "two tags": signed[:64], "cut": signed[:len(signed)-1], "more": append([]byte{0}, signed...),
		"huge": bytes.Repeat([]byte{0}, maxKeycopySigned+1)} {
		if _, err := OpenKeycopySigned(bad); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
