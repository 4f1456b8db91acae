package transport

import (
	"crypto/hmac"
	"crypto/sha256"
	"testing"
)

// The formulas of docs/wire.md, written down once more. req: L3
func TestProofOfATPMIsBoundToEverythingBefore(t *testing.T) {
	ck, s, x := []byte("common key of thirty-two bytes.."), []byte("secret of a challenge, 32 bytes."), []byte("exporter")
	bodies := [][]byte{[]byte("one"), []byte("two"), []byte("three"), []byte("evidence"), []byte("activate")}
	request := sha256.Sum256([]byte("onetwothree"))
	if got, want := EnrollAttestNonce(x, bodies[0], bodies[1], bodies[2]), sha256.Sum256([]byte("kagimori enroll attest/1exporter"+string(request[:]))); got != want {
		t.Errorf("N = %x, want %x", got, want)
	}
	all := sha256.Sum256([]byte("onetwothreeevidenceactivate"))
	m := hmac.New(sha256.New, []byte(string(ck)+string(s)))
	m.Write([]byte("aexporter" + string(all[:])))
	good := EnrollActivatedMAC(ck, s, x, bodies...)
	if want := [32]byte(m.Sum(nil)); good != want {
		t.Errorf("MAC_a = %x, want %x", good, want)
	}
	for i := range bodies {
		changed := [][]byte{bodies[0], bodies[1], bodies[2], bodies[3], bodies[4]}
		changed[i] = []byte("other")
		if EnrollActivatedMAC(ck, s, x, changed...) == good {
			t.Errorf("MAC_a does not cover body %d", i)
		}
	}
}
