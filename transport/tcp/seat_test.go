package tcp

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kagimori/kagimori/transport"
)

var doorTime = time.Unix(1_800_000_000, 0)

func siteOf(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 32)
}

// come lets a connection in, or not.
func come(t *testing.T, d *door, site int, now time.Time) *seat {
	t.Helper()
	a, b := net.Pipe()
	t.Cleanup(func() { a.Close(); b.Close() })
	return d.enter(a, siteOf(site), now)
}

// mustCome lets a connection in.
func mustCome(t *testing.T, d *door, site int, now time.Time) *seat {
	t.Helper()
	s := come(t, d, site, now)
	if s == nil {
		t.Fatalf("a connection from %s is refused", siteOf(site))
	}
	return s
}

// Within an address, and in all, whoever has said nothing for longest makes room.
func TestDoorDisplaces(t *testing.T) {
	d, now := newDoor(), doorTime
	var mine []*seat
	for range maxFrom {
		mine = append(mine, mustCome(t, d, 1, now))
	}
	if err := mine[0].spoke(); err != nil {
		t.Fatal(err)
	}
	mine = append(mine, mustCome(t, d, 1, now)) // displaces the second
	if mine[0].lost() || !mine[1].lost() || mine[2].lost() {
		t.Error("another than the oldest that has said nothing made room")
	}
	if _, err := mine[1].conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the displaced one is not woken: %v", err)
	}
	if mine[1].wait(now.Add(time.Hour)) != errDisplaced || mine[1].spoke() != errDisplaced {
		t.Error("the displaced one goes on")
	}
	d.leave(mine[1], true, now.Add(time.Hour)) // it is remembered since it was displaced
	if come(t, d, 1, now.Add(StrangerPause-1)) != nil {
		t.Error("a displaced stranger is back at once")
	}
	for i := range maxOpen - maxFrom {
		mustCome(t, d, 2+i, now)
	}
	newest := mustCome(t, d, 100, now) // in all, it is the address with most seats that gives
	if !mine[2].lost() || newest.lost() || len(d.seats) != maxOpen {
		t.Errorf("%d seats", len(d.seats))
	}
}

// Whoever has said HELLO stays; when all have, nobody else comes in.
func TestDoorKeepsWhoSpoke(t *testing.T) {
	d, now := newDoor(), doorTime
	var all []*seat
	for i := range maxOpen {
		all = append(all, mustCome(t, d, i/maxFrom, now))
		if err := all[i].spoke(); err != nil {
			t.Fatal(err)
		}
	}
	for _, site := range []int{0, 100} {
		if come(t, d, site, now) != nil {
			t.Errorf("site %d gets a seat that nobody gave up", site)
		}
	}
	d.leave(all[0], false, now)
	mustCome(t, d, 100, now)
	if come(t, d, 1, now) != nil {
		t.Error("one more than an address may have")
	}
	for _, s := range all {
		if s.lost() {
			t.Error("one that spoke was displaced")
		}
	}
}

// Those who make room hold a connection until they are gone: there are never
// more than both limits together.
func TestDoorWaitsForThoseWhoLeave(t *testing.T) {
	d, now := newDoor(), doorTime
	var all []*seat
	for i := range maxOpen + maxLeaving {
		all = append(all, mustCome(t, d, i, now))
	}
	if come(t, d, 100, now) != nil {
		t.Fatal("one more comes in while all who made room are still there")
	}
	gone := slices.IndexFunc(all, (*seat).lost)
	d.leave(all[gone], true, now)
	mustCome(t, d, 100, now)
	for _, s := range slices.Delete(all, gone, gone+1) {
		d.leave(s, true, now)
	}
	if d.leaving != 0 || len(d.seats) != 1 {
		t.Errorf("%d are still leaving, %d have a seat", d.leaving, len(d.seats))
	}
}

// A stranger waits a second, no longer, and others do not wait for him. The
// table of strangers does not grow, and forgets the oldest.
func TestDoorRemembersStrangers(t *testing.T) {
	d, now := newDoor(), doorTime
	d.leave(mustCome(t, d, 1, now), true, now)
	if come(t, d, 1, now.Add(StrangerPause-1)) != nil {
		t.Error("a stranger is back at once")
	}
	d.leave(mustCome(t, d, 2, now), false, now)
	d.leave(mustCome(t, d, 1, now.Add(StrangerPause)), false, now)
	for i := range 3 * maxStrangers {
		at := now.Add(time.Duration(i) * time.Millisecond)
		d.leave(mustCome(t, d, 1000+i, at), true, at)
	}
	if len(d.strangers) != maxStrangers || len(d.seats) != 0 {
		t.Errorf("%d strangers, %d seats", len(d.strangers), len(d.seats))
	}
	if _, ok := d.strangers[siteOf(1000+3*maxStrangers-1)]; !ok {
		t.Error("the newest stranger is forgotten")
	}
}

