package broker

// Which connections there are. Every connection enters as pending; admit.go
// moves it to live under its segment; leave takes it out when all is over.

import (
	"context"
	"fmt"
	"sync"
	"time"
)

type links struct {
	left chan struct{} // holds one token after a connection ceased to be pending

	mu        sync.Mutex // guards all below
	pending   map[*link]struct{}
	live      map[string]*link // by segment, until its Disconnected has returned
	claims    map[string]claims
	enrolling int
	draining  bool
}

// claims are the connections that want to be a segment's live one.
type claims struct {
	waiting int
	newest  uint64 // session
}

func newLinks() links {
	return links{
		left:    make(chan struct{}, 1),
		pending: make(map[*link]struct{}),
		live:    make(map[string]*link),
		claims:  make(map[string]claims),
	}
}

// enter makes l pending. When too many are, the one that has been idle for
// longest goes, so that silent connections cannot keep others out; if all are
// busy the caller waits, and with it whoever is in the kernel's accept queue.
func (s *links) enter(ctx context.Context, l *link) error {
	for {
		s.mu.Lock()
		if len(s.pending) < maxPending || s.dropIdle(time.Now()) {
			s.pending[l] = struct{}{}
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		select {
		case <-s.left:
		case <-time.After(patience / 4): // somebody may have become idle
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *links) dropIdle(now time.Time) bool {
	var idlest *link
	longest := patience
	for l := range s.pending {
		if idle := l.wire.idle(now); idle >= longest {
			idlest, longest = l, idle
		}
	}
	if idlest == nil {
		return false
	}
	delete(s.pending, idlest)
	idlest.end(fmt.Errorf("idle before CONNECT while others wait: %w", errBusy))
	return true
}

// named notes the client id of a pending connection, so that kick finds it
// while Authenticate runs.
func (s *links) named(l *link, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.peer.ID = id
}

// claim makes l the live connection of its segment, unless there is a newer one.
// An older one is ended, and claim waits until its Disconnected has returned.
func (s *links) claim(l *link) error {
	s.compete(l.peer, 1)
	defer s.compete(l.peer, -1)
	late := time.NewTimer(evictTime)
	defer late.Stop()
	for {
		old, err := s.try(l)
		if old == nil || err != nil {
			return err
		}
		old.end(ErrEvicted)
		select {
		case <-old.done:
		case <-l.ctx.Done():
		case <-late.C:
			return fmt.Errorf("the older connection has not ended: %w", errBusy)
		}
	}
}

func (s *links) compete(p Peer, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.claims[p.Segment]
	c.waiting += n
	c.newest = max(c.newest, p.Session)
	if s.claims[p.Segment] = c; c.waiting == 0 {
		delete(s.claims, p.Segment)
	}
}

// try makes l live if it may be and no other is; else it returns the other.
func (s *links) try(l *link) (old *link, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	segment := l.peer.Segment
	old = s.live[segment]
	switch err := l.cause(); {
	case err != nil: // kicked or timed out meanwhile
		return nil, err
	case s.draining:
		return nil, ErrShutdown
	case old != nil && old.peer.Session > l.peer.Session, s.claims[segment].newest > l.peer.Session:
		return nil, ErrEvicted
	case old != nil:
		return old, nil
	case l.peer.Enroll && s.enrolling >= maxEnrolling:
		return nil, fmt.Errorf("%d clients are enrolling: %w", s.enrolling, errBusy)
	}
	s.live[segment] = l
	if l.peer.Enroll {
		s.enrolling++
	}
	s.unpend(l)
	return nil, nil
}

// leave forgets l.
func (s *links) leave(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unpend(l)
	if s.live[l.peer.Segment] == l {
		delete(s.live, l.peer.Segment)
		if l.peer.Enroll {
			s.enrolling--
		}
	}
}

// unpend expects mu to be held.
func (s *links) unpend(l *link) {
	delete(s.pending, l)
	select {
	case s.left <- struct{}{}:
	default:
	}
}

// get finds the live connection of a segment, nil if there is none.
func (s *links) get(segment string) *link {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.live[segment]; l != nil && l.cause() == nil {
		return l
	}
	return nil
}

func (s *links) kick(segment string, why error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := false
	if l := s.live[segment]; l != nil {
		found = l.end(why)
	}
	for l := range s.pending {
		if l.peer.ID == segment {
			found = l.end(why) || found
		}
	}
	return found
}

// drain stops reading: a Receive that runs may finish and be acknowledged.
func (s *links) drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
	for _, l := range s.live {
		l.drain()
	}
	for l := range s.pending {
		l.end(ErrShutdown)
	}
}

// end closes everything.
func (s *links) end(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.live {
		l.end(why)
	}
	for l := range s.pending {
		l.end(why)
	}
}

func (s *links) count() (connected, pending, enrolling int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.live), len(s.pending), s.enrolling
}
