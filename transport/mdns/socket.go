package mdns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A UDP socket for multicast on each network of this machine by itself. It is
// made of package syscall, which net links anyway: net.UDPConn with what it takes
// for this costs the agent 30 KiB.

// patience is how long a read waits before it looks whether it is to go on.
const patience = 250 * time.Millisecond

type socket int

// A packet that came in: on which network, and at which address of ours.
type packet struct {
	data []byte
	from netip.AddrPort
	at   arrival
}

type arrival struct {
	network int32
	address [4]byte
}

// open opens a UDP port, that of mDNS beside whoever else has it; 0 is any.
func open(port int) (socket, error) {
	s, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("multicast DNS: %w", err)
	}
	wait := syscall.NsecToTimeval(int64(patience))
	err = errors.Join(
		syscall.SetsockoptInt(s, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1),
		syscall.SetsockoptInt(s, syscall.SOL_SOCKET, unix.SO_REUSEPORT, 1),
		syscall.SetsockoptInt(s, syscall.IPPROTO_IP, syscall.IP_PKTINFO, 1),
		syscall.SetsockoptInt(s, syscall.IPPROTO_IP, syscall.IP_MULTICAST_TTL, multicastTTL),
		syscall.SetsockoptInt(s, syscall.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0), // only of groups that this socket has joined
		syscall.SetsockoptTimeval(s, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &wait),
		syscall.SetsockoptTimeval(s, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, &wait),
		syscall.Bind(s, &syscall.SockaddrInet4{Port: port}),
	)
	if err != nil {
		syscall.Close(s)
		return -1, fmt.Errorf("multicast DNS: %w", err)
	}
	return socket(s), nil
}

func (s socket) close() { syscall.Close(int(s)) }

// join takes part in mDNS on every network, and says on how many.
func (s socket) join() (n int) {
	for _, i := range Interfaces() {
		m := &syscall.IPMreqn{Multiaddr: group, Ifindex: int32(i.Index)}
		if i.Multicast && syscall.SetsockoptIPMreqn(int(s), syscall.IPPROTO_IP, syscall.IP_ADD_MEMBERSHIP, m) == nil {
			n++
		}
	}
	return n
}

// read waits for a packet until ctx ends or the time is over; then ok is false.
func (s socket) read(ctx context.Context, until time.Time) (p packet, ok bool, err error) {
	buf, oob := make([]byte, maxPacket+1), make([]byte, 256)
	for ctx.Err() == nil && (until.IsZero() || time.Now().Before(until)) {
		n, on, _, from, err := syscall.Recvmsg(int(s), buf, oob, 0)
		switch {
		case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EINTR):
			continue
		case err != nil:
			return p, false, fmt.Errorf("multicast DNS: %w", err)
		}
		if f, ok := from.(*syscall.SockaddrInet4); ok {
			p = packet{buf[:n], netip.AddrPortFrom(netip.AddrFrom4(f.Addr), uint16(f.Port)), arrived(oob[:on])}
			return p, true, nil
		}
	}
	return p, false, nil
}

// arrived reads struct in_pktinfo: index, address of ours, and address it went to.
func arrived(oob []byte) (at arrival) {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return at
	}
	for _, m := range messages {
		if m.Header.Level == syscall.IPPROTO_IP && m.Header.Type == syscall.IP_PKTINFO && len(m.Data) >= syscall.SizeofInet4Pktinfo {
			at.network = int32(binary.NativeEndian.Uint32(m.Data))
			copy(at.address[:], m.Data[4:8])
		}
	}
	return at
}

// write sends on one network.
func (s socket) write(data []byte, at arrival, to netip.AddrPort) error {
	oob := unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: at.network, Spec_dst: at.address})
	return syscall.Sendmsg(int(s), data, oob, &syscall.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}, 0)
}
