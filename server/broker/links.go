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
	enrolling int
	draining  bool
}

func newLinks() links {
	return links{
		left:    make(chan struct{}, 1),
		pending: make(map[*link]struct{}),
		live:    make(map[string]*link),
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

// claim makes l the live connection of its segment. An older one is ended, and
// claim waits until its Disconnected has returned.
func (s *links) claim(l *link) error {
	segment := l.peer.Segment
	late := time.NewTimer(evictTime)
	defer late.Stop()
	for {
		s.mu.Lock()
		old := s.live[segment]
		err := l.cause()
		switch {
		case err != nil: // kicked or timed out meanwhile
		case s.draining:
			err = ErrShutdown
		case old != nil && old.peer.Session > l.peer.Session:
			err = ErrEvicted
		case old == nil && l.peer.Enroll && s.enrolling >= maxEnrolling:
			err = fmt.Errorf("%d clients are enrolling: %w", s.enrolling, errBusy)
		case old == nil:
			s.live[segment] = l
			if l.peer.Enroll {
				s.enrolling++
			}
			s.unpend(l)
		}
		s.mu.Unlock()
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
