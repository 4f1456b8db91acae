package keycopy

// The simulator's link and its threads: Serve, Fetch and Resume run as
// coroutines that give way only where they wait for a frame, so that one run is
// one order of operations and no other.

import (
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// powerCut unwinds a strand whose end has lost its power. What deferred calls of
// the production code do then is in RAM only.
type powerCut struct{}

// A strand is one connection's driver at one end.
type strand struct {
	end  *simEnd
	conn *simConn
	held bool // stands still until a fault of kind R, or until nothing else moves
	done bool // has returned, or died with its end
	err  error

	next  func() (struct{}, bool)
	stop  func()
	yield func(struct{}) bool
}

func (w *world) start(c *simConn, drive func() error) *strand {
	s := &strand{end: c.end, conn: c}
	c.strand = s
	s.next, s.stop = iter.Pull(func(yield func(struct{}) bool) {
		s.yield = yield
		defer func() {
			s.done = true
			if r := recover(); r != nil {
				if _, ok := r.(powerCut); !ok {
					panic(r)
				}
				s.err = errPowerCut
			}
		}()
		s.err = drive()
	})
	w.strands = append(w.strands, s)
	return s
}

var errPowerCut = fmt.Errorf("the power went")

func (s *strand) park() {
	if !s.yield(struct{}{}) {
		panic(powerCut{})
	}
}

// die unwinds the strand where it stands.
func (s *strand) die() {
	s.stop()
	s.done = true // also if it never ran
}

// A simConn is one end's view of one connection.
type simConn struct {
	w       *world
	end     *simEnd
	peer    *simConn
	strand  *strand
	channel transport.KeycopyChannel

	unflushed, inbox []transport.KeycopyFrame
	broken           bool // nothing comes any more but what is in inbox
	closed, notified bool // by this end; in due form, so that the other end sees it
	until            time.Duration
	expired          bool

	proven bool // Source: has a guess to answer on this connection
	code   int  // which code was in force at the Source when it began
}

var _ Conn = (*simConn)(nil)

func (c *simConn) Channel() transport.KeycopyChannel { return c.channel }

func (c *simConn) Close() error {
	if !c.closed {
		c.closed, c.notified = true, !c.broken
		c.w.note("%s closes", c.end.name)
	}
	return nil
}

func (c *simConn) ReadFrame(limit int, wait time.Duration) (f transport.KeycopyFrame, err error) {
	c.until, c.expired = c.w.now.Mono+wait, false
	for {
		if len(c.inbox) > 0 {
			if err := c.w.op(c.end, "receive "+c.inbox[0].Type.String()); err != nil {
				return f, err
			}
			if len(c.inbox) == 0 { // the operation was a drop
				continue
			}
			f, c.inbox = c.inbox[0], c.inbox[1:]
			if len(f.Body) > limit {
				return f, fmt.Errorf("%w: %d bytes, the limit is %d", transport.ErrMalformed, len(f.Body), limit)
			}
			sealed := f.Type == transport.KeycopyTypeHello && c.channel.Mode.SealsCode() && c.w.mangle == nil // else it may be no guess at all
			c.proven = c.proven || f.Type == transport.KeycopyTypeProof || sealed
			return f, nil
		}
		switch {
		case c.broken, c.closed:
			return f, io.ErrUnexpectedEOF
		case c.peer.notified:
			return f, io.EOF
		case c.expired:
			return f, os.ErrDeadlineExceeded
		}
		c.strand.park()
	}
}

func (c *simConn) WriteFrame(f transport.KeycopyFrame, flush bool) error {
	if err := c.w.op(c.end, "send "+f.Type.String()); err != nil {
		return err
	}
	if c.broken || c.closed {
		return io.ErrClosedPipe
	}
	c.w.checkSend(c, f)
	c.unflushed = append(c.unflushed, transport.KeycopyFrame{Type: f.Type, Body: slices.Clone(f.Body)})
	if !flush {
		return nil
	}
	if !c.peer.broken && !c.peer.closed {
		for _, f := range c.unflushed {
			c.peer.inbox = append(c.peer.inbox, c.w.pass(c, f)...)
		}
	}
	c.unflushed = nil
	c.end.flush()
	return nil
}

// connect makes both views of a new connection.
func (w *world) connect() (source, target *simConn) {
	source, target = &simConn{w: w, end: w.source}, &simConn{w: w, end: w.target}
	source.peer, target.peer = target, source
	sc := &source.channel
	w.rng.Read(sc.Exporter[:])
	sc.SourceKey, sc.TargetKey = w.sourceID.spki, w.targetID.spki
	sc.Mode, sc.Identified = w.script.mode, w.script.identity
	target.channel = *sc
	sc.Remote, target.channel.Remote = "192.0.2.2:1", "192.0.2.1:8885"
	if w.script.identity {
		sc.Peer, target.channel.Peer = "new", "old"
	}
	w.link = [2]*simConn{source, target}
	return source, target
}

// drop breaks the present connection for both ends; what is on its way arrives
// or is lost.
func (w *world) drop(arrives bool) {
	for _, c := range w.link {
		if c == nil {
			continue
		}
		c.broken, c.unflushed = true, nil
		if !arrives {
			c.inbox = nil
		}
	}
}

// dropHalf breaks it for the Target only: the Source waits on, with what has
// reached it.
func (w *world) dropHalf() {
	source, target := w.link[0], w.link[1]
	if source == nil {
		return
	}
	target.broken, target.inbox, target.unflushed = true, nil, nil
	if s := source.strand; s != nil && !s.done {
		s.held = true
	}
}

// unplug is what a power cut of e does to the connections: e's strands die, and
// the other end finds out once it has read what came before.
func (w *world) unplug(e *simEnd) {
	for _, s := range w.strands {
		if s.end == e {
			s.conn.broken, s.conn.inbox, s.conn.unflushed = true, nil, nil
			s.conn.peer.broken = true
			s.held = false
		}
	}
}

// run lets the strands move until only held ones are left.
func (w *world) run() {
	for {
		moved, left := false, false
		for _, s := range slices.Clone(w.strands) {
			if s.done || s.held && s.end.up {
				continue
			}
			if !s.end.up {
				s.die()
				moved = true
				continue
			}
			before := w.n
			s.next()
			moved = moved || w.n != before || s.done
			left = left || !s.done
		}
		w.strands = slices.DeleteFunc(w.strands, func(s *strand) bool { return s.done })
		if !left {
			return
		}
		if !moved {
			w.timeout()
		}
	}
}

// timeout ends the wait that ends first.
func (w *world) timeout() {
	var first *simConn
	for _, s := range w.strands {
		if !s.held && (first == nil || s.conn.until < first.until) {
			first = s.conn
		}
	}
	if d := first.until - w.now.Mono; d > 0 {
		w.advance(d)
	}
	first.expired = true
}

// pass is f on its way from c.
func (w *world) pass(c *simConn, f transport.KeycopyFrame) []transport.KeycopyFrame {
	if w.mangle == nil {
		return []transport.KeycopyFrame{f}
	}
	return w.mangle(c, f)
}
