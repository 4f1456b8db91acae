package stories

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A cable joins two machines as a bad line does: every IP packet takes its time,
// and some never arrive. It is made of a TUN device in each machine's namespace;
// this process carries the packets between them. (netem does the same, where the
// kernel has it.) TCP at both ends is the kernel's: it sends again and backs off.
type cable struct {
	t             *testing.T
	delay         time.Duration // each way
	loss          float64       // of the packets, each way
	ends          [2]*os.File
	pulled        atomic.Bool
	carried, lost atomic.Int64
	down          chan struct{} // closed when the cable is gone
}

// queueLength is how many packets a cable holds each way; more are lost, as netem does it.
const queueLength = 1000

// lay lays a cable between two machines that are on the network: from then on
// they reach each other over it, and everybody else over the switch as before.
// The seed decides which packets are lost.
func (n *network) lay(a, b *machine, delay time.Duration, loss float64, seed uint64) *cable {
	n.t.Helper()
	n.cables++
	c := &cable{t: n.t, delay: delay, loss: loss, down: make(chan struct{})}
	device := fmt.Sprintf("line%d", n.cables)
	for i, m := range []*machine{a, b} {
		end, err := openTUN(m.ns, device)
		if err != nil {
			n.t.Skipf("no TUN devices here: %v", err)
		}
		c.ends[i] = end
		n.ip("-n", m.ns, "link", "set", device, "mtu", "1500", "up")
	}
	n.ip("-n", a.ns, "route", "add", b.host+"/32", "dev", device, "src", a.host)
	n.ip("-n", b.ns, "route", "add", a.host+"/32", "dev", device, "src", b.host)
	n.t.Cleanup(func() {
		close(c.down)
		c.ends[0].Close()
		c.ends[1].Close()
	})
	for i := range c.ends {
		queue := make(chan parcel, queueLength)
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		go c.send(c.ends[i], queue, random)
		go c.deliver(c.ends[1-i], queue)
	}
	return c
}

// A parcel is a packet on its way.
type parcel struct {
	packet []byte
	due    time.Time
}

func (c *cable) send(from *os.File, queue chan<- parcel, random *rand.Rand) {
	for {
		packet := make([]byte, 2048)
		n, err := from.Read(packet)
		if err != nil {
			close(queue)
			return
		}
		if random.Float64() < c.loss || c.pulled.Load() {
			c.lost.Add(1)
			continue
		}
		select {
		case queue <- parcel{packet[:n], time.Now().Add(c.delay)}:
		default:
			c.lost.Add(1)
		}
	}
}

func (c *cable) deliver(to *os.File, queue <-chan parcel) {
	for p := range queue {
		if wait := time.Until(p.due); wait > 0 {
			select {
			case <-time.After(wait):
			case <-c.down:
				return
			}
		}
		if _, err := to.Write(p.packet); err == nil {
			c.carried.Add(1)
		}
	}
}

// openTUN makes a TUN device in a network namespace.
func openTUN(ns, device string) (*os.File, error) {
	type answer struct {
		f   *os.File
		err error
	}
	got := make(chan answer)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread is in another namespace
		f, err := tunIn(ns, device)
		got <- answer{f, err}
	}()
	a := <-got
	return a.f, a.err
}

func tunIn(ns, device string) (*os.File, error) {
	inside, err := os.Open("/var/run/netns/" + ns)
	if err != nil {
		return nil, err
	}
	defer inside.Close()
	if err := unix.Setns(int(inside.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("enter %s: %w", ns, err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq(device)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make %s: %w", device, err)
	}
	return os.NewFile(uintptr(fd), device), nil
}

// in runs do on a thread in the machine's namespace; what it opens stays there.
func (m *machine) in(do func() error) error {
	got := make(chan error)
	go func() {
		runtime.LockOSThread()
		inside, err := os.Open("/var/run/netns/" + m.ns)
		if err == nil {
			defer inside.Close()
			err = unix.Setns(int(inside.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = do()
		}
		got <- err
	}()
	return <-got
}

// The instrument first: the line is as slow and as bad as it says.
func TestCable(t *testing.T) {
	n := newNetwork(t)
	a, b := newMachine(t, "a"), newMachine(t, "b")
	n.join(a)
	n.join(b)
	const delay, loss, packets = 20 * time.Millisecond, 0.2, 1000
	c := n.lay(a, b, delay, loss, 1)
	var near, far net.PacketConn
	for m, conn := range map[*machine]*net.PacketConn{a: &near, b: &far} {
		if err := m.in(func() (err error) { *conn, err = net.ListenPacket("udp4", m.host+":9"); return err }); err != nil {
			t.Fatal(err)
		}
		defer (*conn).Close()
	}
	to, err := net.ResolveUDPAddr("udp4", b.host+":9")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for i := range packets {
			if _, err := near.WriteTo(binary.BigEndian.AppendUint64(nil, uint64(time.Now().UnixNano())), to); err != nil {
				t.Error(err)
			}
			if i%20 == 0 { // not faster than the devices' own queues
				<-time.After(2 * time.Millisecond)
			}
		}
	}()
	arrived, fastest := 0, time.Hour
	for packet := make([]byte, 64); ; arrived++ {
		far.SetReadDeadline(time.Now().Add(delay + time.Second))
		if _, _, err := far.ReadFrom(packet); err != nil {
			break
		}
		fastest = min(fastest, time.Duration(time.Now().UnixNano()-int64(binary.BigEndian.Uint64(packet))))
	}
	t.Logf("%d of %d packets arrived, the fastest after %v", arrived, packets, fastest)
	if fastest < delay || fastest > 5*delay {
		t.Errorf("the fastest packet took %v, the line has %v", fastest, delay)
	}
	if got := 1 - float64(arrived)/packets; got < loss-0.06 || got > loss+0.06 {
		t.Errorf("%.3f of the packets are lost, the line loses %.2f", got, loss)
	}
	c.pulled.Store(true)
	if err := a.in(func() error {
		conn, err := net.DialTimeout("tcp4", b.host+":9", 200*time.Millisecond)
		if err == nil {
			conn.Close()
			return fmt.Errorf("a pulled cable carries")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}
