package audit

import (
	"errors"
	"testing"

	"github.com/kagimori/kagimori/agent/store"
)

// prune removes one block, if it is due.
func (j *journal) prune() bool {
	j.Helper()
	var base Statement
	var due bool
	j.update(func(tx *store.Tx) (err error) {
		base, due, err = Old(tx)
		return err
	})
	if !due {
		return false
	}
	base.Device = j.device
	a, err := Sign(base, j.identity)
	if err != nil {
		j.Fatal(err)
	}
	j.update(func(tx *store.Tx) error { return Prune(tx, a) })
	return true
}

func TestPruning(t *testing.T) {
	j := newJournal(t)
	j.append(Block / 2)
	j.change()
	j.append(Kept + Block/2 - 1)
	if j.prune() {
		t.Error("pruned too early")
	}
	j.change()
	j.append(1)
	if !j.prune() || j.prune() {
		t.Error("not one block was pruned")
	}
	r := j.verify()
	if !r.Sound || r.Entries != Kept || r.First != Block+1 || r.Anchors != 1 || len(r.Gaps) > 0 {
		t.Errorf("%+v", r)
	}
	j.append(Block)
	if !j.prune() {
		t.Error("the second block was not pruned")
	}
	if r := j.verify(); !r.Sound || r.Entries != Kept || r.First != 2*Block+1 {
		t.Errorf("%+v", r)
	}
	for name, tamper := range map[string]func(*store.Tx) error{
		"no base": func(tx *store.Tx) error { return tx.Delete(bucketState, keyBase) },
		"first":   func(tx *store.Tx) error { return tx.Delete(bucketEntries, key(2*Block+1)) },
		"a base of one's own": func(tx *store.Tx) error {
			var base Anchor
			_, err := tx.Get(bucketState, keyBase, &base)
			base.Statement.Seq++
			return errors.Join(err, tx.Delete(bucketEntries, key(2*Block+1)), tx.Put(bucketState, keyBase, &base))
		},
		"an entry back": func(tx *store.Tx) error { return tx.Put(bucketEntries, key(1), &Entry{Seq: 1}) },
	} {
		undo := errors.New("undo")
		err := j.store.Update(func(tx *store.Tx) error {
			if err := tamper(tx); err != nil {
				return err
			}
			r, err := Verify(tx, j.device, j.identity.Public(), j.epoch)
			if err == nil && r.Sound {
				t.Errorf("%s: not noticed", name)
			}
			return errors.Join(err, undo)
		})
		if !errors.Is(err, undo) {
			t.Error(name, err)
		}
	}
}

func TestListFilters(t *testing.T) {
	j := newJournal(t)
	j.update(func(tx *store.Tx) error {
		return errors.Join(Append(tx, 100, Enrolled, "", ""), Append(tx, 0, Installed, "", ""), Append(tx, 200, Enrolled, "", ""), Append(tx, 0, Erased, "", ""))
	})
	for _, c := range []struct {
		f    Filter
		want []uint64
	}{
		{Filter{}, []uint64{1, 2, 3, 4}},
		{Filter{Since: 150}, []uint64{3, 4}},
		{Filter{Kind: Enrolled}, []uint64{1, 3}},
		{Filter{Since: 150, Kind: Enrolled}, []uint64{3}},
		{Filter{Since: 300}, nil},
	} {
		var got []uint64
		j.update(func(tx *store.Tx) error {
			return List(tx, c.f, func(l Line) error { got = append(got, l.Seq); return nil })
		})
		if len(got) != len(c.want) {
			t.Errorf("%+v: %v", c.f, got)
		}
	}
}

func TestLongTextIsCut(t *testing.T) {
	j := newJournal(t)
	long := string(make([]byte, 300)) + "é\xff"
	j.update(func(tx *store.Tx) error {
		return Append(tx, 0, Erased, long, long[:maxDetail-1]+"é")
	})
	if e := j.entries()[0]; len(e.Subject) != maxSubject || len(e.Detail) != maxDetail-1 {
		t.Errorf("%d, %d", len(e.Subject), len(e.Detail))
	}
}
