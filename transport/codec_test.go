package transport

import (
	"bytes"
	"testing"
)

// What was encoded is not kept where it was encoded.
func TestEncodingLeavesNothing(t *testing.T) {
	secret := CredentialSecret{Form: SecretPKCS8, Bytes: bytes.Repeat([]byte("secret"), 1000)}
	data, err := Marshal(secret)
	if err != nil {
		t.Fatal(err)
	}
	var again CredentialSecret
	if err := Unmarshal(data, &again, len(data)); err != nil {
		t.Fatal(err)
	}
	if err := Unmarshal(append(data[:len(data):len(data)], 0), &again, len(data)+1); err == nil {
		t.Error("trailing bytes are taken")
	}
	for range 4 {
		b := scratches.Get().(*bytes.Buffer)
		if all := b.Bytes()[:b.Cap()]; len(bytes.Trim(all, "\x00")) > 0 {
			t.Errorf("%d bytes are left", len(bytes.Trim(all, "\x00")))
		}
	}
}
