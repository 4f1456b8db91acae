package broker

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/kagimori/kagimori/transport"
)

// Whom the handler gives more room and time has it, for itself alone; a
// terminal's own connection is not touched.
func TestExtend(t *testing.T) {
	t.Parallel()
	const large = 2 * transport.MaxEnrollEnvelope
	var r *rig
	r = start(t, func(cfg *Config, h *recorder) {
		cfg.EnrollTime = 300 * time.Millisecond
		h.receive = func(_ context.Context, p Peer, payload []byte) error {
			if string(payload) == "more" {
				r.b.Extend(p, large, 2*time.Second)
			}
			return nil
		}
	})
	up, _ := transport.Topics(enrollID)
	c := r.raw(t)
	if code := c.connect(enrollID, nil); code != 0 {
		t.Fatal(code)
	}
	began := time.Now()
	say := func(payload string) bool {
		c.publish(up, 1, payload, nil)
		p, err := c.read()
		if err != nil {
			return false
		}
		_, acknowledged := p.(*packets.PubackPacket)
		return acknowledged
	}
	if !say("more") || !say(strings.Repeat("x", large)) {
		t.Fatal("not taken")
	}
	c.closed()
	if took := time.Since(began); took < time.Second {
		t.Errorf("it stayed for %v", took)
	}
	if got := next(t, r.left); !errors.Is(got.why, ErrTime) {
		t.Errorf("Disconnected got %v", got.why)
	}

	c = r.raw(t)
	if code := c.connect(enrollID, nil); code != 0 {
		t.Fatal(code)
	}
	if say(strings.Repeat("x", large)) {
		t.Error("the next one has room that was not its own")
	}
	c.closed()
	if got := next(t, r.left); !errors.Is(got.why, ErrRule) {
		t.Errorf("Disconnected got %v", got.why)
	}
}
