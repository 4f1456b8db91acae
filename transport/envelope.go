package transport

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"time"
)

// Version is the first field of every envelope and the second level of every topic.
const Version = 1

// An ID names one message or command: 16 random bytes.
type ID [16]byte

// NewID draws an id from random.
func NewID(random io.Reader) (id ID) {
	if _, err := io.ReadFull(random, id[:]); err != nil {
		rand.Read(id[:]) // a test's source ran dry; ids must never repeat
	}
	return id
}

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText gives the hexadecimal form to JSON and logs.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads the hexadecimal form.
func (id *ID) UnmarshalText(b []byte) (err error) {
	*id, err = ParseID(string(b))
	return err
}

// ParseID reads 32 hexadecimal digits.
func ParseID(s string) (id ID, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("%q is not an id: want %d hexadecimal digits", s, 2*len(id))
	}
	return ID(b), nil
}

// An Envelope is one MQTT payload (DESIGN D1). Envelope and body each have one
// encoding. Time is the sender's, in Unix seconds, and 0 from a terminal that
// does not trust its clock.
type Envelope struct {
	V         uint8  `cbor:"1,keyasint"`
	ID        ID     `cbor:"2,keyasint"`
	Type      string `cbor:"3,keyasint"`
	Time      int64  `cbor:"4,keyasint"`
	InReplyTo *ID    `cbor:"5,keyasint,omitempty"`
	Body      Raw    `cbor:"6,keyasint"`
}

// Body is one kind of message: it knows the type its envelope carries.
type Body interface{ Type() string }

// Pack wraps body. reply is the envelope that it answers, or nil. now may be
// the zero time.
func Pack(random io.Reader, now time.Time, reply *Envelope, body Body) ([]byte, error) {
	raw, err := Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", body.Type(), err)
	}
	e := Envelope{V: Version, ID: NewID(random), Type: body.Type(), Body: raw}
	if !now.IsZero() {
		e.Time = now.Unix()
	}
	if reply != nil {
		e.InReplyTo = &reply.ID
	}
	return Marshal(&e)
}

// Unpack reads an envelope of at most limit bytes; its body stays encoded.
func Unpack(payload []byte, limit int) (*Envelope, error) {
	var e Envelope
	if err := Unmarshal(payload, &e, limit); err != nil {
		return nil, err
	}
	if e.V != Version {
		return nil, fmt.Errorf("%w: envelope version %d, this end speaks %d", ErrMalformed, e.V, Version)
	}
	return &e, nil
}

// Open decodes the body into the message that its type promises.
func Open[T any, P interface {
	*T
	Body
}](e *Envelope) (P, error) {
	body := P(new(T))
	if err := e.open(body); err != nil {
		return nil, err
	}
	return body, nil
}

func (e *Envelope) open(body Body) error {
	if e.Type != body.Type() {
		return fmt.Errorf("%w: %q where %q was expected", ErrMalformed, e.Type, body.Type())
	}
	if err := Unmarshal(e.Body, body, len(e.Body)); err != nil {
		return fmt.Errorf("%s: %w", e.Type, err)
	}
	return nil
}
