// Package transport holds messages in flight: a file per noun. START HERE for
// the wire: codec.go (how anything is encoded), limits.go (how large it may
// be), envelope.go (what travels over MQTT), name.go (what things are called),
// certificate.go (who may call himself that). It knows nobody else in this house.
//
// Both wires, MQTT and the key copy, carry deterministic CBOR (RFC 8949 §4.2.1)
// with integer keys. A decoder parses, encodes again and compares the bytes:
// what has more than one encoding is refused.
package transport
