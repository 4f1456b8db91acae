package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// Power cuts after which the file does not come back: the second copy alone must
// do, at whatever moment the power was cut. It opens, is sound, and is some state
// that was there; that it is one of before the last changes is what a fall back
// is. Leaving out the sync of the copy must be noticed.

func TestPowerCutLeavesACopy(t *testing.T) {
	d := crashDaemon{dir: quickDir(t), mode: "single", last: 40}
	events := d.trace(t)
	opened, bad := d.copiesReplayed(t, events)
	if bad != nil {
		t.Error(bad)
	}
	if opened < 100 {
		t.Errorf("only %d copies opened: the test proves little", opened)
	}
	var unsynced []event
	for _, e := range events {
		if e.op != "sync" || e.path != "store"+copySuffix+newSuffix {
			unsynced = append(unsynced, e)
		}
	}
	if n, bad := d.copiesReplayed(t, unsynced); bad == nil {
		t.Errorf("a copy that is not synced: nothing is noticed in %d", n)
	} else {
		t.Logf("not synced: %v", bad)
	}
}

func (d crashDaemon) copiesReplayed(t *testing.T, events []event) (opened int, bad error) {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	model, images := newDisk(), quickDir(t)
	for i, e := range events {
		if err := model.play(e); err != nil {
			t.Fatal(err)
		}
		if random.IntN(3) != 0 {
			continue
		}
		image := crashDaemon{dir: filepath.Join(images, fmt.Sprint(i)), mode: d.mode}
		if err := errors.Join(os.Mkdir(image.dir, 0o700), model.crash(image.dir, random)); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(crashConfig(image.dir).Path + copySuffix); err != nil {
			continue // there was no key change yet
		}
		if err := os.Remove(crashConfig(image.dir).Path); err != nil {
			t.Fatal(err)
		}
		opened++
		if err := image.restored(); err != nil {
			return opened, fmt.Errorf("after event %d (%s): %w", i, e, err)
		}
		os.RemoveAll(image.dir)
	}
	return opened, nil
}

// restored opens a store whose file is gone.
func (d crashDaemon) restored() error {
	s, m, err := d.open(context.Background())
	if err != nil {
		return err
	}
	defer m.Close()
	defer s.Close()
	if st := s.State(); st.Fallback == nil || st.Incarnation != 1 || !st.CopyFresh || st.Unfinished != "" || *st.Counter != st.Epoch {
		return fmt.Errorf("it went on as %+v", st)
	}
	_, err = judge(s)
	return errors.Join(err, s.Check(context.Background()))
}
