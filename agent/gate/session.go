package gate

import (
	"context"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// A session is one connection of a terminal, under its TLS. It is in the
// registry from accept to close, whoever closes it: so it can be dropped at
// any time, also after a protocol upgrade has taken it from the HTTP server.
type session struct {
	net.Conn
	registry *sessions
	opened   time.Time
	// who is written in the handshake and read only after it.
	who identity
	// passed says that a request went to the service.
	passed atomic.Bool
	// stalled says that a request's body stood still. The connection ends then.
	stalled atomic.Bool
	once    sync.Once
	err     error // of closing; guarded by once
}

// Write allows the other side stallTime to take each record.
func (s *session) Write(b []byte) (int, error) {
	if err := s.Conn.SetWriteDeadline(time.Now().Add(stallTime)); err != nil {
		return 0, err
	}
	return s.Conn.Write(b)
}

// Close takes the session out of the registry.
func (s *session) Close() error {
	s.once.Do(func() {
		s.err = s.Conn.Close()
		s.registry.leave(s)
	})
	return s.err
}

// drop ends the connection at once. What is still in the kernel's buffers does
// not reach the terminal.
func (s *session) drop() {
	if c, ok := s.Conn.(interface{ SetLinger(seconds int) error }); ok {
		c.SetLinger(0)
	}
	s.Close()
}

// sessions is the registry.
type sessions struct {
	max, perCredential int

	mu      sync.Mutex
	pending []*session             // guarded by mu: not admitted yet, oldest first
	live    map[*session]struct{}  // guarded by mu: admitted
	by      map[transport.Name]int // guarded by mu: admitted, by credential
	open    sync.WaitGroup         // one for each session
}

func newSessions(max, perCredential int) *sessions {
	return &sessions{max: max, perCredential: perCredential, live: map[*session]struct{}{}, by: map[transport.Name]int{}}
}

// enter registers a connection that has proved nothing yet. crowded is one
// that has to go for it: the oldest of its kind.
func (r *sessions) enter(c net.Conn) (s, crowded *session) {
	s = &session{Conn: c, registry: r, opened: time.Now()}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open.Add(1)
	r.pending = append(r.pending, s)
	if len(r.pending) > maxPending {
		crowded = r.pending[0]
	}
	return s, crowded
}

// admit moves a session to those that have proved who they are. It returns
// false when there is no room, or when the session is closed already.
func (r *sessions) admit(s *session) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.Index(r.pending, s)
	if i < 0 || len(r.live) >= r.max || r.by[s.who.credential] >= r.perCredential {
		return false
	}
	r.pending = slices.Delete(r.pending, i, i+1)
	r.live[s] = struct{}{}
	r.by[s.who.credential]++
	return true
}

func (r *sessions) leave(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open.Done()
	if i := slices.Index(r.pending, s); i >= 0 {
		r.pending = slices.Delete(r.pending, i, i+1)
		return
	}
	if _, ok := r.live[s]; !ok {
		return
	}
	delete(r.live, s)
	if r.by[s.who.credential]--; r.by[s.who.credential] == 0 {
		delete(r.by, s.who.credential)
	}
}

// admitted lists the live sessions.
func (r *sessions) admitted() []*session {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]*session, 0, len(r.live))
	for s := range r.live {
		list = append(list, s)
	}
	return list
}

func (r *sessions) dropAll() {
	r.mu.Lock()
	all := slices.Clone(r.pending)
	for s := range r.live {
		all = append(all, s)
	}
	r.mu.Unlock()
	for _, s := range all {
		s.drop()
	}
}

// wait returns when every session is closed.
func (r *sessions) wait() { r.open.Wait() }

// sweep drops the live connections of terminals that may no longer be here.
// When the gate is the reason, those that never passed a request may stay to
// be told so. [GATE-2]
func (g *Gate) sweep() {
	now := g.now()
	for _, s := range g.sessions.admitted() {
		reason := g.judge(s.who, now)
		if reason == Admitted || passing(reason) && !s.passed.Load() {
			continue
		}
		g.counts.refused(context.Background(), reason, "connection dropped", s.RemoteAddr(), s.who, nil)
		s.drop()
	}
}
