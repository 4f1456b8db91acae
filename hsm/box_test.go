package hsm_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"testing"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/kagimori/kagimori/hsm"
)

// A box is what any other XChaCha20-Poly1305 makes and opens.
func TestBox(t *testing.T) {
	key, nonce := hsm.RandomSecret(hsm.BoxKeySize), make([]byte, hsm.BoxNonceSize)
	rand.Read(nonce)
	other, err := chacha20poly1305.NewX(key.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	for _, plain := range [][]byte{{}, []byte("a secret"), page(3)} {
		box, err := hsm.SealBox(key, []byte("head"), nonce, plain, []byte("place"))
		if want := other.Seal([]byte("head"), nonce, plain, []byte("place")); err != nil || !bytes.Equal(box, want) {
			t.Fatalf("%x, %v; want %x", box, err, want)
		}
		box = box[len("head"):]
		if got, err := hsm.OpenBox(key, nonce, box, []byte("place")); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%x, %v; want %x", got, err, plain)
		}
		if _, err := hsm.OpenBox(key, nonce, box, []byte("other")); !errors.Is(err, hsm.ErrBox) {
			t.Errorf("in another place: %v", err)
		}
		box[len(box)-1] ^= 1
		if _, err := hsm.OpenBox(key, nonce, box, []byte("place")); !errors.Is(err, hsm.ErrBox) {
			t.Errorf("altered: %v", err)
		}
	}
	if _, err := hsm.SealBox(key, nil, nonce[1:], nil, nil); err == nil {
		t.Error("a short nonce is taken")
	}
	key.Wipe()
	if _, err := hsm.SealBox(key, nil, nonce, nil, nil); err == nil {
		t.Error("a wiped key is taken")
	}
}
