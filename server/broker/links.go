package broker

// Which connections there are. Every connection enters as pending (pending.go);
// admit.go moves it to live under its segment; leave takes it out when all is over.

import (
	"fmt"
	"net/netip"
	"sync"
	"time"
)

type links struct {
	mu        sync.Mutex // guards all below
	pending   pending
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
		pending: pending{by: make(map[netip.Prefix][]*link)},
		live:    make(map[string]*link),
		claims:  make(map[string]claims),
	}
}

// enter makes l pending. It never waits: when too many are pending another one
// is ended for it, which enter returns, or nil.
func (s *links) enter(l *link) (displaced *link) {
	s.mu.Lock()
	displaced = s.pending.add(l)
	s.mu.Unlock()
	if displaced != nil {
		displaced.end(errDisplaced)
	}
	return displaced
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
	s.pending.remove(l)
	return nil, nil
}

// leave forgets l.
func (s *links) leave(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending.remove(l)
	if s.live[l.peer.Segment] == l {
		delete(s.live, l.peer.Segment)
		if l.peer.Enroll {
			s.enrolling--
		}
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
	s.pending.each(func(l *link) {
		if l.peer.ID == segment {
			found = l.end(why) || found
		}
	})
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
	s.pending.each(func(l *link) { l.end(ErrShutdown) })
}

// end closes everything.
func (s *links) end(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.live {
		l.end(why)
	}
	s.pending.each(func(l *link) { l.end(why) })
}

func (s *links) count() (connected, pending, enrolling int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.live), s.pending.total, s.enrolling
}
