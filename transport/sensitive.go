package transport

import (
	"fmt"
	"log/slog"
)

// Sensitive is key material inside a message that is sealed as a whole. It
// prints, logs and marshals to text as "[secret]"; in CBOR it is a byte string.
type Sensitive []byte

const redacted = "[secret]"

// Wipe overwrites the bytes.
func (s Sensitive) Wipe() { clear(s) }

// Format keeps every verb of fmt from printing the bytes.
func (s Sensitive) Format(f fmt.State, _ rune) { fmt.Fprint(f, redacted) }

// LogValue keeps log/slog from printing the bytes.
func (s Sensitive) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText keeps encoding/json from printing the bytes.
func (s Sensitive) MarshalText() ([]byte, error) { return []byte(redacted), nil }
