package server

import (
	"context"
	"errors"
	"net/http"
	"sync"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport/control"
)

// The watchdog is fed only while every part of the server does its work: each
// is asked for some, as its users ask. What they may fail at, such as a write to
// a full disk, is not the watchdog's: a new start would not help.

// watch asks every part again and again until ctx ends.
func (s *Server) watch(ctx context.Context, l Listeners) {
	var wg sync.WaitGroup
	for part, ask := range map[string]func(context.Context) error{
		"mqtt":        func(ctx context.Context) error { return s.broker.Probe(ctx, l.MQTT.Addr().String()) },
		"http":        func(ctx context.Context) error { return askHTTP(ctx, l.HTTP.Addr().String()) },
		"control":     func(ctx context.Context) error { return askControl(ctx, l.Control.Addr().String()) },
		"store":       s.askStore,
		"maintenance": s.askMaintenance,
	} {
		wg.Go(func() { s.feed(ctx, part, ask) })
	}
	wg.Wait()
}

// feed beats for one part.
func (s *Server) feed(ctx context.Context, part string, ask func(context.Context) error) {
	loop := s.cfg.Watchdog.Loop(part)
	defer loop.End()
	tick, stop := s.cfg.Watchdog.Tick()
	defer stop()
	for {
		limited, cancel := context.WithTimeout(ctx, s.cfg.Watchdog.Every())
		err := ask(limited)
		cancel()
		if err == nil {
			loop.Beat()
		} else if ctx.Err() == nil {
			s.log.Warn("a part of the server does not answer", "part", part, "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
	}
}

// askHTTP takes any answer for one.
func askHTTP(ctx context.Context, address string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
	if err != nil {
		return err
	}
	t := &http.Transport{DisableKeepAlives: true} // no proxy, a new connection each time
	answer, err := t.RoundTrip(r)
	if err != nil {
		return err
	}
	return answer.Body.Close()
}

func askControl(ctx context.Context, socket string) error {
	c, err := control.Dial(ctx, socket)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Call(ctx, "org.varlink.service.GetInfo", nil, nil)
}

// askStore has something written. A writer that says that it cannot is alive.
func (s *Server) askStore(ctx context.Context) error {
	if err := s.heartbeat(ctx); !errors.Is(err, store.ErrWrite) {
		return err
	}
	return nil
}

func (s *Server) askMaintenance(ctx context.Context) error {
	select {
	case s.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
