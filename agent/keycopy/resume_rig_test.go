package keycopy

// The rig for transactions that outlive a connection.

import (
	"bytes"
	"context"
	"io"
	"testing"

	"github.com/kagimori/kagimori/transport"
)

// moving makes what is held move, every second key only if mixed.
func (r *rig) moving(mixed bool) {
	for i := range r.records {
		if !mixed || i%2 == 0 {
			r.records[i].Transfer = transport.TransferMove
		}
	}
}

// txn is the Target's transaction as it is on record.
func (r *rig) txn(t testing.TB) *Transaction {
	t.Helper()
	r.targetLedger.mu.Lock()
	defer r.targetLedger.mu.Unlock()
	for _, deal := range r.targetLedger.journal {
		return deal
	}
	t.Fatal("the Target has no transaction on record")
	return nil
}

// source's is the same at the Source; nil if it has none.
func (r *rig) offered() *Transaction {
	r.sourceLedger.mu.Lock()
	defer r.sourceLedger.mu.Unlock()
	for _, deal := range r.sourceLedger.journal {
		return deal
	}
	return nil
}

// resumeOnce goes on with the transaction over one connection.
func (r *rig) resumeOnce(t testing.TB, s *Source, change alter) (sourceErr, targetErr error) {
	t.Helper()
	sc, tc := newChannels()
	sourceErr, targetErr = r.pumpResume(t.Context(), s, r.txn(t).ID, sc, tc, change)
	r.wantLentWiped(t)
	return sourceErr, targetErr
}

func (r *rig) pumpResume(ctx context.Context, s *Source, id transport.ID, sc, tc transport.KeycopyChannel, change alter) (sourceErr, targetErr error) {
	run := s.newRun(sc)
	g, targetErr := (&Target{cfg: r.targetConfig}).resume(ctx, tc, id)
	defer g.end()
	if targetErr == nil {
		sourceErr, targetErr = pumpRuns(ctx, run, g, change)
	} else {
		sourceErr = io.ErrUnexpectedEOF
	}
	run.end(sourceErr)
	return sourceErr, targetErr
}

// neverTwo is a hook that finds what moves in use at both ends, or at none for
// good.
func (r *rig) neverTwo(t testing.TB) alter {
	return func(h hop) transport.KeycopyFrame {
		r.judgeKeys(t, h.frame.Type.String())
		return h.frame
	}
}

func (r *rig) judgeKeys(t testing.TB, when string) {
	t.Helper()
	moves := map[transport.Name]bool{}
	if deal := r.offered(); deal != nil {
		for _, e := range deal.Items {
			moves[e.ID] = e.Transfer == transport.TransferMove
		}
	}
	for _, c := range r.records {
		source, target := r.sourceLedger.uses(c.ID), r.targetLedger.uses(c.ID)
		if moves[c.ID] && source && target {
			t.Errorf("at %s both ends use %s", when, c.ID)
		}
		if !moves[c.ID] && !source {
			t.Errorf("at %s the Source has lost %s", when, c.ID)
		}
		if r.sourceLedger.gone[c.ID] && !target {
			t.Errorf("at %s nobody uses %s", when, c.ID)
		}
	}
}

// wantLentWiped finds each resume key that a journal gave out empty.
func (r *rig) wantLentWiped(t testing.TB) {
	t.Helper()
	for name, l := range map[string]*ledger{"source": r.sourceLedger, "target": r.targetLedger} {
		for i, key := range l.lent {
			if !bytes.Equal(key, make([]byte, len(key))) {
				t.Errorf("%s: resume key %d is not wiped", name, i)
			}
		}
	}
}

// wantFinished finds both ends done, with the keys where they belong.
func (r *rig) wantFinished(t testing.TB) {
	t.Helper()
	s, g := r.offered(), r.txn(t)
	if s.Phase != transport.KeycopyDone || g.Phase != transport.KeycopyClosed || len(g.Resume) != 0 {
		t.Errorf("%s and %s", s.Phase, g.Phase)
	}
	for _, e := range s.Items {
		if moves := e.Transfer == transport.TransferMove; r.sourceLedger.uses(e.ID) == moves || !r.targetLedger.uses(e.ID) {
			t.Errorf("%s %s: in use at the Source %v, at the Target %v", e.Transfer, e.ID, r.sourceLedger.uses(e.ID), r.targetLedger.uses(e.ID))
		}
	}
	if len(s.Taken()) != len(s.Items) || len(r.targetLedger.received) != len(s.Items) {
		t.Errorf("%d taken, %d stored of %d", len(s.Taken()), len(r.targetLedger.received), len(s.Items))
	}
}
