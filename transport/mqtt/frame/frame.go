// Package frame watches MQTT 3.1.1 packets go by. A Filter sits between the
// socket and an MQTT library, on either end of the wire: it reads every packet's
// fixed header and asks its owner before the library sees a byte of the packet.
// So both libraries only ever meet the small part of MQTT that this system uses,
// at sizes that it allows, whatever their own decoders would have accepted.
package frame

import (
	"errors"
	"fmt"
)

// Type is an MQTT control packet type (MQTT 3.1.1 §2.2.1).
type Type byte

// The types that this system's subset uses.
const (
	Connect     Type = 1
	Connack     Type = 2
	Publish     Type = 3
	Puback      Type = 4
	Subscribe   Type = 8
	Suback      Type = 9
	Unsubscribe Type = 10
	Pingreq     Type = 12
	Pingresp    Type = 13
	Disconnect  Type = 14
)

// maxLengthBytes is how long the remaining length may be (MQTT 3.1.1 §2.2.3).
const maxLengthBytes = 4

// ErrMalformed is a packet whose length never ends.
var ErrMalformed = errors.New("malformed MQTT packet")

// A Header is a packet's fixed header. Length counts what follows it, in bytes.
type Header struct {
	Type   Type
	Flags  byte
	Length int
}

// QoS is a PUBLISH packet's quality of service; 3 is not a valid one.
func (h Header) QoS() byte { return h.Flags >> 1 & 3 }

// Retain is a PUBLISH packet's retain flag.
func (h Header) Retain() bool { return h.Flags&1 != 0 }

// A Filter follows one direction of one connection. Use it from one goroutine.
type Filter struct {
	check  func(Header) error
	err    error
	header Header
	digits int // bytes of the remaining length that have been read
	body   int // bytes of the current packet that are still to come
	inside bool
}

// New makes a filter that calls check once for each packet, as soon as its
// fixed header is complete.
func New(check func(Header) error) *Filter { return &Filter{check: check} }

// Pass takes the next bytes of the stream. After an error nothing passes any
// more: Pass keeps returning that error.
func (f *Filter) Pass(b []byte) error {
	for len(b) > 0 && f.err == nil {
		if f.body > 0 {
			n := min(f.body, len(b))
			f.body -= n
			b = b[n:]
			continue
		}
		f.headerByte(b[0])
		b = b[1:]
	}
	return f.err
}

func (f *Filter) headerByte(c byte) {
	if !f.inside {
		f.header = Header{Type: Type(c >> 4), Flags: c & 0x0f}
		f.inside, f.digits = true, 0
		return
	}
	f.header.Length |= int(c&0x7f) << (7 * f.digits)
	f.digits++
	if c&0x80 != 0 {
		if f.digits == maxLengthBytes {
			f.err = fmt.Errorf("%w: its length has more than %d bytes", ErrMalformed, maxLengthBytes)
		}
		return
	}
	f.inside = false
	f.body = f.header.Length
	f.err = f.check(f.header)
}
