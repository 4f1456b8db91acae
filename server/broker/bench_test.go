package broker

// Our broker beside mosquitto on the same machine: memory of an idle terminal,
// and CPU for a request with its answer. Broker and handler run in processes of
// their own, whose CPU and memory the kernel counts; the clients live here.
//
//	go test -run '^$' -bench . -benchtime 20000x ./server/broker

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/mqtt/mqtttest"
)

const (
	benchChild   = "KAGIMORI_BROKER_BENCH" // "broker" or "handler" in a child process
	benchClients = 32
	benchIdle    = 2000
	benchPayload = 256 // bytes
)

// echo answers every message with itself.
type echo struct{ b *Broker }

func (*echo) Authenticate(_ context.Context, p Peer) (string, error) { return p.ID, nil }
func (*echo) Connected(Peer)                                         {}
func (*echo) Disconnected(Peer, error)                               {}
func (e *echo) Receive(_ context.Context, p Peer, payload []byte) error {
	return e.b.Send(p.Segment, payload)
}

// runBench is a child process: our broker with its handler, or the handler that
// mosquitto needs. It ends when its standard input does.
func runBench(role string) int {
	cert, err := tls.LoadX509KeyPair(os.Getenv("BENCH_CERT"), os.Getenv("BENCH_KEY"))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		for b := []byte{0}; ; debug.FreeOSMemory() { // on every byte
			if _, err := os.Stdin.Read(b); err != nil {
				stop()
				return
			}
			fmt.Println("collected")
		}
	}()
	if role == "handler" {
		return runBenchHandler(ctx, cert)
	}
	e := &echo{}
	if e.b, err = New(Config{TLS: &tls.Config{Certificates: []tls.Certificate{cert}}}, e, slog.New(slog.DiscardHandler)); err != nil {
		fmt.Println(err)
		return 1
	}
	ln, err := Listen(ctx, "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(ln.Addr())
	e.b.Run(ctx, ln)
	return 0
}

func runBenchHandler(ctx context.Context, cert tls.Certificate) int {
	o := paho.NewClientOptions().AddBroker("ssl://" + os.Getenv("BENCH_BROKER")).SetClientID("handler").SetOrderMatters(true)
	o.SetTLSConfig(&tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}}) // loopback, our own child
	c := paho.NewClient(o)
	if t := c.Connect(); t.Wait() && t.Error() != nil {
		fmt.Println(t.Error())
		return 1
	}
	t := c.Subscribe("kagimori/1/+/up", 1, func(c paho.Client, m paho.Message) {
		segment, _, _ := transport.ParseTopic(m.Topic())
		_, down := transport.Topics(segment)
		go c.Publish(down, 0, false, m.Payload())
	})
	if t.Wait() && t.Error() != nil {
		fmt.Println(t.Error())
		return 1
	}
	fmt.Println("ready")
	<-ctx.Done()
	c.Disconnect(0)
	return 0
}

// A side is one of the two competitors.
type side struct {
	address string
	pids    []int
	collect func() // what the Go runtime does by itself every two minutes
}

func child(b *testing.B, role string, env ...string) (line string, pid int, collect func()) {
	b.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(append(os.Environ(), benchChild+"="+role), env...)
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { in.Close(); cmd.Wait() })
	r := bufio.NewReader(out)
	if line, err = r.ReadString('\n'); err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(line), cmd.Process.Pid, func() {
		const times = 4 // each halves stacks that are too large; answers come before the work
		in.Write(make([]byte, times))
		for range times {
			r.ReadString('\n')
		}
	}
}

func sides(b *testing.B, run func(*testing.B, *mqtttest.CA, side)) {
	b.Run("ours", func(b *testing.B) {
		ca := mqtttest.NewCA(b)
		cert, key := ca.Files(b, ca.Server(b))
		address, pid, collect := child(b, "broker", "BENCH_CERT="+cert, "BENCH_KEY="+key)
		run(b, ca, side{address, []int{pid}, collect})
	})
	b.Run("mosquitto", func(b *testing.B) {
		ca := mqtttest.NewCA(b)
		address, broker := mqtttest.MosquittoProcess(b, ca, true)
		cert, key := ca.Files(b, ca.Terminal(b, "handler"))
		_, pid, collect := child(b, "handler", "BENCH_CERT="+cert, "BENCH_KEY="+key, "BENCH_BROKER="+address)
		run(b, ca, side{address, []int{broker.Pid(), pid}, collect})
	})
}

