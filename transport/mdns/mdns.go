// Package mdns finds an offer of a key copy on the local network by multicast DNS
// (RFC 6762, RFC 6763), and says where this machine can be reached. It is a hint
// and nothing else: anybody can answer, so what is found is an address to dial,
// and the codes decide who is there. START HERE: Answer and Find; message.go
// reads and writes, socket.go sends and listens, interfaces.go asks the kernel
// where.
//
// IPv4 only. No id of a terminal, device or credential is told.
package mdns

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"
)

const (
	port = 5353
	// answersPerSecond bounds what a flood of questions costs the network.
	answersPerSecond = 20
	// FindTime is how long Find listens.
	FindTime = 2 * time.Second
	// asks is how often it asks meanwhile: one packet may get lost.
	asks = 3
	// maxFound is how many offers it gives.
	maxFound = 8
	// multicastTTL is what RFC 6762 §11 wants.
	multicastTTL = 255
)

// group is where mDNS is spoken.
var group = [4]byte{224, 0, 0, 251}

// Answer tells whoever asks on the networks of this machine that an offer waits
// at a TCP port, until ctx ends.
func Answer(ctx context.Context, offered uint16, log *slog.Logger) error {
	s, err := open(port)
	if err != nil {
		return err
	}
	defer s.close()
	if s.join() == 0 {
		return errors.New("announce the offer: no network that takes multicast; plug the cable in, then make a new offer")
	}
	h := hint{label: "k" + strings.ToLower(rand.Text()[:10]), port: offered}
	var second time.Time
	answered := 0
	for {
		p, ok, err := s.read(ctx, time.Time{})
		if err != nil || !ok || ctx.Err() != nil {
			return err
		}
		reply := h.reply(p)
		if reply == nil {
			continue
		}
		if now := time.Now(); now.Sub(second) >= time.Second {
			second, answered = now, 0
		}
		if answered++; answered > answersPerSecond {
			continue
		}
		to := p.from
		if to.Port() == port {
			to = netip.AddrPortFrom(netip.AddrFrom4(group), port)
		}
		if err := s.write(reply, p.at, to); err != nil {
			log.Debug("offer not announced", "to", to.String(), "err", err)
		}
	}
}

// reply is the answer to a packet; nil if it is not for us.
func (h hint) reply(p packet) []byte {
	m, err := parse(p.data)
	if err != nil || m.answer || p.at.network == 0 {
		return nil
	}
	for _, q := range m.questions {
		switch {
		case !h.asked(q):
		case p.from.Port() == port:
			return h.answer(0, p.at.address, nil)
		default:
			return h.answer(m.id, p.at.address, &q)
		}
	}
	return nil
}

// Find asks on all networks who offers, and gives the addresses that answered
// within FindTime.
func Find(ctx context.Context) (found []netip.AddrPort, err error) {
	s, err := open(0)
	if err != nil {
		return nil, err
	}
	defer s.close()
	var random [2]byte
	rand.Read(random[:])
	id := uint16(random[0])<<8 | uint16(random[1])
	for range asks {
		if s.ask(query(id)) == 0 {
			return nil, errors.New("look for an offer: no network that takes multicast")
		}
		for until := time.Now().Add(FindTime / asks); ; {
			p, ok, err := s.read(ctx, until)
			if err != nil || ctx.Err() != nil {
				return found, errors.Join(ctx.Err(), err)
			}
			if !ok {
				break
			}
			found = add(found, p, id)
		}
	}
	return found, nil
}

// add takes in an answer. Where it came from counts, not the address in it: nobody
// is sent to a third machine.
func add(found []netip.AddrPort, p packet, id uint16) []netip.AddrPort {
	m, err := parse(p.data)
	if err != nil || !m.answer || m.id != id {
		return found
	}
	for _, port := range m.ports() {
		a := netip.AddrPortFrom(p.from.Addr(), port)
		if !slices.Contains(found, a) && len(found) < maxFound {
			found = append(found, a)
		}
	}
	return found
}

// ask sends a question to every network, and says to how many.
func (s socket) ask(q []byte) (n int) {
	for _, i := range Interfaces() {
		if !i.Multicast || len(i.Addrs) == 0 {
			continue
		}
		if s.write(q, arrival{network: int32(i.Index)}, netip.AddrPortFrom(netip.AddrFrom4(group), port)) == nil {
			n++
		}
	}
	return n
}
