package broker

import "sync/atomic"

// Stats is what a broker has done since New; the first three are of now.
type Stats struct {
	Connected int    // clients with a CONNACK
	Pending   int    // connections that have no CONNACK yet
	Enrolling int    // of the connected, those without certificate
	Accepted  uint64 // TCP connections
	Refused   uint64 // connections that got no CONNACK, or a refusing one
	Received  uint64 // messages that Handler.Receive took
	Sent      uint64 // messages that Send took
	Displaced uint64 // connections without CONNACK that had to make room for newer ones
	Violated  uint64 // connections closed for breaking the MQTT rules of this package
}

type counters struct {
	accepted, refused, displaced, received, sent, violated atomic.Uint64
}

// Stats reads the counters.
func (b *Broker) Stats() Stats {
	s := Stats{
		Accepted:  b.count.accepted.Load(),
		Refused:   b.count.refused.Load(),
		Displaced: b.count.displaced.Load(),
		Received:  b.count.received.Load(),
		Sent:      b.count.sent.Load(),
		Violated:  b.count.violated.Load(),
	}
	s.Connected, s.Pending, s.Enrolling = b.links.count()
	return s
}
