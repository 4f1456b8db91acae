package agent

import (
	"context"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"

	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/qr"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/mdns"
	"github.com/kagimori/kagimori/transport/tcp"
)

// How the new terminal finds the old one: by an address that is read and typed,
// or by an invitation, which a camera reads and which also says by what key the
// old terminal is known. The operator code is in neither.

// show readies what this terminal shows in TLS: its identity, or a key made for
// this offer, so that an invitation can name it.
func (p *party) show() (err error) {
	p.tcp.Certificate, err = tcp.Shown(p.tcp.Certificate)
	return err
}

// invite fills in where the offer waits.
func (o *offering) invite(at net.Addr) {
	ev := &o.chosen
	ev.Listen = at.String()
	i := keycopy.Invitation{Addresses: mdns.Reachable(ev.Listen), Key: tcp.KeyHash(o.party.tcp.Certificate.Leaf)}
	if len(i.Addresses) == 0 {
		return // no network yet: it may come while the offer stands
	}
	for _, a := range i.Addresses {
		ev.Addresses = append(ev.Addresses, a.String())
	}
	code, err := qr.Encode(i.String())
	for errors.Is(err, qr.ErrTooLong) && len(i.Addresses) > 1 { // addresses of IPv6 are long
		i.Addresses = i.Addresses[:len(i.Addresses)-1]
		code, err = qr.Encode(i.String())
	}
	ev.KeyHash, ev.Invitation = hex.EncodeToString(i.Key[:]), i.String()
	if err == nil {
		ev.QR = code.Rows()
	}
}

// find reads where the Source is: HOST:PORT as it is, or an invitation, whose
// first address is given for messages.
func (p *party) find(address string) (string, error) {
	if !keycopy.IsInvitation(address) {
		return address, nil
	}
	i, err := keycopy.ParseInvitation(address)
	if err != nil {
		return "", control.Problemf(control.Usage, "read the QR code again, or type the address that stands beside it", "%w", err)
	}
	p.invited, p.tcp.SourceKey = i, &i.Key
	return i.Addresses[0].String(), nil
}

// dial connects to the Source; one that has invited is tried at all of its
// addresses, of which some may be of networks that this terminal is not on.
func (p *party) dial(ctx context.Context, address string) (conn *tcp.Conn, err error) {
	if p.invited == nil {
		return tcp.Dial(ctx, address, p.tcp)
	}
	for _, a := range p.invited.Addresses {
		conn, failed := tcp.Dial(ctx, a.String(), p.tcp)
		if failed == nil {
			p.invited.Addresses = []netip.AddrPort{a}
			return conn, nil
		}
		if err == nil || errors.Is(failed, tcp.ErrOtherKey) { // on another network the address may be another machine's
			err = failed
		}
	}
	return nil, err
}

// announce answers those who look for an offer, if it is to, until ctx ends.
func (a *Agent) announce(ctx context.Context, listen string) {
	at, err := netip.ParseAddrPort(listen)
	if err != nil || !a.cfg.Keycopy.Announce {
		return
	}
	if err := mdns.Answer(ctx, at.Port(), a.log); err != nil {
		a.log.Warn("offer not announced", "err", err) // its address can be typed
	}
}

func (a *Agent) keycopyFind(ctx context.Context, call *control.Call) error {
	found, err := mdns.Find(ctx)
	if err != nil {
		return control.Problemf(control.Unavailable, "type the address that the old terminal shows", "%w", err)
	}
	out := FindReply{Addresses: []string{}}
	for _, f := range found {
		out.Addresses = append(out.Addresses, f.String())
	}
	return call.Reply(out)
}
