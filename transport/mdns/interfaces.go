package mdns

import (
	"encoding/hex"
	"io"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// An Interface is one that is up, with the addresses by which others on its
// network reach this machine.
type Interface struct {
	Index     int
	Name      string
	Addrs     []netip.Addr // IPv4 first; nothing link-local
	Loopback  bool
	Multicast bool
}

// Bounds of what is read of the kernel.
const (
	maxInterfaces = 64
	maxProcFile   = 64 << 10
)

// Interfaces lists them. It asks by ioctl and /proc/self, since a daemon's unit
// keeps it from AF_NETLINK, by which net.Interfaces does.
func Interfaces() []Interface {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(s)
	six := inet6(readProc("/proc/self/net/if_inet6"))
	var list []Interface
	for _, name := range names(readProc("/proc/self/net/dev")) {
		i, ok := ask(s, name)
		if !ok {
			continue
		}
		i.Addrs = append(i.Addrs, six[name]...)
		list = append(list, i)
	}
	return list
}

// ask looks one interface up; only one that is up is told.
func ask(s int, name string) (i Interface, ok bool) {
	r, err := unix.NewIfreq(name)
	if err != nil || unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, r) != nil {
		return i, false
	}
	flags := r.Uint16()
	if flags&unix.IFF_UP == 0 || unix.IoctlIfreq(s, unix.SIOCGIFINDEX, r) != nil {
		return i, false
	}
	i = Interface{Index: int(r.Uint32()), Name: name, Loopback: flags&unix.IFF_LOOPBACK != 0, Multicast: flags&unix.IFF_MULTICAST != 0}
	if unix.IoctlIfreq(s, unix.SIOCGIFADDR, r) == nil {
		if b, err := r.Inet4Addr(); err == nil {
			if a, ok := netip.AddrFromSlice(b); ok && !a.IsUnspecified() && !a.IsLinkLocalUnicast() {
				i.Addrs = append(i.Addrs, a)
			}
		}
	}
	return i, true
}

func readProc(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return "" // no IPv6, most likely
	}
	defer f.Close()
	b, _ := io.ReadAll(io.LimitReader(f, maxProcFile))
	return string(b)
}

// names reads /proc/net/dev: two lines of headings, then "name: counters".
func names(text string) (list []string) {
	for n, line := range strings.SplitN(text, "\n", maxInterfaces) {
		if name, _, ok := strings.Cut(strings.TrimSpace(line), ":"); ok && n >= 2 {
			list = append(list, name)
		}
	}
	return list
}

// inet6 reads /proc/net/if_inet6: address, index, prefix, scope, flags, name.
func inet6(text string) map[string][]netip.Addr {
	list := map[string][]netip.Addr{}
	for _, line := range strings.SplitN(text, "\n", maxInterfaces) {
		f := strings.Fields(line)
		if len(f) != 6 {
			continue
		}
		raw, err := hex.DecodeString(f[0])
		a, ok := netip.AddrFromSlice(raw)
		if err == nil && ok && a.Is6() && !a.IsLinkLocalUnicast() {
			list[f[5]] = append(list[f[5]], a)
		}
	}
	return list
}

// maxAddresses is how many Reachable gives.
const maxAddresses = 4

// Reachable says under which addresses others can dial a listener of this
// machine: its own, or those of all interfaces if it listens on all, IPv4 first.
func Reachable(listen string) []netip.AddrPort {
	at, err := netip.ParseAddrPort(listen)
	if err != nil {
		return nil
	}
	if !at.Addr().IsUnspecified() {
		return []netip.AddrPort{at}
	}
	var four, six, local []netip.AddrPort
	for _, i := range Interfaces() {
		for _, a := range i.Addrs {
			switch p := netip.AddrPortFrom(a, at.Port()); {
			case a.Is6() && at.Addr().Is4(): // 0.0.0.0 is for IPv4 only
			case i.Loopback:
				local = append(local, p)
			case a.Is4():
				four = append(four, p)
			default:
				six = append(six, p)
			}
		}
	}
	list := append(four, six...)
	if len(list) == 0 {
		list = local // a machine without a network, or a test of one
	}
	return list[:min(len(list), maxAddresses)]
}
