package agent

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/kagimori/kagimori/agent/doctor"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/open"
)

func TestTurns(t *testing.T) {
	var turns turns[int64]
	var changed, found atomic.Int64
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for range 20 {
				least := changed.Add(1)
				n, err := turns.get(t.Context(), func(context.Context) (int64, error) {
					found.Add(1)
					return changed.Load(), nil
				})
				if err != nil || n < least {
					t.Errorf("told %d, %d was true when it asked (%v)", n, least, err)
				}
			}
		})
	}
	wg.Wait()
	bad := errors.New("bad")
	for range 2 { // an error is everybody's own
		before := found.Load()
		_, err := turns.get(t.Context(), func(context.Context) (int64, error) { found.Add(1); return 0, bad })
		if !errors.Is(err, bad) || found.Load() != before+1 {
			t.Error(err)
		}
	}
	<-turns.turn
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := turns.get(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Local users who may only look do not have the chip work without end.
func TestLookersShareTheChip(t *testing.T) {
	s, chip := newStage(t, open.KindTPM)
	bus := hsmtest.NewBus(t, chip.Socket, func(command []byte, next func([]byte) []byte) []byte { return next(command) })
	s.where.Path = bus.Socket
	s.start()
	s.enroll()
	count := func(do func()) int {
		before := len(bus.Commands())
		do()
		return len(bus.Commands()) - before
	}
	one := count(func() { s.a.Doctor(t.Context()) })
	all := count(func() {
		var wg sync.WaitGroup
		ready := make(chan struct{})
		for range 64 {
			wg.Go(func() {
				<-ready
				if r := s.a.Doctor(t.Context()); r.Has(doctor.ChipSilent) {
					t.Errorf("%+v", r)
				}
				if h, err := s.a.health(t.Context()); err != nil || h.Chip == nil {
					t.Errorf("%+v, %v", h, err)
				}
			})
		}
		close(ready)
		wg.Wait()
	})
	if one == 0 || all > 24*one {
		t.Errorf("%d commands for 64 at once, %d for one (%s)", all, one, filepath.Base(bus.Socket))
	}
}
