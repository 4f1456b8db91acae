package tcp

// The door bounds what strangers cost. Nobody is locked out for long: a flood
// from one address must not keep the real Target away.

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// maxOpen connections stand at once, maxFrom of them from one address.
	maxOpen = 16
	maxFrom = 4
	// strangerPause is how long an address waits after it proved nothing.
	strangerPause = time.Second
	// maxStrangers bounds the table of such addresses.
	maxStrangers = 256
	// ipv6Site is how much of an IPv6 address names one customer.
	ipv6Site = 64
)

type door struct {
	mu        sync.Mutex // guards all below
	open      int
	from      map[netip.Prefix]int // at most maxOpen entries
	strangers map[netip.Prefix]time.Time
}

func newDoor() *door {
	return &door{from: map[netip.Prefix]int{}, strangers: map[netip.Prefix]time.Time{}}
}

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

// enter tells whether a connection from there may come in.
func (d *door) enter(from netip.Prefix, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if last, ok := d.strangers[from]; ok {
		if now.Sub(last) < strangerPause {
			return false
		}
		delete(d.strangers, from)
	}
	if d.open >= maxOpen || d.from[from] >= maxFrom {
		return false
	}
	d.open++
	d.from[from]++
	return true
}

// leave gives the place up, and remembers strangers.
func (d *door) leave(from netip.Prefix, stranger bool, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open--
	if d.from[from]--; d.from[from] == 0 {
		delete(d.from, from)
	}
	if !stranger {
		return
	}
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
