package stories

import (
	"context"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/tcp"
)

// Strangers who do not want in but want nobody else to get in: many of them, or
// slow ones. The old terminal stays small, and the terminal that the code is
// meant for is served while they are at it.
//
// req: C3
func TestFloodsAtTheDoor(t *testing.T) {
	s := newSiege(t)
	s.under("10,000 connections", s.tenThousand)
	s.under("a crowd of all kinds", func(t *testing.T) { s.crowd(t, crowdTime, s.nuisances()) })
}

// Each kind of them alone, for longer than any deadline of a connection.
func TestSoakFloodsAtTheDoor(t *testing.T) {
	if os.Getenv("KAGIMORI_SOAK") == "" {
		t.Skip("takes three minutes: make soak")
	}
	s := newSiege(t)
	for name, each := range s.nuisances() {
		s.under(name, func(t *testing.T) { s.crowd(t, 5*crowdTime, map[string]nuisance{name: each}) })
	}
}

// A nuisance is one visit of a stranger.
type nuisance func(ctx context.Context, from *net.Dialer)

func (s *siege) nuisances() map[string]nuisance {
	return map[string]nuisance{
		"says nothing": s.silent, "slow TLS": s.slowTLS, "slow header": s.drip([]byte{0, 0, 0, 0}), "slow body": s.drip(make([]byte, 300)),
		"handshakes": s.handshakes, "RESUME of what is unknown": s.resumes,
	}
}

// tenThousand opens and closes as fast as it goes, from 64 addresses.
func (s *siege) tenThousand(t *testing.T) {
	const connections, hosts, workers = 10_000, 64, 16
	var opened, next atomic.Int64
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for {
				n := next.Add(1)
				if n > connections {
					return
				}
				from := s.strangerAt(uint32(0x1000 + n%hosts))
				c, err := from.DialContext(t.Context(), "tcp", s.old.copy)
				if err != nil {
					continue
				}
				opened.Add(1)
				if n%2 == 0 {
					c.Write([]byte{22, 3, 1, 0xff, 0xff})
				}
				c.Close()
			}
		})
	}
	all.Wait()
	if opened.Load() < connections*9/10 {
		t.Errorf("%d of %d connections came about", opened.Load(), connections)
	}
}

// crowd keeps 48 strangers of these kinds at the door, from 12 addresses. After a
// third of the time the rightful terminal comes, and is served.
func (s *siege) crowd(t *testing.T, stay time.Duration, kinds map[string]nuisance) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), stay)
	defer cancel()
	first := s.host.Add(12) - 11
	names := slices.Sorted(maps.Keys(kinds))
	var all sync.WaitGroup
	var visits atomic.Int64
	for i := range 48 {
		all.Go(func() {
			for ctx.Err() == nil {
				kinds[names[i%len(names)]](ctx, s.strangerAt(first+uint32(i)%12))
				visits.Add(1)
				select { // a stranger knows the pause, too
				case <-time.After(time.Duration(rand.Int64N(int64(tcp.StrangerPause)))):
				case <-ctx.Done():
				}
			}
		})
	}
	<-time.After(stay / 3)
	began := time.Now()
	s.relieve(t)
	t.Logf("a wrong code and the right one took %v in the crowd", time.Since(began).Round(time.Millisecond))
	s.offer = s.old.offer(s.old.socket("kagimori"))
	all.Wait()
	t.Logf("%d visits", visits.Load())
}

// crowdTime is how long a crowd stays: longer than the door waits for a HELLO.
const crowdTime = 6 * time.Second

func (s *siege) silent(ctx context.Context, from *net.Dialer) {
	c, err := from.DialContext(ctx, "tcp", s.old.copy)
	if err != nil {
		return
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	c.Read(make([]byte, 1)) // until it is thrown out
}

// slowly sends one byte after the other, until it is thrown out.
func slowly(ctx context.Context, c net.Conn, sent []byte) {
	defer context.AfterFunc(ctx, func() { c.Close() })()
	for _, b := range sent {
		if _, err := c.Write([]byte{b}); err != nil {
			return
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return
		}
	}
	c.Read(make([]byte, 1))
}

func (s *siege) slowTLS(ctx context.Context, from *net.Dialer) {
	c, err := from.DialContext(ctx, "tcp", s.old.copy)
	if err != nil {
		return
	}
	defer c.Close()
	slowly(ctx, c, []byte{22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0})
}

// drip does TLS as it should be done, begins a frame of this length, and lets
// the rest trickle.
func (s *siege) drip(body []byte) func(context.Context, *net.Dialer) {
	sent := frame(transport.KeycopyTypeHello, body)
	if len(body) == 4 { // the header itself
		sent = sent[:4]
	}
	return func(ctx context.Context, from *net.Dialer) {
		if c, err := s.knock(ctx, from, speaks()); err == nil {
			defer c.Close()
			slowly(ctx, c, sent)
		}
	}
}

// handshakes does TLS and goes away.
func (s *siege) handshakes(ctx context.Context, from *net.Dialer) {
	if c, err := s.knock(ctx, from, speaks()); err == nil {
		c.Close()
	}
}

// resumes asks for a transaction that nobody has.
func (s *siege) resumes(ctx context.Context, from *net.Dialer) {
	c, err := s.knock(ctx, from, speaks())
	if err != nil {
		return
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	m := transport.KeycopyResume{}
	for i := range m.Txn {
		m.Txn[i] = byte(rand.Uint32())
	}
	body, err := transport.Marshal(&m)
	if err != nil {
		return
	}
	if _, err := c.Write(frame(transport.KeycopyTypeResume, body)); err != nil {
		return
	}
	fault(c)
}
