package main

import (
	"net"
	"net/netip"
	"slices"
)

// maxAddresses is how many a technician is shown.
const maxAddresses = 4

// reachable says under which addresses this machine's listener can be dialled.
// The daemon cannot tell: its unit keeps it from listing interfaces.
func reachable(listen string) []string {
	at, err := netip.ParseAddrPort(listen)
	if err != nil || !at.Addr().IsUnspecified() {
		return []string{listen}
	}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return []string{listen}
	}
	var list, local []netip.Addr
	for _, a := range all {
		p, err := netip.ParsePrefix(a.String())
		ip := p.Addr().Unmap()
		switch {
		case err != nil, ip.IsLinkLocalUnicast():
		case ip.IsLoopback():
			local = append(local, ip)
		default:
			list = append(list, ip)
		}
	}
	if len(list) == 0 {
		list = local // a machine without a network, or a test of one
	}
	slices.SortStableFunc(list, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	var texts []string
	for _, ip := range list[:min(len(list), maxAddresses)] {
		texts = append(texts, netip.AddrPortFrom(ip, at.Port()).String())
	}
	return texts
}
