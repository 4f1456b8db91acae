package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
)

// More views at once than readers, all with statements that nobody has made
// yet: they must not wait for each other's connections.
func TestViewsDoNotWaitForEachOther(t *testing.T) {
	s := testStore(t)
	fleet(t, s, 3)
	var wg sync.WaitGroup
	for i := range 8 * maxReaders {
		wg.Go(func() {
			view(t, s, func(tx *Tx) error {
				for j := range 8 {
					var n int
					if err := tx.row(fmt.Sprintf(`SELECT %d + COUNT(*) FROM terminals`, i*100+j), nil, &n); err != nil {
						return err
					}
				}
				return nil
			})
		})
	}
	wg.Wait()
}

func TestStatementsAreBounded(t *testing.T) {
	s := testStore(t)
	update(t, s, func(tx *Tx) error {
		for i := range maxPrepared + 10 {
			var n int
			if err := tx.row(fmt.Sprintf(`SELECT %d`, i), nil, &n); err != nil || n != i {
				return fmt.Errorf("%d, %w", n, err)
			}
		}
		return tx.Audit("after", "", "")
	})
	if n := len(s.writer.prepared); n > maxPrepared {
		t.Errorf("%d statements", n)
	}
	if counted(t, s, "after") != 1 {
		t.Error("not written")
	}
}

func TestViewHonoursItsContext(t *testing.T) {
	s := testStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	view(t, s, func(tx *Tx) error { // inside: all readers but one are free
		cancel()
		return nil
	})
	if err := s.View(ctx, func(tx *Tx) error { return tx.row(`SELECT 1`, nil, new(int)) }); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	view(t, s, func(tx *Tx) error { return tx.row(`SELECT 1`, nil, new(int)) }) // nothing is left broken
}

func TestViewOnlyReads(t *testing.T) {
	s := testStore(t)
	err := s.View(t.Context(), func(tx *Tx) error { return tx.Audit("view", "", "") })
	if err == nil || counted(t, s, "view") != 0 {
		t.Errorf("written in a view: %v", err)
	}
}

// A view sees one state, whatever is written meanwhile.
func TestViewSeesOneState(t *testing.T) {
	s := testStore(t)
	view(t, s, func(tx *Tx) error {
		before, err := tx.AuditAfter(0, 10)
		if err != nil {
			return err
		}
		update(t, s, func(tx *Tx) error { return tx.Audit("meanwhile", "", "") })
		after, err := tx.AuditAfter(0, 10)
		if len(before) != len(after) {
			t.Errorf("%d entries, then %d", len(before), len(after))
		}
		return err
	})
}

func TestClosedStoreSaysSo(t *testing.T) {
	s := testStore(t)
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	if err := s.View(t.Context(), func(*Tx) error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
}
