package broker

// Who waits between accept and CONNACK, and who goes when it is too many. A
// stranger can open as many connections as it likes, and keep each busy with a
// byte now and then: so age counts from accept, whatever was sent since, and
// the network that holds the most places gives one up first.

import (
	"net/netip"
	"slices"
)

// maxPendingFrom of maxPending may come from one IPv4 address or IPv6 /64, so
// one stranger leaves most places to others. A site behind one address has that
// many of its terminals connecting at the same time, each for two round trips;
// when more come back after an outage, those pushed out try again after a pause.
const maxPendingFrom = maxPending / 4

// pending are connections by network, the oldest of each first. There is no
// empty list in it.
type pending struct {
	by    map[netip.Prefix][]*link
	total int
}

// add takes l in and returns whom that has displaced, or nil. It always has
// room for l.
func (p *pending) add(l *link) (displaced *link) {
	from := network(l.peer.Remote.Addr())
	switch {
	case len(p.by[from]) >= maxPendingFrom:
		displaced = victim(p.by[from])
	case p.total >= maxPending:
		displaced = victim(p.most())
	}
	if displaced != nil {
		p.remove(displaced)
	}
	p.by[from] = append(p.by[from], l)
	p.total++
	return displaced
}

// most is the list of the network that has the most connections; of several
// the one that has had one for longest.
func (p *pending) most() (most []*link) {
	for _, list := range p.by {
		if len(list) > len(most) || len(list) == len(most) && list[0].peer.Session < most[0].peer.Session {
			most = list
		}
	}
	return most
}

// victim is the oldest that keeps the broker waiting. Those that wait for the
// broker, in a stampede nearly all, go last: to drop them would waste the work
// that they wait for.
func victim(list []*link) *link {
	for _, l := range list {
		if l.wire.waiting.Load() {
			return l
		}
	}
	return list[0]
}

func (p *pending) remove(l *link) {
	from := network(l.peer.Remote.Addr())
	list := p.by[from]
	i := slices.Index(list, l)
	if i < 0 {
		return
	}
	p.total--
	if p.by[from] = slices.Delete(list, i, i+1); len(list) == 1 {
		delete(p.by, from)
	}
}

// each calls do for all.
func (p *pending) each(do func(*link)) {
	for _, list := range p.by {
		for _, l := range list {
			do(l)
		}
	}
}
