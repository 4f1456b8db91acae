package audit

import (
	"slices"
	"testing"

	"github.com/kagimori/kagimori/agent/store"
)

// Times at which nothing was signed: what shows of a log that was cut back or
// replaced, and what is none.

// The anchors went with the entries: the store's epoch, which key storage
// counts, says that some are missing, also once a daemon has run again.
func TestAnchorsRemoved(t *testing.T) {
	j := newJournal(t)
	for range 4 {
		j.append(1)
		j.change()
	}
	j.rewrite(j.entries()[:2])
	j.update(func(tx *store.Tx) error {
		for _, k := range j.keys(tx, bucketAnchors)[2:] {
			if err := tx.Delete(bucketAnchors, k); err != nil {
				return err
			}
		}
		return nil
	})
	want := Gap{After: 3, Before: 5}
	if r := j.verify(); !r.Sound || len(r.Gaps) != 1 || r.Gaps[0] != want {
		t.Errorf("%+v", r)
	}
	since := j.epoch
	j.append(1)
	j.epoch++
	j.anchor(j.identity, since)
	if r := j.verify(); len(r.Gaps) != 1 || r.Gaps[0] != want {
		t.Errorf("a new anchor hides it: %+v", r)
	}
}

// Somebody with the store key writes another log, without any anchor: that
// nothing was signed for is what shows, also once the daemon has signed again.
func TestWholeLogReplaced(t *testing.T) {
	j := newJournal(t)
	for range young + 2 {
		j.append(1)
		j.change()
	}
	if r := j.verify(); len(r.Gaps) > 0 {
		t.Fatalf("%+v", r)
	}
	j.rewrite(j.entries()[:1])
	j.update(func(tx *store.Tx) error {
		for _, k := range j.keys(tx, bucketAnchors) {
			if err := tx.Delete(bucketAnchors, k); err != nil {
				return err
			}
		}
		return nil
	})
	want := []Gap{{After: 0, Before: j.epoch}}
	if r := j.verify(); !slices.Equal(r.Gaps, want) {
		t.Errorf("%+v", r)
	}
	j.anchor(j.identity, j.epoch)
	if r := j.verify(); !slices.Equal(r.Gaps, want) {
		t.Errorf("a new anchor hides it: %+v", r)
	}
}

// The power failed between a key change and its anchor: that is no gap.
func TestAnchorLags(t *testing.T) {
	j := newJournal(t)
	j.append(2)
	j.change()
	j.append(1)
	j.epoch++
	if r := j.verify(); !r.Sound || len(r.Gaps) > 0 || r.Epoch != 2 || r.StoreEpoch != 3 || r.Unanchored != 1 {
		t.Errorf("%+v", r)
	}
	j.anchor(j.identity, 3)
	if r := j.verify(); !r.Sound || len(r.Gaps) > 0 || r.Unanchored != 0 {
		t.Errorf("%+v", r)
	}
}

// Epochs that the store lost, which the log tells of: the gap is there and is
// explained, and one that comes later is not.
func TestGapAfterLoss(t *testing.T) {
	j := newJournal(t)
	j.append(1)
	j.change()
	j.epoch += 4
	j.update(func(tx *store.Tx) error { return Append(tx, 0, FellBack, "incarnation 1", "") })
	want := []Gap{{After: 2, Before: 6, Loss: true}}
	if r := j.verify(); !r.Sound || !slices.Equal(r.Gaps, want) {
		t.Errorf("before it is anchored: %+v", r)
	}
	j.anchor(j.identity, j.epoch)
	j.append(1)
	j.epoch += 4
	j.anchor(j.identity, j.epoch)
	if r := j.verify(); !r.Sound || !slices.Equal(r.Gaps, append(want, Gap{After: 6, Before: 10})) {
		t.Errorf("%+v", r)
	}
}
