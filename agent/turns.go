package agent

import (
	"context"
	"sync"
	"time"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/doctor"
	"github.com/kagimori/kagimori/hsm"
)

// What every local user may ask, and what costs the chip something to answer, is
// found out for one caller at a time, and for all who wait by then: however many
// ask, links and programs find the chip free in between.

// looks are these questions.
type looks struct {
	doctor turns[*doctor.Report]
	health turns[hsm.Health]
	boot   turns[*BootStatus]
	audit  turns[*audit.Report]
}

// turns hands out one answer after the other. The zero value is ready.
type turns[T any] struct {
	once sync.Once
	turn chan struct{} // holds one while nobody is finding out

	began time.Time // guarded by turn: when the last answer was begun to be found
	last  T         // guarded by turn
}

// get gives what find found, which began after get was called.
func (t *turns[T]) get(ctx context.Context, find func(context.Context) (T, error)) (T, error) {
	t.once.Do(func() { t.turn = make(chan struct{}, 1); t.turn <- struct{}{} })
	came := time.Now()
	select {
	case <-t.turn:
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
	defer func() { t.turn <- struct{}{} }()
	if t.began.After(came) {
		return t.last, nil
	}
	began := time.Now()
	found, err := find(ctx)
	if err == nil {
		t.began, t.last = began, found
	}
	return found, err
}
