package keycopy

// Which scripts the simulator runs: a fault of each kind before every operation,
// then two faults at every two operations, of which `go test` takes a fixed part
// and the soak all.

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/transport"
)

var replay = flag.String("script", "", "run one script of the simulator: what a failing test printed")

// simScripts are the runs that are gone through with faults.
func simScripts() (all []script) {
	for _, mode := range []transport.KeycopyMode{transport.KeycopyPAKE, transport.KeycopyDirect, transport.KeycopyKEK} {
		for _, items := range []string{"copy", "move", "mixed"} {
			all = append(all, script{mode: mode, items: items, identity: mode != transport.KeycopyPAKE, seed: 1})
		}
	}
	return append(all,
		script{mode: transport.KeycopyPAKE, items: "move", identity: true, refused: true, seed: 2},
		script{mode: transport.KeycopyPAKE, items: "forced", wrong: 1, seed: 3})
}

// name is the script's name as a subtest.
func (s script) name() string {
	n := fmt.Sprintf("%s-%s", s.mode, s.items)
	if s.refused {
		n += "-refused"
	}
	if s.wrong > 0 {
		n += "-wrong"
	}
	return n
}

// simulate runs s, and reports what does not hold with all that is needed to
// see it again.
func simulate(t testing.TB, s script, m mutant) *world {
	t.Helper()
	w := newWorld(s, m)
	w.play()
	if len(w.violations) > 0 {
		again := newWorld(s, m)
		again.tracing = true
		again.play()
		v := w.violations[0]
		if n := slices.IndexFunc(again.trace, func(line string) bool { return strings.Contains(line, "VIOLATION") }); n >= 0 {
			again.trace = again.trace[:n+1]
		}
		t.Errorf("%s: %s\nscript: %s\nagain: go test ./agent/keycopy -run TestSimScript -script '%s'\n%s", v.property, v.detail, s, s, strings.Join(again.trace, "\n"))
	}
	return w
}

// TestSimScript replays one script, and prints every operation of it.
func TestSimScript(t *testing.T) {
	if *replay == "" {
		t.Skip("for -script")
	}
	s, err := parseScript(*replay)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(s, mutant{})
	w.tracing = true
	w.play()
	t.Log("\n" + strings.Join(w.trace, "\n"))
	for _, v := range w.violations {
		t.Errorf("%s: %s", v.property, v.detail)
	}
}

func TestSimScriptRoundTrip(t *testing.T) {
	s := script{mode: transport.KeycopyKEK, items: "mixed", identity: true, wrong: 1, found: true, seed: 7, faults: []fault{{3, cutSource, tearMiddle}, {40, dropLink, 0}}}
	got, err := parseScript(s.String())
	if err != nil || got.String() != s.String() {
		t.Errorf("%q became %q (%v)", s, got, err)
	}
}

// faultsAt are the faults that make a difference before operation at of w,
// which ran without them.
func faultsAt(w *world, at int) (all []fault) {
	what := w.ops[at-1]
	for _, kind := range []rune{cutSource, cutTarget} {
		if who, what, _ := strings.Cut(what, " "); strings.HasPrefix(what, "sync") && (who == "Source") == (kind == cutSource) {
			for _, keep := range tears {
				all = append(all, fault{at, kind, keep})
			}
			continue
		}
		all = append(all, fault{at, kind, tearNone})
	}
	for _, kind := range []rune{dropLink, dropArrives, dropHalf} {
		all = append(all, fault{at, kind, 0})
	}
	return all
}

// rareFaults are tried alone, and first of two.
func rareFaults(w *world, at int) (all []fault) {
	for _, kind := range []rune{expireCode, abandon, offerAnew} {
		all = append(all, fault{at, kind, 0})
	}
	if strings.Contains(w.ops[at-1], " write") {
		all = append(all, fault{at, failWrite, 0})
	}
	return all
}

// A tally is what a set of runs came to.
type tally struct {
	runs   int
	tuples map[tuple]bool
}

func (c *tally) add(w *world) {
	c.runs++
	maps.Copy(c.tuples, w.tuples)
}

// A stride is which part of the runs is made: every alone-th with one fault,
// every pairs-th with two.
type stride struct{ alone, pairs int }

// rare is for pairs of which there are few, and that lead where others do not.
func (s stride) rare() int { return min(s.pairs, 11*s.alone) }

// explore runs s without a fault, with one, and with two.
func explore(t *testing.T, s script, every stride) *tally {
	c := &tally{tuples: map[tuple]bool{}}
	clean := simulate(t, s, mutant{})
	c.add(clean)
	if clean.arms != s.wrong {
		t.Errorf("%s: the operator had to begin anew %d times", s, clean.arms)
	}
	alone, pair := 0, 0
	for k1 := 1; k1 <= clean.n; k1++ {
		for _, f1 := range slices.Concat(faultsAt(clean, k1), rareFaults(clean, k1)) {
			if alone++; alone%every.alone != 0 {
				continue
			}
			s.faults = []fault{f1}
			one := simulate(t, s, mutant{})
			c.add(one)
			for k2 := k1; k2 <= one.n; k2++ {
				second := faultsAt(one, k2)
				if f1.kind == dropHalf {
					second = append(second, fault{k2, release, 0})
				}
				for _, f2 := range second {
					if pair++; t.Failed() || pair%every.pairs != 0 {
						continue
					}
					s.faults = []fault{f1, f2}
					c.add(simulate(t, s, mutant{}))
				}
			}
		}
	}
	return c
}

