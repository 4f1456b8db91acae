package mdns

import (
	"net"
	"net/netip"
	"slices"
	"testing"
)

// The two ways to ask the kernel agree.
func TestInterfaces(t *testing.T) {
	want, err := net.Interfaces()
	if err != nil {
		t.Skip("this machine does not list interfaces: ", err)
	}
	got := Interfaces()
	for _, w := range want {
		n := slices.IndexFunc(got, func(i Interface) bool { return i.Name == w.Name })
		if (n >= 0) != (w.Flags&net.FlagUp != 0) {
			t.Errorf("%s is listed: %v, flags %s", w.Name, n >= 0, w.Flags)
			continue
		}
		if n < 0 {
			continue
		}
		if g := got[n]; g.Index != w.Index || g.Loopback != (w.Flags&net.FlagLoopback != 0) || g.Multicast != (w.Flags&net.FlagMulticast != 0) {
			t.Errorf("%+v, want %+v", g, w)
		}
		addrs, err := w.Addrs()
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range got[n].Addrs {
			if !slices.ContainsFunc(addrs, func(w net.Addr) bool { p, err := netip.ParsePrefix(w.String()); return err == nil && p.Addr() == a }) {
				t.Errorf("%s has %s, not among %v", w.Name, a, addrs)
			}
		}
	}
}

func TestReadingProc(t *testing.T) {
	if got := names("Inter-|   Receive\n face |bytes\n    lo: 1 2 3\n  eth0:12 3\nbroken\n"); !slices.Equal(got, []string{"lo", "eth0"}) {
		t.Errorf("%q", got)
	}
	got := inet6("20010db8000000000000000000000007 02 40 00 80     eth0\nfe800000000000000000000000000001 02 40 20 80     eth0\nzz 1 1 1 1 lo\n0000 1 1 1 1 lo\nshort\n")
	if len(got) != 1 || !slices.Equal(got["eth0"], []netip.Addr{netip.MustParseAddr("2001:db8::7")}) {
		t.Errorf("%v", got)
	}
}

func TestReachable(t *testing.T) {
	if got := Reachable("192.0.2.1:8885"); !slices.Equal(got, []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:8885")}) {
		t.Errorf("%v", got)
	}
	if got := Reachable("nonsense"); got != nil {
		t.Errorf("%v", got)
	}
	for _, listen := range []string{"0.0.0.0:8885", "[::]:8885"} {
		got := Reachable(listen)
		if len(got) == 0 || len(got) > maxAddresses {
			t.Errorf("%s: %v", listen, got)
		}
		for _, a := range got {
			if a.Port() != 8885 || a.Addr().IsUnspecified() || listen == "0.0.0.0:8885" && !a.Addr().Is4() {
				t.Errorf("%s: %s cannot be dialled", listen, a)
			}
		}
	}
}