// benchDial is a terminal: connected and subscribed.
func benchDial(b *testing.B, ca *mqtttest.CA, s side, i int) *tls.Conn {
	name := fmt.Sprintf("nav-%05d", i)
	_, down := transport.Topics(name)
	conn, err := tls.Dial("tcp", s.address, &tls.Config{RootCAs: ca.Pool, ServerName: "localhost", Certificates: []tls.Certificate{ca.Terminal(b, name)}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.NetConn().Close() })
	connect := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
	connect.ProtocolName, connect.ProtocolVersion, connect.ClientIdentifier, connect.CleanSession, connect.Keepalive = "MQTT", 4, name, true, 300
	subscribe := packets.NewControlPacket(packets.Subscribe).(*packets.SubscribePacket)
	subscribe.MessageID, subscribe.Topics, subscribe.Qoss = 1, []string{down}, []byte{0}
	for _, p := range []packets.ControlPacket{connect, subscribe} {
		p.Write(conn)
		if _, err := packets.ReadPacket(conn); err != nil {
			b.Fatal(err)
		}
	}
	return conn
}

// BenchmarkRoundTrip: a terminal publishes with QoS 1 and waits for PUBACK and
// answer. cpu-µs/op is the broker's with its handler.
func BenchmarkRoundTrip(b *testing.B) {
	sides(b, func(b *testing.B, ca *mqtttest.CA, s side) {
		conns := make([]*tls.Conn, benchClients)
		for i := range conns {
			conns[i] = benchDial(b, ca, s, i)
		}
		var left atomic.Int64
		left.Store(int64(b.N))
		before := s.cpu(b)
		b.ResetTimer()
		var all sync.WaitGroup
		for i, conn := range conns {
			up, _ := transport.Topics(fmt.Sprintf("nav-%05d", i))
			all.Go(func() {
				r := bufio.NewReader(conn)
				p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
				p.TopicName, p.Qos, p.Payload = up, 1, make([]byte, benchPayload)
				for left.Add(-1) >= 0 {
					p.MessageID = p.MessageID%1000 + 1
					var buf bytes.Buffer
					p.Write(&buf)
					conn.Write(buf.Bytes())
					for range 2 {
						if _, err := packets.ReadPacket(r); err != nil {
							b.Error(err)
							return
						}
					}
				}
			})
		}
		all.Wait()
		b.StopTimer()
		b.ReportMetric(float64((s.cpu(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
		b.ReportMetric(0, "ns/op") // wall time on a shared machine says little
	})
}

// BenchmarkIdle: KiB is the growth of resident memory for each connected,
// subscribed, silent terminal, just after they came and after some
// garbage collections; cpu-µs is one connect with mutual TLS.
func BenchmarkIdle(b *testing.B) {
	sides(b, func(b *testing.B, ca *mqtttest.CA, s side) {
		for range 50 { // so that code and caches are paged in
			benchDial(b, ca, s, 0)
		}
		cpu, rss := s.cpu(b), s.rss(b)
		for i := range benchIdle {
			benchDial(b, ca, s, i+1)
		}
		b.ReportMetric(float64((s.cpu(b)-cpu).Microseconds())/benchIdle, "cpu-µs/connect")
		b.ReportMetric(float64(s.rss(b)-rss)/benchIdle, "KiB/terminal")
		s.collect()
		b.ReportMetric(float64(s.rss(b)-rss)/benchIdle, "KiB/settled")
		b.ReportMetric(0, "ns/op")
	})
}

// cpu sums the processes' CPU time, from /proc/<pid>/stat (fields 14 and 15, in
// hundredths of a second).
func (s side) cpu(b *testing.B) time.Duration {
	b.Helper()
	ticks := 0
	for _, pid := range s.pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			b.Fatal(err)
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		for _, f := range fields[11:13] {
			n, err := strconv.Atoi(f)
			if err != nil {
				b.Fatal(err)
			}
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// rss is the broker's resident memory in KiB; the handler is not counted.
func (s side) rss(b *testing.B) int {
	b.Helper()
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", s.pids[0]))
	if err != nil {
		b.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(statm))[1])
	if err != nil {
		b.Fatal(err)
	}
	return pages * syscall.Getpagesize() / 1024
}
