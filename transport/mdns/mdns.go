// Package mdns finds an offer of a key copy on the local network by multicast DNS
// (RFC 6762, RFC 6763), and says where this machine can be reached. It is a hint
// and nothing else: anybody can answer, so what is found is an address to dial,
// and the codes decide who is there. START HERE: Answer and Find; message.go
// reads and writes, interfaces.go asks the kernel.
//
// IPv4 only. No id of a terminal, device or credential is told.
package mdns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
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

func group() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{224, 0, 0, 251}), port)
}

// Answer tells whoever asks on the networks of this machine that an offer waits
// at a TCP port, until ctx ends.
func Answer(ctx context.Context, offered uint16, log *slog.Logger) error {
	c, err := listen(ctx, port)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if joined := join(c); joined == 0 {
		return errors.New("announce the offer: no network that takes multicast; plug the cable in, then make a new offer")
	}
	h := hint{label: "k" + strings.ToLower(rand.Text()[:10]), port: offered}
	var second time.Time
	answered := 0
	buf, oob := make([]byte, maxPacket+1), make([]byte, 256)
	for {
		n, on, _, from, err := c.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("announce the offer: %w", err)
		}
		at, ok := arrived(oob[:on])
		reply := h.reply(buf[:n], from, at)
		if !ok || reply == nil {
			continue
		}
		if now := time.Now(); now.Sub(second) >= time.Second {
			second, answered = now, 0
		}
		if answered++; answered > answersPerSecond {
			continue
		}
		to := from
		if from.Port() == port {
			to = group()
		}
		if _, _, err := c.WriteMsgUDPAddrPort(reply, unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: at.Ifindex, Spec_dst: at.Spec_dst}), to); err != nil {
			log.Debug("offer not announced", "to", to.String(), "err", err)
		}
	}
}

// reply is the answer to a packet; nil if it is not for us.
func (h hint) reply(packet []byte, from netip.AddrPort, at unix.Inet4Pktinfo) []byte {
	m, err := parse(packet)
	if err != nil || m.answer || !from.Addr().Unmap().Is4() {
		return nil
	}
	i := slices.IndexFunc(m.questions, h.asked)
	if i < 0 {
		return nil
	}
	if from.Port() == port {
		return h.answer(0, at.Spec_dst, nil)
	}
	return h.answer(m.id, at.Spec_dst, &m.questions[i])
}

// Find asks on all networks who offers, and gives the addresses that answered
// within FindTime.
func Find(ctx context.Context) ([]netip.AddrPort, error) {
	c, err := listen(ctx, 0)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	var id [2]byte
	rand.Read(id[:])
	q := query(uint16(id[0])<<8 | uint16(id[1]))
	var found []netip.AddrPort
	buf := make([]byte, maxPacket+1)
	for range asks {
		if send(c, q) == 0 {
			return nil, errors.New("look for an offer: no network that takes multicast")
		}
		c.SetReadDeadline(time.Now().Add(FindTime / asks))
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return found, errors.Join(ctx.Err(), err)
			}
			m, err := parse(buf[:n])
			if err != nil || !m.answer || m.id != uint16(id[0])<<8|uint16(id[1]) {
				continue
			}
			// Where the answer came from counts, not the address in it: nobody is
			// sent to a third machine.
			for _, p := range m.ports() {
				a := netip.AddrPortFrom(from.Addr().Unmap(), p)
				if !slices.Contains(found, a) && len(found) < maxFound {
					found = append(found, a)
				}
			}
		}
	}
	return found, nil
}

// send sends a question to every network, and says how many there are.
func send(c *net.UDPConn, q []byte) (n int) {
	for _, i := range Interfaces() {
		if !i.Multicast || len(i.Addrs) == 0 {
			continue
		}
		if _, _, err := c.WriteMsgUDPAddrPort(q, unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: int32(i.Index)}), group()); err == nil {
			n++
		}
	}
	return n
}

// listen opens a UDP port, that of mDNS beside whoever else has it.
func listen(ctx context.Context, port int) (*net.UDPConn, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		failed := raw.Control(func(fd uintptr) {
			s := int(fd)
			err = errors.Join(
				unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
				unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1),
				unix.SetsockoptInt(s, unix.IPPROTO_IP, unix.IP_PKTINFO, 1),
				unix.SetsockoptInt(s, unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, multicastTTL),
				// Only of groups that this socket has joined.
				unix.SetsockoptInt(s, unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0),
			)
		})
		return errors.Join(failed, err)
	}}
	c, err := config.ListenPacket(ctx, "udp4", fmt.Sprintf("0.0.0.0:%d", port))
	if err != nil {
		return nil, fmt.Errorf("multicast DNS: %w", err)
	}
	return c.(*net.UDPConn), nil
}

// join takes part in mDNS on every network, and says on how many.
func join(c *net.UDPConn) (n int) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	for _, i := range Interfaces() {
		if !i.Multicast {
			continue
		}
		_ = raw.Control(func(fd uintptr) {
			m := &unix.IPMreqn{Multiaddr: group().Addr().As4(), Ifindex: int32(i.Index)}
			if unix.SetsockoptIPMreqn(int(fd), unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, m) == nil {
				n++
			}
		})
	}
	return n
}

// arrived says on which network a packet came in, and at which address of ours.
func arrived(oob []byte) (at unix.Inet4Pktinfo, ok bool) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return at, false
	}
	for _, m := range messages {
		if m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo {
			at.Ifindex = int32(binary.NativeEndian.Uint32(m.Data))
			copy(at.Spec_dst[:], m.Data[4:8])
			return at, true
		}
	}
	return at, false
}
