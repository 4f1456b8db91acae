package tcp

// The door bounds what strangers cost. Nobody is locked out for long: a flood
// must not keep the real Target away. So whoever has not yet said HELLO makes
// room for those who come later, and strangers wait before they come again.

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/kagimori/kagimori/transport"
)

const (
	// maxOpen connections stand at once, maxFrom of them from one address.
	maxOpen = 16
	maxFrom = 4
	// maxLeaving connections that had to make room may be on their way out; until
	// they are gone nobody else comes in. It takes them a moment.
	maxLeaving = 16
	// helloTime is from accept to the last byte of the first frame. A Target
	// sends it right after the handshake.
	helloTime = 5 * time.Second
	// StrangerPause is how long an address waits after it proved nothing.
	StrangerPause = time.Second
	// maxStrangers bounds the table of such addresses.
	maxStrangers = 256
	// ipv6Site is how much of an IPv6 address names one customer.
	ipv6Site = 64
)

// errDisplaced is what a connection gets that has to make room.
var errDisplaced = fmt.Errorf("no HELLO while others wait: %w", transport.KeycopyBusy)

type door struct {
	mu        sync.Mutex // guards all below, and all seats
	seats     []*seat    // taken, the oldest first
	leaving   int        // displaced, and not gone yet
	strangers map[netip.Prefix]time.Time
}

// A seat is one connection's place. It can be taken away until the first frame
// is there: from then on the connection waits for our judgement, and then it is
// either over or admitted.
type seat struct {
	door  *door
	from  netip.Prefix
	conn  net.Conn
	until time.Time // for the first frame

	heard     bool
	displaced bool
}

func newDoor() *door { return &door{strangers: map[netip.Prefix]time.Time{}} }

// origin is what counts as one address.
func origin(a net.Addr) netip.Prefix {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Prefix{}
	}
	ip := ap.Addr().Unmap().WithZone("")
	bits := ip.BitLen()
	if ip.Is6() {
		bits = ipv6Site
	}
	p, err := ip.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// enter gives conn, which came from there, a seat, or nil: its address has to
// wait, or all who could make room have said HELLO, or those who did are not gone.
func (d *door) enter(conn net.Conn, from netip.Prefix, now time.Time) *seat {
	d.mu.Lock()
	defer d.mu.Unlock()
	if last, ok := d.strangers[from]; ok {
		if now.Sub(last) < StrangerPause {
			return nil
		}
		delete(d.strangers, from)
	}
	mine := d.count(from)
	if mine >= maxFrom || len(d.seats) >= maxOpen {
		if d.leaving == maxLeaving || !d.displace(from, mine >= maxFrom, now) {
			return nil
		}
	}
	s := &seat{door: d, from: from, conn: conn, until: now.Add(helloTime)}
	d.seats = append(d.seats, s)
	return s
}

func (d *door) count(from netip.Prefix) (n int) {
	for _, s := range d.seats {
		if s.from == from {
			n++
		}
	}
	return n
}

// displace takes a seat from the oldest that has said nothing, of that address
// only, or of the one with the most seats. Its address counts as a stranger's,
// else a flood would cost us a handshake as often as it likes to connect.
func (d *door) displace(from netip.Prefix, only bool, now time.Time) bool {
	var victim *seat
	most := 0
	for _, s := range d.seats {
		if s.heard || only && s.from != from {
			continue
		}
		if n := d.count(s.from); n > most {
			victim, most = s, n
		}
	}
	if victim == nil {
		return false
	}
	victim.displaced = true
	d.leaving++
	victim.conn.SetDeadline(time.Unix(1, 0)) // wakes its reader
	d.remove(victim)
	d.remember(victim.from, now)
	return true
}

func (d *door) remove(s *seat) {
	if i := slices.Index(d.seats, s); i >= 0 {
		d.seats = slices.Delete(d.seats, i, i+1)
	}
}

// leave gives the seat up, and remembers strangers.
func (d *door) leave(s *seat, stranger bool, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch d.remove(s); {
	case s.displaced: // it is remembered already
		d.leaving--
	case stranger:
		d.remember(s.from, now)
	}
}

func (d *door) remember(from netip.Prefix, now time.Time) {
	if len(d.strangers) >= maxStrangers {
		d.forget()
	}
	d.strangers[from] = now
}

// forget drops the address that has waited longest.
func (d *door) forget() {
	var oldest netip.Prefix
	var at time.Time
	for a, t := range d.strangers {
		if at.IsZero() || t.Before(at) {
			oldest, at = a, t
		}
	}
	delete(d.strangers, oldest)
}

// wait sets the deadline for reading, which is not later than the one for the
// first frame until that is there.
func (s *seat) wait(t time.Time) error {
	s.door.mu.Lock()
	defer s.door.mu.Unlock()
	switch {
	case s.displaced:
		return errDisplaced
	case !s.heard && s.until.Before(t):
		t = s.until
	}
	return s.conn.SetReadDeadline(t)
}

// spoke says that the first frame is there: the seat is safe from now on,
// unless it was taken away already.
func (s *seat) spoke() error {
	s.door.mu.Lock()
	defer s.door.mu.Unlock()
	if s.displaced {
		return errDisplaced
	}
	s.heard = true
	return nil
}

// lost tells that the seat was taken away.
func (s *seat) lost() bool {
	s.door.mu.Lock()
	defer s.door.mu.Unlock()
	return s.displaced
}