// Four addresses hold four connections each, TLS done and a HELLO begun, and
// come back whenever they are thrown out. A Target is served all the same, every
// time, and those that make room for it hear BUSY.
func TestHeldDoor(t *testing.T) {
	f := newFleet(t)
	address := serve(t, f.config(t, nil), echo)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer func() { cancel(); all.Wait() }()
	held, busy := make(chan struct{}, 1000), make(chan struct{}, 1000)
	for i := range maxOpen {
		all.Go(func() {
			for ctx.Err() == nil {
				hold(ctx, address, byte(2+i/maxFrom), held, busy)
			}
		})
	}
	for range maxOpen {
		select {
		case <-held:
		case <-time.After(10 * time.Second):
			t.Fatal("the door is not held")
		}
	}
	for range 12 {
		c, err := Dial(t.Context(), address, f.config(t, nil))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.WriteFrame(transport.KeycopyFrame{Type: transport.KeycopyTypeHello}, true); err != nil {
			t.Fatal(err)
		}
		if f, err := c.ReadFrame(0, time.Second); err != nil || f.Type != transport.KeycopyTypeHello {
			t.Fatalf("got %s, %v", f.Type, err)
		}
		c.Close()
	}
	select {
	case <-busy:
	case <-time.After(5 * time.Second):
		t.Error("nobody was told that the door is busy")
	}
}

// hold occupies a place until it is thrown out.
func hold(ctx context.Context, address string, host byte, held, busy chan<- struct{}) {
	d := &tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, host)}},
		Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{transport.KeycopyPAKE.ALPN()}, CurvePreferences: []tls.CurveID{tls.X25519MLKEM768}}}
	raw, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return
	}
	defer raw.Close()
	defer context.AfterFunc(ctx, func() { raw.Close() })()
	if _, err := raw.Write([]byte{0, 0, 1}); err != nil {
		return
	}
	select {
	case held <- struct{}{}:
	default:
	}
	f, err := readFrame(raw, transport.MaxKeycopyHandshake)
	var m transport.KeycopyError
	if err == nil && transport.DecodeKeycopy(f, &m) == nil && m.Code == transport.KeycopyBusy {
		select {
		case busy <- struct{}{}:
		default:
		}
	}
}

// A first frame that trickles in has helloTime, counted from accept; later ones
// have more.
func TestHelloTime(t *testing.T) {
	f := newFleet(t)
	cfg := f.config(t, nil)
	var err error
	if cfg.Certificate, err = ephemeral(); err != nil {
		t.Fatal(err)
	}
	if cfg.Certificate, err = parsed(cfg.Certificate); err != nil {
		t.Fatal(err)
	}
	for name, whole := range map[string]bool{"never whole": false, "whole": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := net.Pipe()
				defer b.Close()
				s := newDoor().enter(a, siteOf(1), time.Now())
				start := time.Now()
				ended := make(chan error, 1)
				go func() {
					_, hangUp := serveOne(t.Context(), s, cfg, func(ctx context.Context, c *Conn) error {
						err := echo(ctx, c)
						ended <- err
						return err
					})
					hangUp()
				}()
				time.Sleep(helloTime / 2) // in the bubble's time, as below
				c, err := open(t.Context(), b, f.config(t, nil), false)
				if err != nil {
					t.Fatal(err)
				}
				go io.Copy(io.Discard, c.tls)
				want := helloTime
				if whole {
					if err := c.WriteFrame(transport.KeycopyFrame{Type: 1}, true); err != nil {
						t.Fatal(err)
					}
					want = helloTime/2 + transport.KeycopyMessageTimeout
				} else {
					for range 3 {
						c.tls.Write([]byte{0})
						time.Sleep(helloTime / 8)
					}
				}
				if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != want {
					t.Errorf("%v after %v, want %v", err, time.Since(start), want)
				}
			})
		})
	}
}
