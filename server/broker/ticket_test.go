package broker

import (
	"crypto/tls"
	"sync/atomic"
	"testing"
)

// Every connection proves its identity anew: a resumed one would live on
// behind a revocation. The client, which would take a ticket, gets none.
func TestNoSessionIsResumed(t *testing.T) {
	r := start(t, nil)
	tickets := new(ticketBox)
	cfg := r.tlsConfig(r.ca.Terminal(t, "nav-001"))
	cfg.ClientSessionCache = tickets
	for range 2 {
		conn, err := tls.Dial("tcp", r.address, cfg)
		if err != nil {
			t.Fatal(err)
		}
		c := &raw{t, conn}
		if code := c.connect("nav-001", nil); code != 0 { // tickets would come before
			t.Fatalf("CONNACK %d", code)
		}
		if conn.ConnectionState().DidResume {
			t.Error("a session was resumed")
		}
		conn.Close()
	}
	if tickets.got.Load() {
		t.Error("the broker gives out session tickets")
	}
}

// A ticketBox notes whether a ticket came.
type ticketBox struct{ got atomic.Bool }

func (b *ticketBox) Get(string) (*tls.ClientSessionState, bool) { return nil, false }
func (b *ticketBox) Put(_ string, s *tls.ClientSessionState) {
	if s != nil {
		b.got.Store(true)
	}
}
