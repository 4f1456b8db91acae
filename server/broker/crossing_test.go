package broker

import (
	"fmt"
	"testing"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/kagimori/kagimori/transport"
)

// The probe that this library fails outside of our subset (research: mqtt.md
// §4): the client uses the very packet ids that the server may have in flight.
// With QoS 0 outward there are none, so nothing can be lost.
func TestPacketIDsCross(t *testing.T) {
	t.Parallel()
	const count = 200
	r := start(t, nil)
	c := r.terminal(t, "nav-001")
	up, _ := transport.Topics("nav-001")
	sent := make(chan error, 1)
	room := make(chan struct{}, maxQueue/2) // the server's queue is short, and we don't test it here
	go func() {
		for i := range count {
			room <- struct{}{}
			if err := r.b.Send("nav-001", fmt.Append(nil, "down-", i)); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	go func() {
		for i := range count {
			c.publish(up, uint16(i%5+1), fmt.Sprint("up-", i), nil) // ids 1 to 5, over and over
		}
	}()
	down, acks := 0, 0
	for down < count || acks < count {
		p, err := c.read()
		if err != nil {
			t.Fatalf("after %d messages and %d PUBACKs: %v", down, acks, err)
		}
		switch p := p.(type) {
		case *packets.PublishPacket:
			if want := fmt.Sprint("down-", down); string(p.Payload) != want || p.Qos != 0 {
				t.Fatalf("got %q with QoS %d, want %q", p.Payload, p.Qos, want)
			}
			down++
			<-room
		case *packets.PubackPacket:
			if want := uint16(acks%5 + 1); p.MessageID != want {
				t.Fatalf("PUBACK %d, want %d", p.MessageID, want)
			}
			acks++
		}
	}
	if err := next(t, sent); err != nil {
		t.Error(err)
	}
}

// The same with our own client, which numbers from 1 like the server would.
func TestPacketIDsCrossOurClient(t *testing.T) {
	t.Parallel()
	const count = 100
	r := start(t, nil)
	c := r.dial(t, "nav-001")
	for i := range count {
		if err := r.b.Send("nav-001", fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
		if err := c.Send(t.Context(), fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
		if got := next(t, c.Receive()); string(got) != fmt.Sprint(i) {
			t.Fatalf("got %q, want %d", got, i)
		}
		if got := next(t, r.received); got.payload != fmt.Sprint(i) {
			t.Fatalf("received %v, want %d", got, i)
		}
	}
}
