package keycopy

// Shares that are none: what RFC 9496 calls bad encodings, and what somebody who
// wants a known product sends.

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/gtank/ristretto255"

	"github.com/kagimori/kagimori/transport"
)

// badPoints are named encodings of 32 bytes that no share may have.
func badPoints(t *testing.T) map[string]transport.KeycopyPoint {
	t.Helper()
	data, err := os.ReadFile("testdata/ristretto255-bad.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Source  string             `json:"source"`
		Refused map[string][]unhex `json:"refused"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	bad := map[string]transport.KeycopyPoint{}
	for name, list := range file.Refused {
		for i, p := range list {
			bad[fmt.Sprintf("%s %d", name, i)] = transport.KeycopyPoint(p)
		}
	}
	if len(bad) != 29 || file.Source == "" {
		t.Fatalf("%d bad encodings", len(bad))
	}
	bad["identity"] = transport.KeycopyPoint{}
	good := [32]byte(ristretto255.NewGeneratorElement().Bytes())
	high := good
	high[31] |= 0x80
	bad["high bit"] = high
	odd := good
	odd[0] ^= 1
	bad["negative of a good one"] = odd
	bad["all ones"] = transport.KeycopyPoint(bytes.Repeat([]byte{0xff}, 32))
	edwards := transport.KeycopyPoint(bytes.Repeat([]byte{0x66}, 32)) // as RFC 8032 writes it
	edwards[0] = 0x58
	bad["base point of edwards25519"] = edwards
	return bad
}

func TestSharesThatAreNone(t *testing.T) {
	y, err := ristretto255.NewScalar().SetUniformBytes(bytes.Repeat([]byte{7}, 64))
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range badPoints(t) {
		if k, err := scalarMultVfy(y, p[:]); !errors.Is(err, errPoint) || k != nil {
			t.Errorf("%s: %x, %v", name, k, err)
		}
	}
	good := ristretto255.NewGeneratorElement().Bytes()
	for _, n := range []int{0, 1, 31} {
		if _, err := scalarMultVfy(y, good[:n]); !errors.Is(err, errPoint) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	for _, n := range []int{33, 64} {
		if _, err := scalarMultVfy(y, append(slices.Clone(good), make([]byte, n-32)...)); !errors.Is(err, errPoint) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	if _, err := scalarMultVfy(y, good); err != nil {
		t.Errorf("a good one: %v", err)
	}
	if _, err := scalarMultVfy(ristretto255.NewScalar(), good); !errors.Is(err, errPoint) {
		t.Errorf("a product that is the identity: %v", err)
	}
}

// Somebody with the security code sends each of them as his share, properly
// admitted. He is refused, nothing is counted, and the place is free again.
func TestBadSharesCostNothing(t *testing.T) {
	for name, p := range badPoints(t) {
		r := newRig(t, 1)
		sc, tc := newChannels()
		sourceErr, _ := r.pump(t.Context(), sc, tc, func(h hop) transport.KeycopyFrame {
			if h.frame.Type == transport.KeycopyTypeHello {
				return r.resigned(t, sc, h.frame, func(m *transport.KeycopyHello) { m.Share = &p })
			}
			return noKeyFrames(t, h)
		})
		wantFault(t, name+" as Ya", sourceErr, transport.KeycopyAuthFailed, false)
		if r.sourceLedger.counted != 0 || r.source.proving != nil {
			t.Errorf("%s: counted, or in the way", name)
		}
		r = newRig(t, 1)
		sc, tc = newChannels()
		var hello []byte
		_, targetErr := r.pump(t.Context(), sc, tc, func(h hop) transport.KeycopyFrame {
			switch h.frame.Type {
			case transport.KeycopyTypeHello:
				hello = h.frame.Body
			case transport.KeycopyTypeHelloAck:
				var m transport.KeycopyHelloAck
				if err := transport.DecodeKeycopy(h.frame, &m); err != nil {
					t.Fatal(err)
				}
				m.Share = p
				fleet, err := newFleetKeys(t.Context(), r.targetConfig.Code, transport.KeycopyPAKE, &tc)
				if err != nil {
					t.Fatal(err)
				}
				m.Admit = fleet.admitSource(hello, less(t, m.KeycopyHelloAckBody))
				if h.frame, err = transport.EncodeKeycopy(&m); err != nil {
					t.Fatal(err)
				}
			}
			return noKeyFrames(t, h)
		})
		wantFault(t, name+" as Yb", targetErr, transport.KeycopyAuthFailed, false)
		if r.targetLedger.counted != 0 {
			t.Errorf("%s: the Target counted", name)
		}
	}
}
