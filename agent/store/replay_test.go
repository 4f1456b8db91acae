package store

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Power cuts: what a daemon did to its files is replayed on a disk that loses
// whatever was not synced, and every disk that a power cut may leave is opened.

// A replay is what came of it.
type replay struct {
	images int
	bad    []string
}

// replayed cuts the power after event i of a trace each(i) times, and opens
// what is left. before is what was in the store when the trace began. It ends
// early at the third bad image.
func (d crashDaemon) replayed(t *testing.T, model *disk, before [maxWriters]int, events []event, each func(i int) int) (r replay) {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	images := quickDir(t)
	var acked [maxWriters]int
	for i, e := range events {
		if err := model.play(e); err != nil {
			t.Fatalf("event %d: %v", i, err)
		}
		if e.op == "ack" {
			w, n, err := acknowledgement(string(e.data))
			if err != nil {
				t.Fatal(err)
			}
			acked[w] = n
		}
		times := each(i)
		if model.unsynced() == 0 {
			times = min(times, 1)
		}
		for range times {
			image := crashDaemon{dir: filepath.Join(images, fmt.Sprint(r.images)), mode: d.mode}
			if err := os.Mkdir(image.dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := model.crash(image.dir, random); err != nil {
				t.Fatal(err)
			}
			r.images++
			if _, err := image.survived(before, acked); err != nil {
				r.bad = append(r.bad, fmt.Sprintf("power cut after event %d (%s), acknowledged %v: %v", i, e, acked, err))
			}
			if err := os.RemoveAll(image.dir); err != nil {
				t.Fatal(err)
			}
		}
		if len(r.bad) >= 3 {
			return r
		}
	}
	return r
}

// sameAs fails when the model did not end as the real disk did: then the trace
// was not understood, and nothing that it showed would count.
func (d *disk) sameAs(t *testing.T, dir string) {
	t.Helper()
	tree := readTree(t, dir)
	for name, n := range d.names {
		body, ok := tree[name]
		if !ok || n != nil && !bytes.Equal(n.live, body) {
			t.Errorf("the model has another %q than the disk", name)
		}
		delete(tree, name)
	}
	for name := range tree {
		t.Errorf("the model has no %q", name)
	}
}

// replayStory is a daemon that makes a store, stops, and starts again on it.
func replayStory(t *testing.T, mode string, commands int, each func(events []event) func(i int) int) (total replay) {
	t.Helper()
	d := crashDaemon{dir: quickDir(t), mode: mode}
	model := newDisk()
	var before [maxWriters]int
	for d.last = commands; d.last <= 2*commands; d.last += commands {
		events := d.trace(t)
		r := d.replayed(t, model, before, events, each(events))
		total.images += r.images
		t.Logf("%d disks of %d events", r.images, len(events))
		if total.bad = append(total.bad, r.bad...); len(total.bad) > 0 {
			return total
		}
		model.sameAs(t, d.dir)
		for w := range crashModes[mode].writers {
			before[w] = d.last
		}
	}
	return total
}

// everyCut cuts after each event so often, and often while a store is made or
// opened: before the first acknowledgement.
func everyCut(often, opening int) func([]event) func(int) int {
	return func(events []event) func(int) int {
		first := firstAck(events)
		return func(i int) int {
			if i <= first {
				return opening
			}
			return often
		}
	}
}

// someCuts cuts about n times at random events, and at each of the first ones.
func someCuts(n, opening int) func([]event) func(int) int {
	return func(events []event) func(int) int {
		first := firstAck(events)
		return func(i int) int {
			if i <= first {
				return opening
			}
			if rand.IntN(len(events)) < n {
				return 1
			}
			return 0
		}
	}
}

func firstAck(events []event) int {
	for i, e := range events {
		if e.op == "ack" {
			return i
		}
	}
	return len(events)
}

func TestPowerCutLosesNothing(t *testing.T) {
	began := time.Now()
	r := replayStory(t, "single", 60, someCuts(120, 2))
	t.Logf("%d disks opened, %v", r.images, time.Since(began).Round(time.Millisecond))
	report(t, r)
}

// The figure of research/tpm.md §4 and more: no image that does not open, none
// that lacks an acknowledged record.
func TestSoakPowerCut(t *testing.T) {
	if os.Getenv("KAGIMORI_SOAK") == "" {
		t.Skip("takes minutes: make soak")
	}
	for _, mode := range []string{"single", "update", "batch"} {
		t.Run(mode, func(t *testing.T) {
			began := time.Now()
			r := replayStory(t, mode, 400/crashModes[mode].writers, everyCut(3, 200))
			t.Logf("%d disks opened, %v", r.images, time.Since(began).Round(time.Millisecond))
			report(t, r)
		})
	}
}

func report(t *testing.T, r replay) {
	t.Helper()
	for _, bad := range r.bad {
		t.Error(bad)
	}
	if r.images < 200 {
		t.Errorf("only %d images: the test proves little", r.images)
	}
}

// The tests above must be able to fail: a store that does not wait for the disk
// loses records.
func TestPowerCutControl(t *testing.T) {
	r := replayStory(t, "nosync", 60, someCuts(2000, 4))
	if len(r.bad) == 0 {
		t.Fatalf("nothing is noticed on %d disks", r.images)
	}
	t.Logf("bad after %d disks: %s", r.images, r.bad[0])
}

// Every sync is needed and is seen: with any one kind of them gone from the
// trace, disks are left that lost something.
func TestEverySyncCounts(t *testing.T) {
	d := crashDaemon{dir: quickDir(t), mode: "single", last: 60}
	events := d.trace(t)
	kinds := map[string]bool{}
	for _, e := range events {
		if e.op == "sync" {
			kinds[e.path] = true
		}
	}
	delete(kinds, "store"+copySuffix+newSuffix) // the file alone is enough to go on: TestPowerCutLeavesACopy
	delete(kinds, "store"+copySuffix+gone)      // overwritten, not written
	for path := range kinds {
		t.Run(strings.ReplaceAll("sync "+path, "/", "_"), func(t *testing.T) {
			var left []event
			for _, e := range events {
				if e.op != "sync" || e.path != path {
					left = append(left, e)
				}
			}
			r := d.replayed(t, newDisk(), [maxWriters]int{}, left, someCuts(3000, 8)(left))
			if len(r.bad) == 0 {
				t.Fatalf("nothing is noticed on %d disks", r.images)
			}
			t.Logf("bad after %d disks: %s", r.images, r.bad[0])
		})
	}
}
