package server

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
)

// webDoor bounds the connections of plain HTTP, in all and by address. Whoever
// comes when it is full is let in for the one that has waited longest without
// having asked for anything: a stranger who holds connections open keeps nobody
// from /healthz, not even from his own machine.
type webDoor struct {
	net.Listener
	mu   sync.Mutex
	open []*webConn // guarded by mu; oldest first
}

// webConn is a connection that the door counts.
type webConn struct {
	net.Conn
	door *webDoor
	from netip.Prefix
	busy atomic.Bool // a request of it is being answered
	once sync.Once
}

func newWebDoor(l net.Listener) *webDoor { return &webDoor{Listener: l} }

// Accept waits for a connection that may come in.
func (d *webDoor) Accept() (net.Conn, error) {
	for {
		c, err := d.Listener.Accept()
		if err != nil {
			return nil, err
		}
		w := &webConn{Conn: c, door: d, from: webAddress(c.RemoteAddr())}
		if d.enter(w) {
			return w, nil
		}
		c.Close()
	}
}

// enter counts a connection in, if there is room or somebody who can go.
func (d *webDoor) enter(w *webConn) bool {
	d.mu.Lock()
	var own, all int
	var ownIdle, idle *webConn
	for _, o := range d.open {
		all++
		if idle == nil && !o.busy.Load() {
			idle = o
		}
		if o.from != w.from {
			continue
		}
		own++
		if ownIdle == nil && !o.busy.Load() {
			ownIdle = o
		}
	}
	var leaves *webConn
	full := true
	switch {
	case own >= httpFrom:
		leaves = ownIdle
	case all >= httpConnections:
		leaves = idle
	default:
		full = false
	}
	if full && leaves == nil {
		d.mu.Unlock()
		return false
	}
	d.open = append(d.open, w)
	d.mu.Unlock()
	if leaves != nil {
		leaves.Close()
	}
	return true
}

// Close counts the connection out.
func (w *webConn) Close() error {
	w.once.Do(func() {
		w.door.mu.Lock()
		defer w.door.mu.Unlock()
		for i, o := range w.door.open {
			if o == w {
				w.door.open = append(w.door.open[:i], w.door.open[i+1:]...)
				return
			}
		}
	})
	return w.Conn.Close()
}

// remember and busy are for http.Server: they keep connections whose request is
// being answered from being closed for others.
func (d *webDoor) remember(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, webConnKey{}, c)
}

type webConnKey struct{}

func (d *webDoor) busy(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(webConnKey{}).(*webConn); ok {
			c.busy.Store(true)
			defer c.busy.Store(false)
		}
		next.ServeHTTP(w, r)
	})
}

// webAddress is whom connections are counted by: an IPv4 address, or the /64
// that an IPv6 host has for itself.
func webAddress(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := tcp.AddrPort().Addr().Unmap()
	bits := 64
	if ip.Is4() {
		bits = 32
	}
	p, _ := ip.Prefix(bits) // a zero address gives the zero prefix
	return p
}
