package server

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Hundreds of requests that never end, from the very machine that asks for
// health: the answer is quick all the same.
func TestSlowClientsDoNotHoldHealth(t *testing.T) {
	r := newRig(t)
	for range 600 {
		c, err := net.Dial("tcp", r.http)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n") // an error is the door's answer
	}
	start := time.Now()
	if res, _ := r.get("/healthz"); res.StatusCode != 200 || time.Since(start) > time.Second {
		t.Errorf("%d after %v", res.StatusCode, time.Since(start))
	}
}

// half is a request that has begun.
func (r *rig) half() net.Conn {
	r.t.Helper()
	c, err := net.Dial("tcp", r.http)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, "GET /healthz HTTP/1.1\r\n"); err != nil {
		r.t.Fatal(err)
	}
	return c
}

// The connection that has waited longest goes when its address has too many.
func TestHTTPBoundsAnAddress(t *testing.T) {
	r := newRig(t)
	first := r.half()
	var rest []net.Conn
	for range httpFrom {
		rest = append(rest, r.half())
	}
	first.SetReadDeadline(time.Now().Add(httpHeaderRead / 2))
	if _, err := first.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("%d connections of one address are open: %v", httpFrom+1, err)
	}
	last := rest[len(rest)-1]
	io.WriteString(last, "Host: x\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(last), nil)
	if err != nil || res.StatusCode != 200 {
		t.Errorf("%v, %v", res, err)
	}
}

// Whose request is being answered stays; when all are, nobody else comes in.
func TestTheWebDoorClosesNobodyAtWork(t *testing.T) {
	d := newWebDoor(nil)
	from := func(address string) *webConn {
		a, b := net.Pipe()
		t.Cleanup(func() { b.Close() })
		ip := net.ParseIP(address)
		return &webConn{Conn: a, door: d, from: webAddress(&net.TCPAddr{IP: ip, Port: 1})}
	}
	var own []*webConn
	for range httpFrom {
		w := from("192.0.2.1")
		w.busy.Store(true)
		if own = append(own, w); !d.enter(w) {
			t.Fatal("refused below the limit")
		}
	}
	if d.enter(from("192.0.2.1")) {
		t.Error("one more of the same address")
	}
	if !d.enter(from("192.0.2.2")) || !d.enter(from("2001:db8::1")) {
		t.Error("another address pays for it")
	}
	own[0].Close()
	own[0].Close()
	if !d.enter(from("192.0.2.1")) || len(d.open) != httpFrom+2 {
		t.Errorf("%d are counted", len(d.open))
	}
	for i := len(d.open); i < httpConnections; i++ {
		d.enter(from(net.IPv4(10, 0, byte(i>>8), byte(i)).String()))
	}
	last := from("192.0.2.3")
	if !d.enter(last) || len(d.open) != httpConnections {
		t.Errorf("%d of %d are open", len(d.open), httpConnections)
	}
	a, b := webAddress(&net.TCPAddr{IP: net.ParseIP("2001:db8::1")}), webAddress(&net.TCPAddr{IP: net.ParseIP("2001:db8::2")})
	if c := webAddress(&net.TCPAddr{IP: net.ParseIP("2001:db8:0:1::1")}); a != b || a == c {
		t.Errorf("%v, %v, %v", a, b, c)
	}
}
