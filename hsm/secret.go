package hsm

// The one type for key material: what it refuses to do is the point of it.

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding"
	"fmt"
	"log/slog"
)

// A Secret is key material. It prints, logs and marshals to text as "[secret]",
// cannot be compared with ==, and is wiped when its owner is done with it.
// Wipe and use must not run at the same time.
type Secret struct {
	// A function, for two reasons: it makes Secret incomparable (== is not
	// constant-time), and fmt cannot look behind it, even in an unexported
	// field, where it calls no methods. A bare slice or pointer there shows.
	at func() *[]byte
}

const redacted = "[secret]"

// NewSecret takes b over: the caller must not use it afterwards.
func NewSecret(b []byte) *Secret { return &Secret{at: func() *[]byte { return &b }} }

// RandomSecret returns n fresh bytes.
func RandomSecret(n int) *Secret {
	b := make([]byte, n)
	rand.Read(b) // never fails: crypto/rand ends the process instead
	return NewSecret(b)
}

// Bytes lends the bytes; they are gone after Wipe.
func (s *Secret) Bytes() []byte {
	if s == nil || s.at == nil {
		return nil
	}
	return *s.at()
}

// Len is the number of bytes, 0 after Wipe.
func (s *Secret) Len() int { return len(s.Bytes()) }

// Clone returns a copy with a life of its own.
func (s *Secret) Clone() *Secret { return NewSecret(append([]byte(nil), s.Bytes()...)) }

// Equal compares in constant time.
func (s *Secret) Equal(o *Secret) bool {
	return subtle.ConstantTimeCompare(s.Bytes(), o.Bytes()) == 1
}

// Wipe overwrites the bytes. A nil or wiped Secret is fine.
func (s *Secret) Wipe() {
	if s == nil || s.at == nil {
		return
	}
	b := s.at()
	clear(*b)
	*b = nil
}

// Format keeps every verb of fmt, %x and %v alike, from printing the bytes.
func (s Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, redacted) }

// LogValue keeps log/slog from printing the bytes.
func (s *Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText keeps encoding/json and friends from printing the bytes.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalBinary is the one way out, for records that are sealed as a whole.
func (s *Secret) MarshalBinary() ([]byte, error) { return append([]byte(nil), s.Bytes()...), nil }

// UnmarshalBinary copies b; what s held before is wiped.
func (s *Secret) UnmarshalBinary(b []byte) error {
	s.Wipe()
	*s = *NewSecret(append([]byte(nil), b...))
	return nil
}

var (
	_ fmt.Formatter              = (*Secret)(nil)
	_ slog.LogValuer             = (*Secret)(nil)
	_ encoding.TextMarshaler     = (*Secret)(nil)
	_ encoding.BinaryMarshaler   = (*Secret)(nil)
	_ encoding.BinaryUnmarshaler = (*Secret)(nil)
)