// exploreDeaths runs s with an end that dies for good at each operation, with
// another fault before or after it. With s.found the dead end turns up again.
func exploreDeaths(t *testing.T, s script, every stride) *tally {
	c := &tally{tuples: map[tuple]bool{}}
	clean := simulate(t, s, mutant{})
	pair := 0
	try := func(stride int, faults ...fault) *world {
		if pair++; t.Failed() || pair%stride != 0 {
			return nil
		}
		s.faults = faults
		w := simulate(t, s, mutant{})
		c.add(w)
		return w
	}
	for k1 := 1; k1 <= clean.n; k1++ {
		for _, kind := range []rune{loseSource, loseTarget} {
			f1 := fault{k1, kind, tearNone}
			one := try(every.alone, f1)
			for k2 := k1; one != nil && k2 <= one.n; k2++ {
				try(every.rare(), f1, fault{k2, loseSource, tearNone})
				try(every.rare(), f1, fault{k2, loseTarget, tearNone})
				for _, f2 := range faultsAt(one, k2) {
					try(every.pairs, f1, f2)
				}
			}
			for k0 := 1; k0 < k1; k0++ {
				try(every.rare(), fault{k0, abandon, 0}, f1)
				try(every.rare(), fault{k0, offerAnew, 0}, f1)
				for _, f0 := range faultsAt(clean, k0) {
					try(every.pairs, f0, f1)
				}
			}
		}
	}
	return c
}

// states reads what the model reaches.
func states(t *testing.T, items string) map[string]bool {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "models", "states-"+items+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			all[line] = true
		}
	}
	return all
}

// modelOf is the model that a script's items are compared with.
func (s script) modelOf() string {
	items := s.items
	if items == "forced" {
		items = "move"
	}
	if s.found {
		items += "-found"
	}
	return items
}

// wantStates compares what was reached with the model: nothing else, and all of
// what must says.
func wantStates(t *testing.T, items string, reached map[tuple]bool, must func(line string) bool) {
	t.Helper()
	model, got := states(t, items), map[string]bool{}
	for r := range reached {
		got[r.in(items)] = true
	}
	for _, line := range slices.Sorted(maps.Keys(got)) {
		if !model[line] {
			t.Errorf("%s: the model does not reach: %s", items, line)
		}
	}
	for _, line := range slices.Sorted(maps.Keys(model)) {
		if must(line) && !got[line] {
			t.Errorf("%s: the model reaches, the simulator does not: %s", items, line)
		}
	}
	t.Logf("%s: %d of the model's %d durable states", items, len(got), len(model))
}

func alive(line string) bool { return !strings.Contains(line, "dead") }

func notAlive(line string) bool { return !alive(line) }

// wrongWord are states that only a mistaken person leads to.
func wrongWord(line string) bool { return alive(line) && strings.HasPrefix(line, "reclaimed") }

// Every power cut, link drop and failed write, at every operation; and a part of
// the pairs.
// req: C5, C9
func TestSimFaults(t *testing.T) { testSim(t, false, false, explore, alive) }

// An end dies for good at every operation, and the person who has the other one
// takes the last resort.
func TestSimDeaths(t *testing.T) { testSim(t, false, false, exploreDeaths, notAlive) }

// The same, but the dead end turns up again: the word of the person was wrong.
func TestSimFound(t *testing.T) { testSim(t, false, true, exploreDeaths, wrongWord) }

func TestSoakSimFaults(t *testing.T) {
	soak(t)
	testSim(t, true, false, explore, alive)
}

func TestSoakSimDeaths(t *testing.T) {
	soak(t)
	testSim(t, true, false, exploreDeaths, notAlive)
}

func TestSoakSimFound(t *testing.T) {
	soak(t)
	testSim(t, true, true, exploreDeaths, func(string) bool { return true })
}

func soak(t *testing.T) {
	t.Helper()
	if os.Getenv("KAGIMORI_SOAK") == "" {
		t.Skip("KAGIMORI_SOAK=1 does all of it: minutes")
	}
}

func testSim(t *testing.T, soak, found bool, explore func(*testing.T, script, stride) *tally, must func(string) bool) {
	reached := map[string]map[tuple]bool{}
	began, runs := time.Now(), 0
	for _, s := range simScripts() {
		s.found = found
		c, every := &tally{}, stride{1, 1}
		switch {
		case soak:
		case raced:
			every = stride{31, 9973}
		case s.mode == transport.KeycopyPAKE && s.seed == 1:
			every = stride{1, 997}
		default:
			every = stride{7, 499}
		}
		t.Run(s.name(), func(t *testing.T) {
			c = explore(t, s, every)
			t.Logf("%d runs, %d durable states", c.runs, len(c.tuples))
		})
		if c.runs == 0 {
			continue // -run leaves it out
		}
		if runs += c.runs; reached[s.modelOf()] == nil {
			reached[s.modelOf()] = map[tuple]bool{}
		}
		maps.Copy(reached[s.modelOf()], c.tuples)
	}
	if raced {
		must = func(string) bool { return false }
	}
	if t.Failed() {
		return
	}
	for _, items := range slices.Sorted(maps.Keys(reached)) {
		wantStates(t, items, reached[items], must)
	}
	t.Logf("%d runs in %s", runs, time.Since(began).Round(time.Millisecond))
}
