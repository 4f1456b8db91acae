// A daemon's side of the socket: connections, and the table of methods.

package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A Method is one row of the table of what a daemon offers.
type Method struct {
	// Name without the interface: "Status".
	Name string
	// Doc goes into the description served, one or more lines.
	Doc string
	// Class that the caller needs. [CTL-4]
	Class Class
	// In and Out are prototypes, zero values of the structs that Params takes
	// and Reply gives; nil has no members. The description is made from them.
	In, Out any
	// Stream methods answer with Call.Continue any number of times.
	Stream bool
	// Handle answers one call; its context ends when the caller hangs up or
	// the daemon stops. It runs in a goroutine of its connection and returns
	// what AsProblem makes of its error. Returning nil without a Reply answers
	// with an empty object.
	Handle func(ctx context.Context, call *Call) error
}

// Options of a Server.
type Options struct {
	// Product and Version are what GetInfo says: "kagimori", "0.1.0".
	Product, Version string
	// Access says who may do what.
	Access Access
}

// A Server answers calls. It has no state but its open connections.
type Server struct {
	opts         Options
	descriptions map[string]string // by interface
	interfaces   []string
	methods      map[string]Method // by full name
	log          *slog.Logger
	time         timing

	mu    sync.Mutex
	users map[uint32]int // guarded by mu: open connections by user
	open  int            // guarded by mu
	less  int            // guarded by mu: of open, those that are not admin's
}

// timing is frameTimeout and idleTimeout, shorter in tests.
type timing struct{ frame, idle time.Duration }

// New checks the tables; an error is a mistake in them.
func New(opts Options, log *slog.Logger, interfaces ...Interface) (*Server, error) {
	s := &Server{
		opts: opts, log: log, time: timing{frame: frameTimeout, idle: idleTimeout},
		descriptions: map[string]string{},
		methods:      map[string]Method{},
		users:        map[uint32]int{},
	}
	for _, i := range append(s.builtin(), interfaces...) {
		if err := s.add(i); err != nil {
			return nil, fmt.Errorf("control interface %s: %w", i.Name, err)
		}
	}
	return s, nil
}

func (s *Server) add(i Interface) error {
	if _, ok := s.descriptions[i.Name]; ok {
		return errors.New("given twice")
	}
	text, err := i.describe(errorsOf(i.Name)...)
	if err != nil {
		return err
	}
	s.descriptions[i.Name] = text
	s.interfaces = append(s.interfaces, i.Name)
	for _, m := range i.Methods {
		name := i.Name + "." + m.Name
		if _, ok := s.methods[name]; ok || m.Handle == nil {
			return fmt.Errorf("method %s is given twice or has no handler", m.Name)
		}
		s.methods[name] = m
	}
	return nil
}

// Serve answers callers of l until ctx ends, then lets running calls return
// (their contexts have ended) and closes l. It survives errors of Accept.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				c.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("control socket: %w", err)
		case err != nil: // out of descriptors, mostly: callers wait meanwhile
			s.log.Warn("control socket cannot accept", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(hangupPoll):
			}
			continue
		}
		uc, ok := c.(*net.UnixConn)
		if !ok {
			c.Close()
			return errors.New("control socket: not a unix socket")
		}
		wg.Go(func() { s.serveConn(ctx, uc) })
	}
}

// admit counts a connection, or says why not.
func (s *Server) admit(p Peer, class Class) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	const next = "close other sessions of this daemon, or try again in a moment"
	if s.open >= MaxConnections {
		return Problemf(Unavailable, next, "the daemon serves %d callers already", s.open)
	}
	if class != Admin && s.users[p.UID] >= MaxConnectionsPerUser {
		return Problemf(Unavailable, next, "the daemon serves %d callers of %s already", s.users[p.UID], p.Name())
	}
	if class != Admin {
		if s.less >= MaxLesser {
			return Problemf(Unavailable, next, "the daemon serves %d callers who are not administrators already", s.less)
		}
		s.less++
	}
	s.open++
	s.users[p.UID]++
	return nil
}

func (s *Server) release(p Peer, class Class) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open--
	if class != Admin {
		s.less--
	}
	if s.users[p.UID]--; s.users[p.UID] == 0 {
		delete(s.users, p.UID)
	}
}

// serveConn lives as long as one connection. One goroutine reads ahead, so
// that a hang-up is seen while a call runs; this one answers. [CTL-2, CTL-5]
func (s *Server) serveConn(ctx context.Context, uc *net.UnixConn) {
	defer uc.Close()
	p, err := peer(uc)
	if err != nil {
		s.log.Warn("control connection refused", "err", err)
		return
	}
	c := &conn{server: s, uc: uc, peer: p, class: s.opts.Access.Class(p.UID)}
	if err := s.admit(p, c.class); err != nil {
		s.log.Warn("control connection refused", "uid", p.UID, "err", err)
		c.fail(err)
		return
	}
	defer s.release(p, c.class)

	ctx, cancel := context.WithCancel(ctx)
	frames := make(chan []byte, maxWaiting)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer uc.Close()
	defer cancel()
	wg.Go(func() { c.readAhead(ctx, cancel, frames) })
	for {
		idle := time.NewTimer(s.time.idle)
		select {
		case <-ctx.Done():
		case <-idle.C:
		case frame, ok := <-frames:
			idle.Stop()
			if ok && c.answer(ctx, frame) {
				continue
			}
			if !ok && c.readErr != nil {
				c.fail(Problemf(BadInput, "", "%w", c.readErr))
			}
		}
		return
	}
}

// A conn is one caller.
type conn struct {
	server  *Server
	uc      *net.UnixConn
	peer    Peer
	class   Class
	reader  *Reader // of Key; nil until asked for
	readErr error   // why reading ended; set before frames is closed
}

// readAhead hands over messages until the caller stops sending, then watches
// for the hang-up.
func (c *conn) readAhead(ctx context.Context, cancel func(), frames chan<- []byte) {
	r := bufio.NewReader(c.uc)
	for {
		frame, err := readFrame(c.uc, r, c.server.time.frame)
		if err == nil {
			select {
			case frames <- frame:
				continue
			default:
				err = fmt.Errorf("%w: more than %d calls wait", errFrame, maxWaiting)
			}
		}
		switch {
		case errors.Is(err, errFrame):
			c.readErr = err
		case errors.Is(err, io.EOF): // perhaps only half closed: `printf … | socat`
		case isTimeout(err):
			c.readErr = fmt.Errorf("%w: not finished within %v", errFrame, c.server.time.frame)
		default:
			cancel()
		}
		if c.readErr != nil {
			c.server.log.Info("control caller breaks the rules", "uid", c.peer.UID, "pid", c.peer.PID, "err", c.readErr)
		}
		close(frames)
		break
	}
	poll := time.NewTicker(hangupPoll)
	defer poll.Stop()
	for !c.hungUp() {
		select {
		case <-ctx.Done():
			return
		case <-poll.C:
		}
	}
	cancel()
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// hungUp says whether the other end is closed both ways. After half a close
// (shutdown of writing) the caller still waits for his answer.
func (c *conn) hungUp() bool {
	raw, err := c.uc.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(fds, 0)
		gone = err == nil && n > 0 && fds[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
	})
	return gone || err != nil
}

// fail tells the caller why before the connection is closed.
func (c *conn) fail(err error) {
	p := AsProblem(err)
	data, err := marshalObject(p)
	if err == nil {
		err = writeFrame(c.uc, c.server.time.frame, reply{Error: problemError, Parameters: data})
	}
	if err != nil {
		c.server.log.Debug("control caller is gone", "uid", c.peer.UID, "err", err)
	}
}
