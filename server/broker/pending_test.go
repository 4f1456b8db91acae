package broker

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/kagimori/kagimori/transport/mqtt/mqtttest"
)

// dialerFrom connects from the loopback address 127.0.0.host.
func dialerFrom(host int) *net.Dialer {
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(host))}, Timeout: mqtttest.Patience}
}

// room is a table of pending connections without sockets.
type room struct {
	pending
	session uint64
}

func newRoom() *room { return &room{pending: pending{by: map[netip.Prefix][]*link{}}} }

func (r *room) come(address string, waiting bool) (l, displaced *link) {
	r.session++
	l = &link{wire: new(wire), peer: Peer{Session: r.session, Remote: netip.AddrPortFrom(netip.MustParseAddr(address), 1)}}
	l.wire.waiting.Store(waiting)
	return l, r.add(l)
}

// Within an address, the oldest that waits for its client makes room.
func TestPendingFromOneAddress(t *testing.T) {
	r := newRoom()
	other, _ := r.come("192.0.2.200", true)
	busy, _ := r.come("2001:db8::1", false)
	var all []*link
	for i := range maxPendingFrom - 1 {
		l, displaced := r.come(fmt.Sprintf("2001:db8::%x", i), true) // one /64
		if displaced != nil {
			t.Fatalf("connection %d displaces one", i)
		}
		all = append(all, l)
	}
	for i := range all {
		if _, displaced := r.come("2001:db8::1", false); displaced != all[i] {
			t.Fatalf("connection %d does not displace the oldest that waits", i)
		}
	}
	if _, displaced := r.come("2001:db8::1", true); displaced != busy {
		t.Error("when none waits, the oldest has to go")
	}
	if r.total != maxPendingFrom+1 || len(r.by) != 2 {
		t.Errorf("%d of %d networks", r.total, len(r.by))
	}
	r.remove(other)
	r.remove(other)
	if r.total != maxPendingFrom || len(r.by) != 1 {
		t.Errorf("%d of %d networks", r.total, len(r.by))
	}
}

// When all places are taken, whoever has the most gives one up; and a flood
// from everywhere at once displaces the oldest.
func TestPendingInAll(t *testing.T) {
	r := newRoom()
	var first []*link
	for i := range maxPending {
		l, _ := r.come(fmt.Sprintf("10.0.%d.%d", i>>8, i&255), true)
		first = append(first, l)
	}
	if _, displaced := r.come("192.0.2.1", true); displaced != first[0] {
		t.Error("of equals, the oldest has to go")
	}
	mine, displaced := r.come("192.0.2.1", true)
	if displaced != first[1] {
		t.Error("the newcomer's second connection displaced another than the next oldest")
	}
	newest, displaced := r.come("192.0.2.2", true)
	if displaced == nil || displaced == mine || displaced.peer.Remote.Addr().String() != "192.0.2.1" {
		t.Errorf("the address with the most places lost none: %v", displaced.peer.Remote)
	}
	n := 0
	r.each(func(l *link) {
		if n++; l == newest {
			r.session = 0
		}
	})
	if n != maxPending || r.total != maxPending || r.session != 0 {
		t.Errorf("%d pending, counted %d", n, r.total)
	}
}

// A TLS record of 16,000 bytes is announced, then comes a byte now and then; who
// is cut off comes back at once. Terminals get in all the same, at other addresses
// without noticing, at the same one in a few tries.
func TestTrickle(t *testing.T) {
	const tricklers, stranger = 1500, 2
	r := start(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer func() { cancel(); all.Wait() }()
	began := make(chan struct{}, tricklers)
	for range tricklers {
		all.Go(func() {
			for first := true; ctx.Err() == nil; first = false {
				trickle(ctx, r.address, stranger)
				if first {
					began <- struct{}{}
				}
			}
		})
	}
	mqtttest.Eventually(t, "places are fought for", func() bool { return r.b.Stats().Displaced > 2*tricklers })
	for i := range 3 {
		name := fmt.Sprintf("nav-%03d", i)
		took, tries := r.insist(t, name, 1)
		t.Logf("%s elsewhere: %v", name, took)
		if tries != 1 || took > 2*time.Second {
			t.Errorf("%s needed %d tries and %v", name, tries, took)
		}
	}
	took, tries := r.insist(t, "nav-neighbour", stranger)
	if t.Logf("beside the stranger: %v, %d tries", took, tries); took > 5*time.Second {
		t.Errorf("%v", took)
	}
	if s := r.b.Stats(); s.Pending > maxPendingFrom+1 {
		t.Errorf("%+v", s)
	}
	r.log.says(t, "level=WARN", "too many connections without CONNECT", "remote=127.0.0.2:")
}

func trickle(ctx context.Context, address string, host int) {
	c, err := dialerFrom(host).DialContext(ctx, "tcp", address)
	if err != nil {
		return
	}
	defer c.Close()
	c.Write([]byte{22, 3, 1, 0x3e, 0x80, 1, 0, 0x3e, 0x7c})
	for tick := time.NewTicker(300 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if _, err := c.Write([]byte{0}); err != nil {
			return
		}
	}
}

// insist connects a terminal, as often as it needs to.
func (r *rig) insist(t testing.TB, name string, host int) (took time.Duration, tries int) {
	t.Helper()
	cert := r.ca.Terminal(t, name)
	for began := time.Now(); ; {
		tries++
		conn, err := tls.DialWithDialer(dialerFrom(host), "tcp", r.address, r.tlsConfig(cert))
		if err == nil {
			t.Cleanup(func() { conn.NetConn().Close() })
			conn.SetDeadline(time.Now().Add(mqtttest.Patience))
			if (&raw{t, conn}).connect(name, nil) == 0 {
				return time.Since(began), tries
			}
		}
		if took = time.Since(began); took > mqtttest.Patience {
			t.Errorf("%s is not in after %v: %v", name, took, err)
			return took, tries
		}
	}
}

// A site whose terminals all come back at the same moment through one address.
func TestStampede(t *testing.T) {
	const terminals = 3 * maxPendingFrom
	r := start(t, nil)
	var all sync.WaitGroup
	began := time.Now()
	for i := range terminals {
		all.Go(func() { r.insist(t, fmt.Sprintf("nav-%03d", i), 1) })
	}
	all.Wait()
	s := r.b.Stats()
	t.Logf("%d terminals in %v: %d connections, %d displaced", terminals, time.Since(began), s.Accepted, s.Displaced)
	if s.Connected != terminals {
		t.Errorf("%+v", s)
	}
}

// Half a handshake gets less time than a CONNECT, however it is spread.
func TestHandshakeTime(t *testing.T) {
	t.Parallel()
	const limit = 300 * time.Millisecond
	r := start(t, func(cfg *Config, _ *recorder) { cfg.HandshakeTime, cfg.ConnectTime = limit, 3*limit })
	began := time.Now()
	slow := r.raw(t, r.ca.Terminal(t, "nav-001"))
	trickle(t.Context(), r.address, 1)
	if took := time.Since(began); took < limit || took > 3*limit+mqtttest.Patience/3 {
		t.Errorf("a handshake was cut after %v", took)
	}
	slow.closed()
	if took := time.Since(began); took < 2*limit {
		t.Errorf("a CONNECT was waited for %v only", took)
	}
}
