package relay

import (
	"crypto/tls"
	"errors"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// alertWait is how long the gate's reason is waited for once it takes no more.
const alertWait = time.Second

// past, as a deadline, ends a read or write that is under way.
var past = time.Unix(1, 0)

// A passage copies between a program and a gate until both have ended, one has
// broken, or nothing went for too long.
type passage struct {
	relay  *Relay
	local  net.Conn
	remote *tls.Conn
	idle   *time.Timer
	ended  atomic.Bool // by us: what follows is not the gate's fault

	// Each is written by one of the goroutines, and read when both have ended.
	head    []byte // of up: the program's first bytes
	deaf    bool   // of up: the gate takes no more
	replied bool   // of down: something of the gate's reached the program
	failed  error  // of down: what the gate broke with
}

// pass returns when nothing is copied any more. The error says why the gate
// broke the connection, if it did before anything of its reached the program;
// then local is still open and head is what the program has sent.
func (r *Relay) pass(local net.Conn, remote *tls.Conn) (head []byte, err error) {
	p := &passage{relay: r, local: local, remote: remote}
	if err := r.enter(p); err != nil {
		_ = remote.NetConn().Close()
		return nil, err
	}
	defer r.leave(p)
	p.idle = time.AfterFunc(r.cfg.Idle, p.cut)
	defer p.idle.Stop()
	var wg sync.WaitGroup
	wg.Go(p.up)
	wg.Go(p.down)
	wg.Wait()
	if p.failed == nil {
		_ = remote.Close()
		if p.deaf {
			r.drain(local)
		}
		_ = local.Close()
		return nil, nil
	}
	_ = remote.NetConn().Close()
	if p.replied || p.ended.Load() {
		reset(local)
		return nil, nil
	}
	return p.head, explain(remote.NetConn().(*wire).shown, p.failed)
}

// enter makes a passage known to Recheck. It asks once more, since the gate may
// have been revoked after the handshake asked.
func (r *Relay) enter(p *passage) error {
	r.mu.Lock()
	r.live[p] = struct{}{}
	r.mu.Unlock()
	err := p.standing()
	if err != nil {
		r.leave(p)
	}
	return err
}

func (r *Relay) leave(p *passage) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.live, p)
}

func (p *passage) standing() error { return p.remote.NetConn().(*wire).standing() }

// Recheck cuts the connections to gates that may not be talked to any more. It
// is called when what Dialable.Revoked says has changed.
func (r *Relay) Recheck() {
	r.mu.Lock()
	list := slices.Collect(maps.Keys(r.live))
	r.mu.Unlock()
	for _, p := range list {
		if err := p.standing(); err != nil {
			p.cut()
			r.refused(err)
		}
	}
}

// up copies from the program to the gate. When the program has sent all, the
// gate is told so and may go on answering.
func (p *passage) up() {
	buf := p.relay.buffer()
	defer p.relay.release(buf)
	for {
		n, err := p.local.Read(buf[:])
		if n > 0 {
			p.idle.Reset(p.relay.cfg.Idle)
			if p.head == nil {
				p.head = append(p.head, buf[:min(n, headSize)]...)
			}
			if _, err := p.remote.Write(buf[:n]); err != nil {
				p.deaf = true // what it sent before may say why
				_ = p.remote.SetReadDeadline(time.Now().Add(alertWait))
				return
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			_ = p.remote.CloseWrite()
			return
		case isTimeout(err): // down has ended, and wants local for itself
			return
		case err != nil:
			p.cut()
			return
		}
	}
}

// down copies from the gate to the program. The gate's end reaches the program
// as an end only if the gate said so (RFC 8446 §6.1): a connection that was cut
// must not look like a short answer. crypto/tls lets that pass between two
// records, so the wire is asked.
func (p *passage) down() {
	buf := p.relay.buffer()
	defer p.relay.release(buf)
	for {
		n, err := p.remote.Read(buf[:])
		if n > 0 {
			p.idle.Reset(p.relay.cfg.Idle)
			if !p.replied {
				p.replied = true
				p.relay.reached()
			}
			if _, err := p.local.Write(buf[:n]); err != nil {
				p.cut()
				return
			}
		}
		if errors.Is(err, io.EOF) && p.remote.NetConn().(*wire).ended.Load() {
			err = io.ErrUnexpectedEOF
		}
		switch {
		case errors.Is(err, io.EOF):
			closeWrite(p.local)
			return
		case err != nil:
			p.failed = err
			_ = p.local.SetReadDeadline(past) // both end up
			_ = p.remote.SetWriteDeadline(past)
			return
		}
	}
}

// cut ends both directions at once.
func (p *passage) cut() {
	p.ended.Store(true)
	_ = p.remote.NetConn().Close()
	reset(p.local)
}

// closeWrite says that nothing follows; the other direction goes on.
func closeWrite(c net.Conn) {
	if c, ok := c.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite()
	}
}

// reset closes so that the program sees an error and not an end.
func reset(c net.Conn) {
	if c, ok := c.(interface{ SetLinger(int) error }); ok {
		_ = c.SetLinger(0)
	}
	_ = c.Close()
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}
